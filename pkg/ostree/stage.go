package ostree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// An ostree checksum covers a file's metadata before its content, and the
// SELinux label in that metadata may be known only when all content has been
// read. Whoever imports therefore stages a content under its own sha256 while
// it streams by, and turns it into objects later: AdoptFile takes the staged
// file's inode as the object where it can, so that nothing is written twice.

// sumContent returns the checksum of the object with a header and the content
// in r, which must have n's size.
func sumContent(ctx context.Context, header []byte, n *fstree.Inode, r io.Reader) (sum Checksum, err error) {
	h := sha256.New()
	h.Write(header)
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for total := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		k, err := readAll(r, buf[:])
		if err != nil {
			return sum, err
		}
		h.Write(buf[:k])
		if total += int64(k); k < len(buf) {
			if total != n.Size {
				return sum, wrongSize(n)
			}
			h.Sum(sum[:0])
			return sum, nil
		}
	}
}

// HasFile reports whether a file object is in the repository or staged.
func (t *Txn) HasFile(sum Checksum) (bool, error) { return t.has(t.filePath(sum)) }

// AdoptFile stages the file object with n's metadata and the content of f, a
// whole regular file of n.Size bytes on the repository's file system. sum is
// the object's checksum where the caller knows it (it is trusted), or zero: f
// is then hashed, from the page cache if it was written just now.
//
// Where no object of that checksum exists and f has at most one name (that of
// its staging place), f's inode gets the object's metadata and a second name,
// the object's; f's content keeps its staging name and can still be read there.
// Where the inode serves as an object already, because the same content is
// needed with several headers, the new object is a copy: a reflink, or
// copy_file_range. In an archive repository it is always deflated from f.
//
// f needs no particular open mode or offset and stays open. A crash at any
// point leaves f's content as it was, and either no object or the whole one.
// AdoptFile may be called concurrently, for the same file too.
func (t *Txn) AdoptFile(f *os.File, n *fstree.Inode, sum Checksum) (Checksum, error) {
	sum, err := t.adoptFile(f, n, sum)
	if err != nil {
		return Checksum{}, t.failed("write a file object from staged content", err)
	}
	return sum, nil
}

func (t *Txn) adoptFile(f *os.File, n *fstree.Inode, sum Checksum) (Checksum, error) {
	if !n.IsRegular() {
		return sum, fmt.Errorf("a file of the mode %#o: %w", n.Mode, ErrFileType)
	}
	if t.repo.mode == Archive {
		return t.PutFile(n, io.NewSectionReader(f, 0, 1<<62))
	}
	if sum.IsZero() {
		header, err := t.fileHeader(n)
		if err != nil {
			return sum, err
		}
		if sum, err = sumContent(t.ctx, header, n, io.NewSectionReader(f, 0, 1<<62)); err != nil {
			return sum, err
		}
	}
	path := t.filePath(sum)
	if ok, err := t.has(path); ok || err != nil {
		return sum, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return sum, fmt.Errorf("stat staged content: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != n.Size {
		return sum, fault.New(fault.Corrupt, "", "staged content is no regular file of %d bytes", n.Size)
	}
	if done, err := t.takeInode(f, n, path, st.Ino); done || err != nil {
		return sum, err
	}
	return sum, t.copyFile(f, n, path)
}

// takeInode makes f's inode the object unless it has a second name. Two
// adoptions of one inode exclude each other: the loser sees the link.
func (t *Txn) takeInode(f *os.File, n *fstree.Inode, path string, ino uint64) (bool, error) {
	lock := &t.adopting[ino%uint64(len(t.adopting))]
	lock.Lock()
	defer lock.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, fmt.Errorf("stat staged content: %w", err)
	}
	if st.Nlink > 1 {
		return false, nil
	}
	tmp := &temp{File: f}
	if err := dropXattrs(tmp.fd(), t.xattrs(n)); err != nil {
		return false, err
	}
	if err := t.finishFile(tmp, n); err != nil {
		return false, err
	}
	err := t.linkObject(tmp, path)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) {
		return false, nil
	}
	return err == nil, err
}

// dropXattrs removes what an adoption that a crash cut short may have left on
// the inode. A label that the kernel gave the file stays until finishFile sets
// the object's, as on any new file.
func dropXattrs(fd int, keep *fstree.Xattrs) error {
	have, err := fdXattrs(fd)
	if err != nil {
		return err
	}
	for _, a := range have {
		if _, ok := keep.Get(a.Name); ok || a.Name == "security.selinux" {
			continue
		}
		if err := unix.Fremovexattr(fd, a.Name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove the extended attribute %s: %w", a.Name, err)
		}
	}
	return nil
}

func (t *Txn) copyFile(f *os.File, n *fstree.Inode, path string) error {
	tmp, err := newTemp(t.stage.dir, 0o644)
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
	if err := t.finishFile(tmp, n); err != nil {
		return err
	}
	return t.linkObject(tmp, path)
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
