package ostree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/writeback"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// contentStage keeps file contents until they become objects, and the layers
// that brought them. It lives in the repository's tmp directory as kedge-<boot
// id>: what was staged in this boot is still in the page cache and needs no
// sync, what another boot left may be torn and is thrown away.
//
// A content is kept as the object that it will be if its label is as expected,
// with the object's metadata, so that nothing is left to do but to move it to
// objects/. In an archive repository it is kept as it came.
//
//	objects/             as a transaction's staging directory, and used as one.
//	                     A regular file .file is whole when its modification
//	                     time is 0, which is set last.
//	layers/sha256-<hex>  a savedLayer without commit
type contentStage struct {
	repo      *Repo
	dir, lock *os.File
	objects   *staging
	name      string
	space     spaceBudget
	writeback writeback.Writer
}

const (
	stagePrefix = "kedge-"
	lockSuffix  = "-lock"
)

// openContentStage opens this boot's stage in the repository's tmp directory
// and removes those of other boots. A stage that another process works in is an
// error of kind Busy.
func (r *Repo) openContentStage() (*contentStage, error) {
	s := &contentStage{repo: r, name: stagePrefix + r.bootID, writeback: writeback.Writer{Sync: r.syncfs}}
	err := s.removeOthers()
	if err == nil {
		err = s.space.init(r)
	}
	if err != nil {
		return nil, err
	}
	if s.lock, err = lockBeside(r.tmp, s.name+lockSuffix); err != nil {
		return nil, fmt.Errorf("lock the staging directory: %w", err)
	}
	if s.lock == nil {
		return nil, fault.New(fault.Busy, "wait until the other kedge process is done", "another process is importing into this repository")
	}
	if err := s.init(); err != nil {
		s.close()
		return nil, fmt.Errorf("open the staging directory: %w", err)
	}
	return s, nil
}

func (s *contentStage) init() (err error) {
	if err := mkdirAt(s.repo.tmp, s.name); err != nil {
		return err
	}
	if s.dir, err = openDirAt(s.repo.tmp, s.name); err != nil {
		return err
	}
	for _, dir := range []string{"objects", "layers"} {
		if err := mkdirAt(s.dir, dir); err != nil {
			return err
		}
	}
	objects, err := openDirAt(s.dir, "objects")
	if err != nil {
		return err
	}
	s.objects = &staging{dir: objects, private: true}
	if err := s.sweep(); err != nil {
		return err
	}
	// libostree removes what is a day old in tmp.
	return setTimes(int(s.dir.Fd()), []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}})
}

