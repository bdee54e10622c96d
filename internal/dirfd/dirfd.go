// Package dirfd works on file trees through directory descriptors: no path is
// ever put together, no symlink is ever followed, and so nothing outside the
// directory that was opened first can be reached, whatever the tree holds.
package dirfd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dir is an open directory.
type Dir struct {
	f    *os.File
	path string // for messages only
}

// Open opens the directory name beneath root. Symlinks in name are followed
// within root.
func Open(root *os.Root, name string) (*Dir, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	return fromFile(f, name)
}

// OpenPath opens a directory by its path.
func OpenPath(path string) (*Dir, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return fromFile(f, path)
}

func fromFile(f *os.File, path string) (*Dir, error) {
	st, err := f.Stat()
	if err == nil && !st.IsDir() {
		err = &fs.PathError{Op: "open directory", Path: path, Err: unix.ENOTDIR}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Dir{f: f, path: path}, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return d.f.Close() }

// Fd returns the descriptor; it is valid while d is open.
func (d *Dir) Fd() int { return int(d.f.Fd()) }

// Path returns the directory's name for messages.
func (d *Dir) Path() string { return d.path }

// Sync makes the directory's entries durable.
func (d *Dir) Sync() error { return d.f.Sync() }

func (d *Dir) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: d.path + "/" + name, Err: err}
}

// procPath names an entry for the calls that have no *at variant. The kernel
// resolves the descriptor, not a path.
func (d *Dir) procPath(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(d.Fd()) + "/" + name
}

// Sub opens a subdirectory; ENOTDIR or ELOOP where it is none.
func (d *Dir) Sub(name string) (*Dir, error) {
	fd, err := unix.Openat(d.Fd(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, d.fail("open directory", name, err)
	}
	return &Dir{f: os.NewFile(uintptr(fd), name), path: d.path + "/" + name}, nil
}

// Names returns the names in the directory in bytewise order.
func (d *Dir) Names() ([]string, error) {
	if _, err := d.f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := d.f.Readdirnames(-1)
	if err != nil {
		return nil, d.fail("read directory", ".", err)
	}
	slices.Sort(names)
	return names, nil
}

// ReadNames returns the names in the directory dir beneath root in bytewise order.
func ReadNames(root *os.Root, dir string) ([]string, error) {
	f, err := root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Lstat returns an entry's inode; the error is fs.ErrNotExist where there is
// none. "." is the directory itself.
func (d *Dir) Lstat(name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.Fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, d.fail("stat", name, err)
	}
	return &st, nil
}

// Exists reports whether there is an entry of that name.
func (d *Dir) Exists(name string) (bool, error) {
	_, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// OpenFile opens a regular file for reading.
func (d *Dir) OpenFile(name string) (*os.File, error) {
	fd, err := unix.Openat(d.Fd(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, d.fail("open", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Readlink returns a symlink's target.
func (d *Dir) Readlink(name string) (string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(d.Fd(), name, buf)
		if err != nil {
			return "", d.fail("read link", name, err)
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// Mkdir makes a directory of which only its owner can use anything until
// SetMeta opens it; an existing directory is fine.
func (d *Dir) Mkdir(name string) error {
	err := unix.Mkdirat(d.Fd(), name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		err = nil
	}
	return d.fail("make directory", name, err)
}

// Symlink makes a symlink.
func (d *Dir) Symlink(target, name string) error {
	return d.fail("make symlink", name, unix.Symlinkat(target, d.Fd(), name))
}

// Whiteout makes what says, in the upper layer of an overlay, that there is
// nothing of that name.
func (d *Dir) Whiteout(name string) error {
	return d.fail("hide", name, unix.Mknodat(d.Fd(), name, unix.S_IFCHR, 0))
}

// Rename renames an entry within the directory, over an existing one.
func (d *Dir) Rename(from, to string) error {
	return d.fail("rename", from, unix.Renameat(d.Fd(), from, d.Fd(), to))
}

// Remove removes an entry, a directory with everything in it. Immutable
// directories are opened first. A missing entry is fine.
func (d *Dir) Remove(name string) error {
	err := unix.Unlinkat(d.Fd(), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return d.fail("remove", name, err)
	}
	sub, serr := d.Sub(name)
	if serr != nil {
		return d.fail("remove", name, err)
	}
	defer sub.Close()
	if err := sub.RemoveChildren(); err != nil {
		return err
	}
	return d.fail("remove", name, unix.Unlinkat(d.Fd(), name, unix.AT_REMOVEDIR))
}

// RemoveChildren empties the directory.
func (d *Dir) RemoveChildren() error {
	if err := d.SetImmutable(false); err != nil {
		return err
	}
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := d.Remove(n); err != nil {
			return err
		}
	}
	return nil
}

// fsImmutable is FS_IMMUTABLE_FL.
const fsImmutable = 0x10

// SetImmutable sets or clears the directory's own immutable attribute. Where
// the file system has no such attribute, or the process may not change it,
// nothing happens: the attribute keeps people from mistakes, it protects
// nothing that kedge relies on.
func (d *Dir) SetImmutable(on bool) error {
	flags, err := unix.IoctlGetInt(d.Fd(), unix.FS_IOC_GETFLAGS)
	if err == nil {
		want := flags &^ fsImmutable
		if on {
			want |= fsImmutable
		}
		if want == flags {
			return nil
		}
		err = unix.IoctlSetPointerInt(d.Fd(), unix.FS_IOC_SETFLAGS, want)
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS):
		return nil
	}
	return d.fail("set the immutable attribute of", ".", err)
}

// Walk calls fn for every entry below d, a directory before its children, with
// the directory that holds it, its name there and its path below d.
func (d *Dir) Walk(fn func(dir *Dir, name, path string, st *unix.Stat_t) error) error {
	return d.walk("", fn)
}

func (d *Dir) walk(prefix string, fn func(dir *Dir, name, path string, st *unix.Stat_t) error) error {
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		st, err := d.Lstat(n)
		if err != nil {
			return err
		}
		if err := fn(d, n, prefix+n, st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := d.Sub(n)
		if err != nil {
			return err
		}
		err = sub.walk(prefix+n+"/", fn)
		_ = sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// errTooLarge bounds what ReadSmall takes into memory.
var errTooLarge = errors.New("file too large")

// ReadSmall reads a regular file of at most limit bytes.
func (d *Dir) ReadSmall(name string, limit int64) ([]byte, error) {
	f, err := d.OpenFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, d.fail("read", name, err)
	}
	if int64(len(data)) > limit {
		return nil, d.fail("read", name, fmt.Errorf("%w: more than %d bytes", errTooLarge, limit))
	}
	return data, nil
}
