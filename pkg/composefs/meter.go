package composefs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// Meter is a store without a disk, to learn an image's digest: of contents it
// keeps the digests, and itself only those that an image holds inline and those
// of the SELinux policy. It implements ocibridge.Store and has no layers.
type Meter struct {
	alg Algorithm

	mu     sync.Mutex
	places map[fstree.Digest]place
	policy map[fstree.Digest][]byte
}

// NewMeter returns a Meter for images whose objects alg names.
func NewMeter(alg Algorithm) *Meter {
	return &Meter{alg: alg, places: make(map[fstree.Digest]place), policy: make(map[fstree.Digest][]byte)}
}

// policyDir is where Prepare reads.
const policyDir = "etc/selinux/"

// LayerIndex knows no layer.
func (m *Meter) LayerIndex(diffID string) ([]byte, error) {
	return nil, fmt.Errorf("layer %s: %w", diffID, fs.ErrNotExist)
}

// Put measures a file.
func (m *Meter) Put(path string, meta *fstree.Inode, r io.Reader) (d fstree.Digest, err error) {
	sum, v := sha256.New(), fsverity.New(m.alg)
	w := io.MultiWriter(sum, v)
	var kept bytes.Buffer
	policy := strings.HasPrefix(path, policyDir) && meta.Size <= maxPolicyFile
	if policy || meta.Size <= inlineMax {
		w = io.MultiWriter(sum, v, &kept)
	}
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(r, meta.Size+1)}, buf[:])
	if err == nil && n != meta.Size {
		err = wrongLength(n, meta.Size)
	}
	if err != nil {
		return d, err
	}
	sum.Sum(d[:0])
	p := place{size: n}
	if n <= inlineMax {
		p.inline = kept.String()
	} else {
		p.object = v.Sum()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[d] = p
	if policy && n > inlineMax {
		m.policy[d] = kept.Bytes()
	}
	return d, nil
}

// Commit and Abort do nothing: a Meter is its own LayerWriter.
func (m *Meter) Commit([]byte) error { return nil }

// Abort does nothing.
func (m *Meter) Abort() {}

// OpenContent reads back what the Meter kept.
func (m *Meter) OpenContent(d fstree.Digest) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if data, ok := m.policy[d]; ok {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	if p, ok := m.places[d]; ok && p.object == "" {
		return io.NopCloser(strings.NewReader(p.inline)), nil
	}
	return nil, fault.New(fault.NotFound, "", "content %s: %w", d, fs.ErrNotExist)
}

// File says where an image has a regular file's bytes; it is for FromTree.
func (m *Meter) File(_ string, n *fstree.Inode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.places[n.Content]
	if !ok {
		return File{}, fault.New(fault.NotFound, "", "content %s: %w", n.Content, fs.ErrNotExist)
	}
	if p.object == "" {
		return File{Content: p.inline}, nil
	}
	return File{Digest: p.object, stored: true}, nil
}

// ReadDir reads a directory tree as the merged tree of an image of it would be,
// with the Meter measuring its files, several at once. It stays beneath root and
// follows no symlink; a file that changes meanwhile is an error.
func (m *Meter) ReadDir(ctx context.Context, root *os.Root) (*fstree.Tree, error) {
	top, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer top.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	s := &dirScanner{meter: m, ctx: ctx, jobs: g, tree: fstree.New(), linked: make(map[fileID]*fstree.Inode)}
	s.tree.Root, _, err = s.inode(top)
	if err == nil {
		err = s.children(top, s.tree.Root, "")
	}
	if werr := g.Wait(); werr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = werr
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", root.Name(), err)
	}
	s.tree.Freeze()
	return s.tree, nil
}

type fileID struct{ dev, ino uint64 }

type dirScanner struct {
	meter  *Meter
	ctx    context.Context
	jobs   *errgroup.Group
	tree   *fstree.Tree
	linked map[fileID]*fstree.Inode
}

func (s *dirScanner) children(dir *os.File, n *fstree.Inode, path string) error {
	list, err := os.Open(procPath(dir))
	if err != nil {
		return err
	}
	names, err := list.Readdirnames(-1)
	_ = list.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		p := name
		if path != "" {
			p = path + "/" + name
		}
		if err := s.child(dir, n, name, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

func (s *dirScanner) child(dir *os.File, parent *fstree.Inode, name, path string) error {
	fd, err := openat(dir, name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	n, id, err := s.inode(f)
	if err != nil {
		_ = f.Close()
		return err
	}
	if first := s.linked[id]; first != nil && !n.IsDir() {
		first.Linked = true
		parent.Set(name, first)
		return f.Close()
	}
	parent.Set(name, n)
	switch {
	case n.IsDir():
		defer f.Close()
		return s.children(f, n, path)
	case n.IsRegular():
		s.linked[id] = n
		s.jobs.Go(func() error {
			defer f.Close()
			return s.content(f, n, path)
		})
		return nil
	}
	s.linked[id] = n
	return f.Close()
}

func (s *dirScanner) content(f *os.File, n *fstree.Inode, path string) (err error) {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	r, err := os.Open(procPath(f))
	if err == nil {
		defer r.Close()
		n.Content, err = s.meter.Put(path, n, r)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// inode makes the inode of an open file, without content or children.
func (s *dirScanner) inode(f *os.File) (*fstree.Inode, fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fileID{}, err
	}
	n := &fstree.Inode{}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		n = fstree.NewDir(0)
	}
	n.Mode, n.UID, n.GID = st.Mode, st.Uid, st.Gid
	n.MtimeSec, n.MtimeNsec = st.Mtim.Sec, uint32(st.Mtim.Nsec)
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Size = st.Size
	case unix.S_IFLNK:
		n.Target, err = readlinkFD(f)
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = st.Rdev
	}
	if err == nil {
		n.Xattrs, err = s.xattrs(f)
	}
	return n, fileID{st.Dev, st.Ino}, err
}

func readlinkFD(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	return string(buf[:max(n, 0)]), err
}

func (s *dirScanner) xattrs(f *os.File) (*fstree.Xattrs, error) {
	path := procPath(f)
	names, err := readGrowing(func(b []byte) (int, error) { return unix.Listxattr(path, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []fstree.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value, err := readGrowing(func(b []byte) (int, error) { return unix.Getxattr(path, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		list = append(list, fstree.Xattr{Name: name, Value: string(value)})
	}
	return s.tree.Intern(list), nil
}

// readGrowing calls read with more and more room.
func readGrowing(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := read(b)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		return b[:max(n, 0)], err
	}
}
