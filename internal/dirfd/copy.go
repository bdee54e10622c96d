package dirfd

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Xattr is one extended attribute.
type Xattr struct{ Name, Value string }

// SELinux is the attribute that holds a file's SELinux label.
const SELinux = "security.selinux"

// Xattrs returns an entry's extended attributes in the order of their names;
// none where the file system has none. "." is the directory itself.
func (d *Dir) Xattrs(name string) ([]Xattr, error) {
	path := d.procPath(name)
	names, err := growing(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.EOPNOTSUPP) || (err == nil && len(names) == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, d.fail("list extended attributes of", name, err)
	}
	var list []Xattr
	for n := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := growing(func(b []byte) (int, error) { return unix.Lgetxattr(path, n, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, d.fail("read the extended attribute "+n+" of", name, err)
		}
		list = append(list, Xattr{n, string(value)})
	}
	slices.SortFunc(list, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// growing calls get with a buffer that fits.
func growing(get func([]byte) (int, error)) ([]byte, error) {
	for size := 512; ; {
		buf := make([]byte, size)
		n, err := get(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			size *= 8
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// SetXattr sets one extended attribute of an entry.
func (d *Dir) SetXattr(name string, x Xattr) error {
	return d.fail("set the extended attribute "+x.Name+" of", name, unix.Lsetxattr(d.procPath(name), x.Name, []byte(x.Value), 0))
}

// SetXattrs makes an entry's extended attributes those in the list. A label
// that a kernel without SELinux, or a process without the right, cannot take
// away is left.
func (d *Dir) SetXattrs(name string, list []Xattr) error {
	have, err := d.Xattrs(name)
	if err != nil {
		return err
	}
	for _, x := range have {
		if slices.ContainsFunc(list, func(y Xattr) bool { return y.Name == x.Name }) || x.Name == SELinux {
			continue
		}
		if err := unix.Lremovexattr(d.procPath(name), x.Name); err != nil && !errors.Is(err, unix.ENODATA) {
			return d.fail("remove the extended attribute "+x.Name+" of", name, err)
		}
	}
	for _, x := range list {
		if !slices.Contains(have, x) {
			if err := d.SetXattr(name, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetMeta gives an entry its owner, its extended attributes and, unless it is
// a symlink, its permissions. Capabilities are lost with a change of owner, so
// the attributes come after it.
func (d *Dir) SetMeta(name string, uid, gid, mode uint32, xattrs []Xattr) error {
	if err := unix.Fchownat(d.Fd(), name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return d.fail("change the owner of", name, err)
	}
	if err := d.SetXattrs(name, xattrs); err != nil {
		return err
	}
	if mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return d.fail("change the mode of", name, unix.Fchmodat(d.Fd(), name, mode&0o7777, 0))
}

// SetTimes sets the modification time of an entry.
func (d *Dir) SetTimes(name string, mtime unix.Timespec) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return d.fail("set the time of", name, unix.UtimesNanoAt(d.Fd(), name, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// Meta is what CopyFile gives a copy.
type Meta struct {
	UID, GID, Mode uint32
	Xattrs         []Xattr
	Mtime          unix.Timespec
	Sync           bool // the copy's data is durable before it has its name
	// ShareOnly fails with ErrNotShared rather than copy bytes.
	ShareOnly bool
}

// ErrNotShared is that a file's blocks cannot be shared with its copy.
var ErrNotShared = errors.New("the file system cannot share the file's blocks")

// CopyFile copies the bytes of the regular file srcName in src to name in d,
// as WriteFile does.
func (d *Dir) CopyFile(src *Dir, srcName, name string, m Meta) error {
	in, err := src.OpenFile(srcName)
	if err != nil {
		return err
	}
	defer in.Close()
	return d.WriteFile(in, name, m)
}

// WriteFile makes a file of what in holds, sharing blocks where in is a file
// and the file system can, and replaces what has that name in one step: a reader
// sees the old file or the whole new one.
func (d *Dir) WriteFile(in io.Reader, name string, m Meta) error {
	fd, err := unix.Openat(d.Fd(), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return d.fail("create", name, err)
	}
	out := os.NewFile(uintptr(fd), name)
	defer out.Close()
	if _, err := d.fill(out, in, m); err != nil {
		return err
	}
	return d.link(fd, name)
}

// WriteNew is WriteFile for a directory that nobody uses yet: the file has its
// name before it has its bytes, which is a good deal faster. What has that
// name must be gone. It returns whether blocks are shared and no byte was copied.
func (d *Dir) WriteNew(in io.Reader, name string, m Meta) (shared bool, err error) {
	fd, err := unix.Openat(d.Fd(), name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false, d.fail("create", name, err)
	}
	out := os.NewFile(uintptr(fd), name)
	if shared, err = d.fill(out, in, m); err != nil {
		_ = out.Close()
		return shared, err
	}
	return shared, out.Close()
}

// fill gives a new file its bytes and metadata.
func (d *Dir) fill(out *os.File, in io.Reader, m Meta) (shared bool, err error) {
	fd := int(out.Fd())
	if f, onDisk := in.(*os.File); onDisk {
		shared = unix.IoctlFileClone(fd, int(f.Fd())) == nil
	}
	if !shared {
		if m.ShareOnly {
			return false, d.fail("copy to", out.Name(), ErrNotShared)
		}
		if _, err := io.Copy(out, in); err != nil {
			return false, d.fail("copy to", out.Name(), err)
		}
	}
	if err := d.finish(fd, m); err != nil {
		return shared, d.fail("write", out.Name(), err)
	}
	return shared, nil
}

// finish sets the metadata of an unnamed file; the owner first, since a change
// of owner drops capabilities and the set-id bits.
func (d *Dir) finish(fd int, m Meta) error {
	if err := unix.Fchown(fd, int(m.UID), int(m.GID)); err != nil {
		return err
	}
	for _, x := range m.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, m.Mode&0o7777); err != nil {
		return err
	}
	if m.Mtime != (unix.Timespec{}) {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, m.Mtime}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), ts, 0); err != nil {
			return err
		}
	}
	if m.Sync {
		return unix.Fdatasync(fd)
	}
	return nil
}

// tmpName is where a file waits that replaces another; there is one writer.
const tmpName = ".kedge-replace.tmp"

// link names an unnamed file.
func (d *Dir) link(fd int, name string) error {
	proc := "/proc/self/fd/" + strconv.Itoa(fd)
	err := unix.Linkat(unix.AT_FDCWD, proc, d.Fd(), name, unix.AT_SYMLINK_FOLLOW)
	if !errors.Is(err, unix.EEXIST) {
		return d.fail("create", name, err)
	}
	if err := d.Remove(tmpName); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, proc, d.Fd(), tmpName, unix.AT_SYMLINK_FOLLOW); err != nil {
		return d.fail("create", name, err)
	}
	return d.Rename(tmpName, name)
}

// compareBuffers are pairs of buffers for SameBytes.
var compareBuffers = sync.Pool{New: func() any { return new([2][64 << 10]byte) }}

// SameBytes reports whether two readers give the same bytes.
func SameBytes(a, b io.Reader) (bool, error) {
	buf := compareBuffers.Get().(*[2][64 << 10]byte)
	defer compareBuffers.Put(buf)
	for {
		n, errA := io.ReadFull(a, buf[0][:])
		m, errB := io.ReadFull(b, buf[1][:])
		switch endA, endB := isEnd(errA), isEnd(errB); {
		case errA != nil && !endA:
			return false, errA
		case errB != nil && !endB:
			return false, errB
		case !bytes.Equal(buf[0][:n], buf[1][:m]):
			return false, nil
		case endA || endB:
			return endA && endB, nil
		}
	}
}

func isEnd(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
