package ostree

import (
	"compress/flate"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// ErrFileType is wrapped by the error about a file that an ostree commit
// cannot hold: a device, fifo or socket.
var ErrFileType = errors.New("ostree commits hold regular files, symlinks and directories only")

// copyBuffer is how much is read, hashed and written at a time, and the size
// up to which a file is hashed before anything is written.
const copyBuffer = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// PutMeta stages a metadata object (commit, dirtree, dirmeta) and returns its
// checksum. The bytes must come from package object's encoders or have passed
// its decoders.
func (t *Txn) PutMeta(typ object.Type, data []byte) (Checksum, error) {
	sum := object.Sum(data)
	if !typ.IsMeta() || len(data) > object.MaxMetadata {
		return sum, fmt.Errorf("write %s.%s: %d bytes of no metadata object", sum, typ, len(data))
	}
	n := object.Name{Checksum: sum, Type: typ}
	if err := t.putNamed(n, data, false); err != nil {
		return sum, err
	}
	if typ == object.TypeCommit {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.commits[sum] = true
	}
	return sum, nil
}

// PutCommit stages a commit object.
func (t *Txn) PutCommit(c *object.Commit) (Checksum, error) {
	return t.PutMeta(object.TypeCommit, c.Encode())
}

// PutCommitMeta stages the detached metadata of a commit (signatures); it
// replaces what is there.
func (t *Txn) PutCommitMeta(commit Checksum, d object.Dict) error {
	return t.putNamed(object.Name{Checksum: commit, Type: object.TypeCommitMeta}, d.Encode(), true)
}

func (t *Txn) putNamed(n object.Name, data []byte, replace bool) (err error) {
	defer func() {
		if err != nil {
			err = t.failed("write "+n.String(), err)
		}
	}()
	path := n.Path(t.repo.mode == Archive)
	if replace {
		err = unlinkAt(t.stage.dir, path)
	} else if ok, err := t.has(n); ok || err != nil {
		return err
	}
	if err != nil {
		return err
	}
	tmp, err := t.stage.create(n.Checksum, path, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer tmp.discard()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := unix.Fchmod(tmp.fd(), 0o644); err != nil {
		return err
	}
	return t.linkObject(tmp, n)
}

// failed notes that the disk is full, so that Abort gives the space back.
func (t *Txn) failed(what string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		t.space.short.Store(true)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// linkObject gives a finished file its name in the staging directory. That it
// exists there already is fine: it is the same.
func (t *Txn) linkObject(tmp *temp, n object.Name) error {
	if err := t.stage.ensureDir(n.Checksum); err != nil {
		return err
	}
	if t.repo.config.Bool("core", "per-object-fsync", false) {
		if err := t.repo.fsync(tmp.File); err != nil {
			return err
		}
	}
	if err := tmp.link(t.stage.dir, n.Path(t.repo.mode == Archive)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	t.wrote(n)
	return nil
}

// PutFile stages a file object and returns its checksum. Of n it takes owner,
// mode, xattrs, and a symlink's target or a regular file's size, which r must
// have exactly. r is read once; it is nil for a symlink.
//
// In the modes bare and bare-user the object's file gets what libostree gives
// it (commit_loose_regfile_object): owner, mode, xattrs and the modification
// time 0, or user.ostreemeta. An xattr with an empty value is left out in mode
// bare, because libostree does not read it back.
func (t *Txn) PutFile(n *fstree.Inode, r io.Reader) (Checksum, error) {
	var sum Checksum
	header, err := t.fileHeader(n)
	if err == nil {
		if n.IsSymlink() {
			sum, err = t.putSymlink(n, header)
		} else {
			sum, err = t.putRegular(n, header, r)
		}
	}
	if err != nil {
		return Checksum{}, t.failed("write a file object", err)
	}
	return sum, nil
}

// fileHeader returns what precedes n's content in its checksum.
func (t *Txn) fileHeader(n *fstree.Inode) ([]byte, error) {
	switch {
	case n.IsSymlink():
		if err := object.CheckTarget(n.Target); err != nil {
			return nil, err
		}
		return object.FileHeader(n.UID, n.GID, n.Mode, n.Target, t.repo.xattrs(n)), nil
	case n.IsRegular():
		return object.FileHeader(n.UID, n.GID, n.Mode, "", t.repo.xattrs(n)), nil
	}
	return nil, fmt.Errorf("a file of the mode %#o: %w", n.Mode, ErrFileType)
}

// xattrs returns the attributes that n's object gets.
func (r *Repo) xattrs(n *fstree.Inode) *fstree.Xattrs {
	if r.mode != Bare {
		return n.Xattrs
	}
	return withoutEmpty(n.Xattrs)
}

func withoutEmpty(x *fstree.Xattrs) *fstree.Xattrs {
	for _, a := range x.All() {
		if a.Value != "" {
			continue
		}
		var keep []fstree.Xattr
		for _, b := range x.All() {
			if b.Value != "" {
				keep = append(keep, b)
			}
		}
		return new(fstree.Tree).Intern(keep)
	}
	return x
}

func fileName(sum Checksum) object.Name { return object.Name{Checksum: sum, Type: object.TypeFile} }

func (t *Txn) filePath(sum Checksum) string { return fileName(sum).Path(t.repo.mode == Archive) }

func (t *Txn) putSymlink(n *fstree.Inode, header []byte) (Checksum, error) {
	sum := Checksum(sha256.Sum256(header))
	if ok, err := t.has(fileName(sum)); ok || err != nil {
		return sum, err
	}
	if t.repo.mode == Bare {
		return sum, t.makeSymlink(n, sum)
	}
	tmp, err := t.stage.create(sum, t.filePath(sum), 0o644)
	if errors.Is(err, fs.ErrExist) {
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	defer tmp.discard()
	if t.repo.mode == Archive {
		err = writeArchive(tmp, n, nil)
	} else if _, err = tmp.WriteString(n.Target + "\x00"); err == nil {
		err = t.repo.finishFile(tmp.fd(), n)
	}
	if err != nil {
		return sum, err
	}
	return sum, t.linkObject(tmp, fileName(sum))
}

// makeSymlink makes a real symlink under a temporary name, since it has no
// other place for owner and xattrs before it is complete.
func (t *Txn) makeSymlink(n *fstree.Inode, sum Checksum) error {
	if err := t.stage.ensureDir(sum); err != nil {
		return err
	}
	dirfd, path := int(t.stage.dir.Fd()), t.filePath(sum)
	tmp := path
	if !t.stage.private {
		tmp = ".tmp-" + randomName()
	}
	if err := unix.Symlinkat(n.Target, dirfd, tmp); err != nil {
		if t.stage.private && errors.Is(err, unix.EEXIST) {
			return nil
		}
		return &fs.PathError{Op: "symlink", Path: tmp, Err: err}
	}
	err := unix.Fchownat(dirfd, tmp, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW)
	for _, a := range t.repo.xattrs(n).All() {
		if err == nil {
			if err = unix.Lsetxattr(procPath(t.stage.dir, tmp), a.Name, []byte(a.Value), 0); err != nil {
				err = fmt.Errorf("set the extended attribute %s of a symlink: %w", a.Name, err)
			}
		}
	}
	if err == nil && tmp != path {
		err = unix.Renameat(dirfd, tmp, dirfd, path)
	}
	if err != nil {
		_ = unix.Unlinkat(dirfd, tmp, 0)
		return err
	}
	t.wrote(fileName(sum))
	return nil
}

// putRegular hashes a small file before it writes anything, and writes a large
// one while it hashes it.
func (t *Txn) putRegular(n *fstree.Inode, header []byte, r io.Reader) (sum Checksum, err error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	if n.Size == 0 {
		r = strings.NewReader("")
	}
	if n.Size > copyBuffer-1 {
		return t.putLarge(n, header, r, buf[:])
	}
	k, err := readAll(r, buf[:n.Size+1])
	if err != nil {
		return sum, err
	}
	if int64(k) != n.Size {
		return sum, wrongSize(n)
	}
	h := sha256.New()
	h.Write(header)
	h.Write(buf[:k])
	h.Sum(sum[:0])
	if ok, err := t.has(fileName(sum)); ok || err != nil {
		return sum, err
	}
	if err := t.space.take(n.Size + 4096); err != nil {
		return sum, err
	}
	tmp, err := t.stage.create(sum, t.filePath(sum), 0o644)
	if errors.Is(err, fs.ErrExist) {
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	defer tmp.discard()
	if t.repo.mode == Archive {
		err = writeArchive(tmp, n, func(w io.Writer) error { _, err := w.Write(buf[:k]); return err })
	} else if _, err = tmp.Write(buf[:k]); err == nil {
		err = t.repo.finishFile(tmp.fd(), n)
	}
	if err != nil {
		return sum, err
	}
	return sum, t.linkObject(tmp, fileName(sum))
}

func (t *Txn) putLarge(n *fstree.Inode, header []byte, r io.Reader, buf []byte) (sum Checksum, err error) {
	if err := t.space.take(n.Size); err != nil {
		return sum, err
	}
	tmp, err := newTemp(t.stage.dir, 0o644)
	if err != nil {
		return sum, err
	}
	defer tmp.discard()
	h := sha256.New()
	h.Write(header)
	content := func(w io.Writer) error {
		k, err := copyHashed(t.ctx, w, r, n.Size, buf, h)
		if err == nil && k != n.Size {
			err = wrongSize(n)
		}
		return err
	}
	if t.repo.mode == Archive {
		err = writeArchive(tmp, n, content)
	} else if err = content(sparseWriter{tmp.File}); err == nil {
		err = unix.Ftruncate(tmp.fd(), n.Size)
	}
	if err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	if ok, err := t.has(fileName(sum)); ok || err != nil {
		t.space.give(n.Size)
		return sum, err
	}
	if t.repo.mode != Archive {
		if err := t.repo.finishFile(tmp.fd(), n); err != nil {
			return sum, err
		}
	}
	return sum, t.linkObject(tmp, fileName(sum))
}

func wrongSize(n *fstree.Inode) error {
	return fault.New(fault.Corrupt, "", "the content has not the %d bytes that it should", n.Size)
}

// finishFile gives a file what its object's file has in this mode: the times
// last.
func (r *Repo) finishFile(fd int, n *fstree.Inode) error {
	if err := r.setMeta(fd, n); err != nil {
		return err
	}
	return setTimes(fd, epoch)
}

// setMeta sets everything of an object's file but the times. Capabilities are
// lost with a change of owner, so xattrs come after it.
func (r *Repo) setMeta(fd int, n *fstree.Inode) error {
	if r.mode == BareUser {
		meta := object.EncodeFileMeta(n.UID, n.GID, n.Mode, n.Xattrs)
		if err := unix.Fsetxattr(fd, "user.ostreemeta", meta, 0); err != nil {
			return fmt.Errorf("set user.ostreemeta: %w", err)
		}
		perm := uint32(0o644)
		if n.IsRegular() {
			perm = n.Mode&0o775 | 0o400
		}
		if err := unix.Fchmod(fd, perm); err != nil {
			return fmt.Errorf("change the mode: %w", err)
		}
		return nil
	}
	if err := unix.Fchown(fd, int(n.UID), int(n.GID)); err != nil {
		return fmt.Errorf("change the owner to %d:%d: %w", n.UID, n.GID, err)
	}
	if err := unix.Fchmod(fd, n.Mode&0o7777); err != nil {
		return fmt.Errorf("change the mode: %w", err)
	}
	for _, a := range r.xattrs(n).All() {
		if err := unix.Fsetxattr(fd, a.Name, []byte(a.Value), 0); err != nil {
			return fmt.Errorf("set the extended attribute %s: %w", a.Name, err)
		}
	}
	return nil
}

// archiveLevel is the deflate level of libostree's default configuration.
const archiveLevel = 6

// writeArchive writes a .filez object: header and raw deflate.
func writeArchive(tmp *temp, n *fstree.Inode, content func(io.Writer) error) error {
	size := uint64(0)
	if n.IsRegular() {
		size = uint64(n.Size)
	}
	if _, err := tmp.Write(object.ArchiveHeader(size, n.UID, n.GID, n.Mode, n.Target, n.Xattrs)); err != nil {
		return err
	}
	if content != nil {
		w, err := flate.NewWriter(tmp, archiveLevel)
		if err != nil {
			return err
		}
		if err := content(w); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
	}
	return unix.Fchmod(tmp.fd(), 0o644)
}
