package ostree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// An ostree checksum covers a file's metadata before its content, and the
// SELinux label in that metadata may be known only when all content has been
// read. An import therefore stages a content as the object that it will probably
// be while it streams by, and makes another of it later where it has to.

// HasFile reports whether a file object is in the repository or staged.
func (t *Txn) HasFile(sum Checksum) (bool, error) { return t.has(fileName(sum)) }

// renameFile makes the staged file of an object that nobody wants another one
// with the same content: n's, of the checksum to. From the first change to the
// last the file counts as torn.
func (t *Txn) renameFile(from, to Checksum, n *fstree.Inode) error {
	if err := t.rename(from, to, n); err != nil {
		return t.failed("write a file object from staged content", err)
	}
	return nil
}

func (t *Txn) rename(from, to Checksum, n *fstree.Inode) error {
	f, err := openAt(t.stage.dir, t.filePath(from), unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := setTimes(fd, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}); err != nil {
		return err
	}
	if err := dropXattrs(fd, t.repo.xattrs(n)); err != nil {
		return err
	}
	if err := t.repo.setMeta(fd, n); err != nil {
		return err
	}
	if err := t.stage.ensureDir(to); err != nil {
		return err
	}
	dirfd := int(t.stage.dir.Fd())
	if err := unix.Renameat(dirfd, t.filePath(from), dirfd, t.filePath(to)); err != nil {
		return &fs.PathError{Op: "rename", Path: t.filePath(from), Err: err}
	}
	t.wrote(fileName(to))
	return setTimes(fd, epoch)
}

// dropXattrs removes the attributes that are not to be kept. A kernel with
// SELinux lets nobody remove a label.
func dropXattrs(fd int, keep *fstree.Xattrs) error {
	have, err := fdXattrs(fd)
	if err != nil {
		return err
	}
	for _, a := range have {
		if _, ok := keep.Get(a.Name); ok {
			continue
		}
		err := unix.Fremovexattr(fd, a.Name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !(a.Name == xattrSELinux && errors.Is(err, unix.EACCES)) {
			return fmt.Errorf("remove the extended attribute %s: %w", a.Name, err)
		}
	}
	return nil
}

// copyFile makes another object of a staged file: a reflink, or copy_file_range.
func (t *Txn) copyFile(f *os.File, n *fstree.Inode, sum Checksum) error {
	tmp, err := t.stage.create(sum, t.filePath(sum), 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer tmp.discard()
	if unix.IoctlFileClone(tmp.fd(), int(f.Fd())) != nil {
		if err := t.space.take(n.Size); err != nil {
			return err
		}
		if err := copyRange(tmp.File, f, n.Size); err != nil {
			return err
		}
	}
	if err := t.repo.finishFile(tmp.fd(), n); err != nil {
		return err
	}
	return t.linkObject(tmp, fileName(sum))
}

// copyRange copies size bytes from the beginning of src to dst, inside the
// kernel where it can.
func copyRange(dst, src *os.File, size int64) error {
	var off int64
	for off < size {
		k, err := unix.CopyFileRange(int(src.Fd()), &off, int(dst.Fd()), nil, int(min(size-off, 1<<30)), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
			_, err = io.Copy(dst, io.NewSectionReader(src, off, size-off))
			return err
		}
		if err != nil {
			return fmt.Errorf("copy_file_range: %w", err)
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}
