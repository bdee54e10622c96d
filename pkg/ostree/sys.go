package ostree

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

func randomName() string { return rand.Text()[:12] }

func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openAt opens a name beneath dir without following a symlink in its last
// element.
func openAt(dir *os.File, name string, flags int, perm uint32) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openDirAt(dir *os.File, name string) (*os.File, error) {
	return openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// openFileAt opens a regular file for reading; a fifo there does not block.
func openFileAt(dir *os.File, name string) (*os.File, unix.Stat_t, error) {
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		_ = f.Close()
		return nil, st, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, st, nil
}

// readFileAt reads a regular file of at most limit bytes.
func readFileAt(dir *os.File, name string, limit int64) ([]byte, error) {
	f, st, err := openFileAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st.Size > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%d bytes are more than the limit of %d", st.Size, limit)}
	}
	buf := make([]byte, st.Size)
	if _, err := io.ReadFull(f, buf); err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return buf, nil
}

func existsAt(dir *os.File, name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, &fs.PathError{Op: "stat", Path: name, Err: err}
}

// unlinkAt removes a file; a missing one is not an error.
func unlinkAt(dir *os.File, name string) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	return nil
}

// removeAllAt removes a file or a directory with everything in it, without
// following symlinks.
func removeAllAt(dir *os.File, name string) error {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

// readDirNames lists a directory, sorted. Entries that vanish while it is read
// may or may not be there.
func readDirNames(dir *os.File, name string) ([]string, error) {
	d, err := openDirAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// temp is a file that has no name until it is linked, or one that discard takes
// away until then: the final one, or a random one where the file system has no
// O_TMPFILE.
type temp struct {
	*os.File
	dir  *os.File
	name string
}

func newTemp(dir *os.File, perm uint32) (*temp, error) {
	f, err := openAt(dir, ".", unix.O_TMPFILE|unix.O_RDWR, perm)
	if err == nil {
		return &temp{File: f, dir: dir}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, fmt.Errorf("create a temporary file: %w", err)
	}
	name := ".tmp-" + randomName()
	f, err = openAt(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return nil, fmt.Errorf("create a temporary file: %w", err)
	}
	return &temp{File: f, dir: dir, name: name}, nil
}

func (t *temp) fd() int { return int(t.Fd()) }

// link gives the file its name; an existing file of that name is
// fs.ErrExist.
func (t *temp) link(dir *os.File, name string) error {
	var err error
	if t.name == name && t.dir == dir {
		t.name = ""
		return nil
	}
	if t.name != "" {
		err = unix.Renameat2(int(t.dir.Fd()), t.name, int(dir.Fd()), name, unix.RENAME_NOREPLACE)
		if err == nil {
			t.name = ""
		}
	} else {
		err = linkFd(t.fd(), dir, name)
	}
	if err != nil {
		return &fs.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}

// linkFd gives an open file a name. Linking by descriptor alone needs
// CAP_DAC_READ_SEARCH; /proc does not.
func linkFd(fd int, dir *os.File, name string) error {
	err := unix.Linkat(fd, "", int(dir.Fd()), name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	}
	return err
}

// discard closes the file; without a link it is gone.
func (t *temp) discard() {
	if t.name != "" {
		_ = unix.Unlinkat(int(t.dir.Fd()), t.name, 0)
		t.name = ""
	}
	_ = t.Close()
}

// getXattrs reads attributes through list and get. Like libostree it leaves
// out those with an empty value.
func getXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]fstree.Xattr, error) {
	names, err := growing(list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var out []fstree.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := growing(func(b []byte) (int, error) { return get(name, b) })
		if errors.Is(err, unix.ENODATA) || (err == nil && len(value) == 0) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the extended attribute %s: %w", name, err)
		}
		out = append(out, fstree.Xattr{Name: name, Value: string(value)})
	}
	slices.SortFunc(out, func(a, b fstree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func growing(get func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := get(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

func fdXattrs(fd int) ([]fstree.Xattr, error) {
	return getXattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// procPath names an entry of an open directory where a system call takes no
// directory descriptor (the xattr calls on symlinks).
func procPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

func linkXattrs(dir *os.File, name string) ([]fstree.Xattr, error) {
	p := procPath(dir, name)
	return getXattrs(
		func(b []byte) (int, error) { return unix.Llistxattr(p, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(p, name, b) })
}

func readLinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// epoch is the time that libostree gives to regular files and checked-out
// directories; the access time is left alone.
var epoch = []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {}}

// setTimes sets the times of an open file; nil is the current time. Kernels
// before 5.8 take no descriptor here.
func setTimes(fd int, ts []unix.Timespec) error {
	err := unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), ts, 0)
	}
	if err != nil {
		return fmt.Errorf("set the times of a file: %w", err)
	}
	return nil
}

func sortEntries(list []fs.DirEntry) {
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
}