// sweep removes what a process that was killed has not finished, and all that
// can be made again from the layers' indexes.
func (s *contentStage) sweep() error {
	dirs, err := readDirNames(s.objects.dir, ".")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if len(dir) != 2 {
			if err := unlinkAt(s.objects.dir, dir); err != nil {
				return err
			}
			continue
		}
		files, err := readDirNames(s.objects.dir, dir)
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := s.sweepFile(dir + "/" + file); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *contentStage) sweepFile(name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(s.objects.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	whole := st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mtim == unix.Timespec{} && strings.HasSuffix(name, "."+object.TypeFile.String())
	if whole {
		return nil
	}
	return unlinkAt(s.objects.dir, name)
}

func mkdirAt(dir *os.File, name string) error {
	err := unix.Mkdirat(int(dir.Fd()), name, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

func (s *contentStage) removeOthers() error {
	names, err := readDirNames(s.repo.tmp, ".")
	if err != nil {
		return fmt.Errorf("look for old staging directories: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, stagePrefix) && name != s.name && name != s.name+lockSuffix {
			if err := removeAllAt(s.repo.tmp, name); err != nil {
				return fmt.Errorf("remove an old staging directory: %w", err)
			}
		}
	}
	return nil
}

// close lets go of the stage; what is staged stays.
func (s *contentStage) close() {
	s.writeback.Wait()
	if s.objects != nil {
		_ = s.objects.dir.Close()
	}
	if s.dir != nil {
		_ = s.dir.Close()
	}
	// Who locks the file after this finds that it has no name any more.
	_ = unlinkAt(s.repo.tmp, s.name+lockSuffix)
	_ = s.lock.Close()
}

// clear removes everything that is staged.
func (s *contentStage) clear() error {
	if err := removeAllAt(s.repo.tmp, s.name); err != nil {
		return fmt.Errorf("remove the staging directory: %w", err)
	}
	return nil
}

// path returns where the content of an object is staged.
func (s *contentStage) path(sum object.Checksum) string { return fileName(sum).Path(false) }

func (s *contentStage) has(sum object.Checksum) bool {
	ok, err := existsAt(s.objects.dir, s.path(sum))
	return ok && err == nil
}

func (s *contentStage) open(sum object.Checksum) (*os.File, error) {
	return openAt(s.objects.dir, s.path(sum), unix.O_RDONLY, 0)
}

// put stages the n.Size bytes that r has, reading them once, as the object that
// n and the header, which n has, make of them. It returns their sha256 and the
// object's checksum. A content that is staged already as that object, or for
// which known says so, is not kept twice.
func (s *contentStage) put(ctx context.Context, r io.Reader, n *fstree.Inode, header []byte, known func(fstree.Digest, object.Checksum) bool) (d fstree.Digest, sum object.Checksum, err error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	content, whole := sha256.New(), sha256.New()
	whole.Write(header)
	if n.Size >= copyBuffer {
		return s.putLarge(ctx, r, n, buf[:], content, whole, known)
	}
	k, err := readAll(r, buf[:n.Size+1])
	if err != nil {
		return d, sum, err
	}
	if int64(k) != n.Size {
		return d, sum, wrongSize(n)
	}
	content.Write(buf[:k])
	whole.Write(buf[:k])
	content.Sum(d[:0])
	whole.Sum(sum[:0])
	if n.Size == 0 || known(d, sum) {
		return d, sum, nil
	}
	return d, sum, s.write(sum, n, buf[:k])
}

func (s *contentStage) putLarge(ctx context.Context, r io.Reader, n *fstree.Inode, buf []byte, content, whole hash.Hash, known func(fstree.Digest, object.Checksum) bool) (d fstree.Digest, sum object.Checksum, err error) {
	if err := s.space.take(n.Size); err != nil {
		return d, sum, err
	}
	f, err := newTemp(s.dir, 0o600)
	if err != nil {
		return d, sum, err
	}
	defer f.discard()
	k, err := copyHashed(ctx, sparseWriter{f.File}, r, n.Size, buf, content, whole)
	if err == nil && k != n.Size {
		err = wrongSize(n)
	}
	if err == nil {
		err = f.Truncate(n.Size)
	}
	if err != nil {
		return d, sum, err
	}
	content.Sum(d[:0])
	whole.Sum(sum[:0])
	if known(d, sum) {
		s.space.give(n.Size)
		return d, sum, nil
	}
	if err := s.finish(f, n); err != nil {
		return d, sum, err
	}
	if err := s.objects.ensureDir(sum); err != nil {
		return d, sum, err
	}
	if err := f.link(s.objects.dir, s.path(sum)); err != nil && !errors.Is(err, fs.ErrExist) {
		return d, sum, fmt.Errorf("write to the staging directory: %w", err)
	}
	s.writeback.Add(n.Size)
	return d, sum, nil
}

// write stages a small content. That it is there already is fine: somebody else
// writes the same.
func (s *contentStage) write(sum object.Checksum, n *fstree.Inode, content []byte) error {
	if err := s.space.take(n.Size + 4096); err != nil {
		return err
	}
	f, err := s.objects.create(sum, s.path(sum), 0o600)
	if errors.Is(err, fs.ErrExist) {
		s.space.give(n.Size + 4096)
		return nil
	}
	if err != nil {
		return fmt.Errorf("write to the staging directory: %w", err)
	}
	defer f.discard()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("write to the staging directory: %w", err)
	}
	if err := s.finish(f, n); err != nil {
		return err
	}
	s.writeback.Add(n.Size)
	return f.link(s.objects.dir, s.path(sum))
}

// finish marks a staged file as whole.
func (s *contentStage) finish(f *temp, n *fstree.Inode) error {
	if s.repo.mode == Archive {
		return setTimes(f.fd(), epoch)
	}
	return s.repo.finishFile(f.fd(), n)
}

// maxLayerFile bounds a savedLayer's file: ten million entries.
const maxLayerFile = 4 << 30

// layer returns a staged layer; one that cannot be read counts as absent.
func (s *contentStage) layer(name string) (*savedLayer, bool) {
	f, st, err := openFileAt(s.dir, "layers/"+name)
	if err != nil || st.Size > maxLayerFile {
		return nil, false
	}
	defer f.Close()
	l, err := readLayerFile(f, st.Size)
	return l, err == nil
}

// index opens the index of a staged layer.
func (s *contentStage) index(name string) (*savedIndex, error) {
	f, st, err := openFileAt(s.dir, "layers/"+name)
	if err != nil {
		return nil, err
	}
	return openIndex(f, st.Size)
}

// putLayer stages a layer. The rename is its commit point.
func (s *contentStage) putLayer(name string, l *savedLayer) error {
	if err := s.replace("layers/"+name, l); err != nil {
		return fmt.Errorf("stage a layer's index: %w", err)
	}
	return nil
}

func (s *contentStage) replace(name string, l *savedLayer) error {
	f, err := newTemp(s.dir, 0o600)
	if err != nil {
		return err
	}
	defer f.discard()
	if err := l.write(f, bytes.NewReader(l.index), int64(len(l.index)), listOf(l.records)); err != nil {
		return err
	}
	side := "new-" + randomName()
	if err := f.link(s.dir, side); err != nil {
		return err
	}
	if err := unix.Renameat(int(s.dir.Fd()), side, int(s.dir.Fd()), name); err != nil {
		_ = unlinkAt(s.dir, side)
		return &fs.PathError{Op: "rename", Path: name, Err: err}
	}
	return nil
}
