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
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// contentStage keeps file contents by their sha256 until they become objects,
// and the layers that brought them. It lives in the repository's tmp directory
// as kedge-<boot id>: what was staged in this boot is still in the page cache
// and needs no sync, what another boot left may be torn and is thrown away.
//
//	content/xx/<62 hex>  the bytes; a file has this name only when it is whole
//	layers/sha256-<hex>  a savedLayer without commit
type contentStage struct {
	tmp, dir, lock *os.File
	name           string
	space          spaceBudget
}

const (
	stagePrefix = "kedge-"
	lockSuffix  = "-lock"
)

// openContentStage opens this boot's stage in the repository's tmp directory
// and removes those of other boots. A stage that another process works in is an
// error of kind Busy.
func (r *Repo) openContentStage() (*contentStage, error) {
	s := &contentStage{tmp: r.tmp, name: stagePrefix + r.bootID}
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
	if err := mkdirAt(s.tmp, s.name); err != nil {
		return err
	}
	if s.dir, err = openDirAt(s.tmp, s.name); err != nil {
		return err
	}
	for _, dir := range []string{"content", "layers"} {
		if err := mkdirAt(s.dir, dir); err != nil {
			return err
		}
	}
	// libostree removes what is a day old in tmp.
	return setTimes(int(s.dir.Fd()), []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}})
}

func mkdirAt(dir *os.File, name string) error {
	err := unix.Mkdirat(int(dir.Fd()), name, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

func (s *contentStage) removeOthers() error {
	names, err := readDirNames(s.tmp, ".")
	if err != nil {
		return fmt.Errorf("look for old staging directories: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, stagePrefix) && name != s.name && name != s.name+lockSuffix {
			if err := removeAllAt(s.tmp, name); err != nil {
				return fmt.Errorf("remove an old staging directory: %w", err)
			}
		}
	}
	return nil
}

// close lets go of the stage; what is staged stays.
func (s *contentStage) close() {
	if s.dir != nil {
		_ = s.dir.Close()
	}
	// Who locks the file after this finds that it has no name any more.
	_ = unlinkAt(s.tmp, s.name+lockSuffix)
	_ = s.lock.Close()
}

// clear removes everything that is staged.
func (s *contentStage) clear() error {
	if err := removeAllAt(s.tmp, s.name); err != nil {
		return fmt.Errorf("remove the staging directory: %w", err)
	}
	return nil
}

func contentPath(d fstree.Digest) string {
	hex := d.String()
	return "content/" + hex[:2] + "/" + hex[2:]
}

func (s *contentStage) has(d fstree.Digest) bool {
	ok, err := existsAt(s.dir, contentPath(d))
	return ok && err == nil
}

func (s *contentStage) open(d fstree.Digest) (*os.File, error) {
	return openAt(s.dir, contentPath(d), unix.O_RDONLY, 0)
}

// put stages the n.Size bytes that r has, reading them once, and returns their
// sha256. Every byte also goes into also. A content that is staged already, or
// for which known says so, is not kept twice.
func (s *contentStage) put(ctx context.Context, r io.Reader, n *fstree.Inode, also hash.Hash, known func(fstree.Digest) bool) (d fstree.Digest, err error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	sum := sha256.New()
	if n.Size < copyBuffer {
		k, err := readAll(r, buf[:n.Size+1])
		if err != nil {
			return d, err
		}
		if int64(k) != n.Size {
			return d, wrongSize(n)
		}
		sum.Write(buf[:k])
		also.Write(buf[:k])
		sum.Sum(d[:0])
		if n.Size == 0 || s.has(d) || known(d) {
			return d, nil
		}
		return d, s.write(d, buf[:k])
	}
	if err := s.space.take(n.Size); err != nil {
		return d, err
	}
	f, err := newTemp(s.dir, 0o600)
	if err != nil {
		return d, err
	}
	defer f.discard()
	k, err := copyHashed(ctx, sparseWriter{f.File}, r, n.Size, buf[:], sum, also)
	if err == nil && k != n.Size {
		err = wrongSize(n)
	}
	if err == nil {
		err = f.Truncate(n.Size)
	}
	if err != nil {
		return d, err
	}
	sum.Sum(d[:0])
	if s.has(d) || known(d) {
		s.space.give(n.Size)
		return d, nil
	}
	// Begin to write it back, so that the transaction's sync finds less to do.
	_ = unix.SyncFileRange(f.fd(), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	return d, s.link(f, contentPath(d))
}

func (s *contentStage) write(d fstree.Digest, content []byte) error {
	if err := s.space.take(int64(len(content)) + 4096); err != nil {
		return err
	}
	f, err := newTemp(s.dir, 0o600)
	if err != nil {
		return err
	}
	defer f.discard()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("write to the staging directory: %w", err)
	}
	return s.link(f, contentPath(d))
}

// link gives a whole file its name; somebody else having done so is fine.
func (s *contentStage) link(f *temp, name string) error {
	err := f.link(s.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = mkdirAt(s.dir, path.Dir(name)); err == nil {
			err = f.link(s.dir, name)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write to the staging directory: %w", err)
	}
	return nil
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
	if err := l.write(f, bytes.NewReader(l.index), int64(len(l.index))); err != nil {
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
