package composefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// openObject opens an object. In a sealed repository the kernel must vouch for
// it: one that is not sealed with its own name is an error of kind Corrupt.
func (r *Repo) openObject(d Digest) (*os.File, error) {
	f, _, err := r.objects.openFile(d)
	if err != nil {
		return nil, err
	}
	if r.sealed {
		got, err := fsverity.Measure(f)
		if err != nil || got != d {
			_ = f.Close()
			return nil, fault.New(fault.Corrupt, "run kedge fsck --repair", "object %s is not sealed with its digest: %w", d, errors.Join(err, fsverity.ErrNotSealed))
		}
	}
	return f, nil
}

func (o *objectDir) openFile(d Digest) (*os.File, int64, error) {
	dir, err := o.sub(d[0], false)
	if err != nil {
		return nil, 0, err
	}
	name := d.String()[2:]
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, &fs.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = f.Close()
		return nil, 0, fault.New(fault.Corrupt, "", "object %s is not a regular file: %w", d, errors.Join(err, fs.ErrInvalid))
	}
	return f, st.Size, nil
}

// size returns the length of an object, or an error that is fs.ErrNotExist.
func (o *objectDir) size(d Digest) (int64, error) {
	dir, err := o.sub(d[0], false)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	name := d.String()[2:]
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: dir.Name() + "/" + name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fault.New(fault.Corrupt, "", "object %s is not a regular file", d)
	}
	return st.Size, nil
}

func (o *objectDir) has(d Digest, size int64) bool {
	n, err := o.size(d)
	return err == nil && n == size
}

// readBounded reads a file of at most limit bytes.
func readBounded(f *os.File, limit int64) ([]byte, error) {
	var data bytes.Buffer
	if st, err := f.Stat(); err == nil {
		data.Grow(int(min(st.Size(), limit)) + bytes.MinRead) // or the last read doubles it
	}
	n, err := data.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		err = fault.New(fault.Corrupt, "", "%s has more than %d bytes", f.Name(), limit)
	}
	return data.Bytes(), err
}

// objectTemp is an object that has no name yet.
type objectTemp struct {
	dir *os.File // where it was made
	w   *os.File // nil once it is read-only
	r   *os.File
}

// newTemp makes a file without a name in the directory that objects go to.
func (o *objectDir) newTemp() (*objectTemp, error) {
	dir, err := o.open(true)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, &fs.PathError{Op: "create a file in", Path: dir.Name(), Err: err}
	}
	return &objectTemp{dir: dir, w: os.NewFile(uintptr(fd), "new object")}, nil
}

func (t *objectTemp) discard() {
	if t.w != nil {
		_ = t.w.Close()
	}
	if t.r != nil {
		_ = t.r.Close()
	}
}

// freeze makes the file read-only.
func (t *objectTemp) freeze() error {
	if err := t.w.Chmod(0o644); err != nil { // whatever the umask said
		return err
	}
	fd, err := unix.Open(procPath(t.w), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a new object for reading (is /proc mounted?): %w", err)
	}
	t.r = os.NewFile(uintptr(fd), "new object")
	err = t.w.Close()
	t.w = nil
	return err
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// seal enables fs-verity on a frozen file whose digest must be d. In a
// repository without fs-verity it is enabled where the file system has it.
func (r *Repo) seal(t *objectTemp, d Digest) error {
	if !r.sealed && r.noVerity.Load() {
		return nil
	}
	got, err := fsverity.Seal(t.r, r.meta.alg)
	if errors.Is(err, fsverity.ErrNoVerity) && !r.sealed {
		r.noVerity.Store(true)
		return nil
	}
	if err == nil && got != d {
		err = fault.New(fault.IO, "check the machine's memory and disk", "fs-verity measured %s, kedge computed %s", got, d)
	}
	return err
}

// link gives a sealed file its name, which is the commit point. Another having
// made the same object is fine; with replace it is replaced.
func (o *objectDir) link(t *objectTemp, d Digest, replace bool) error {
	dir, err := o.sub(d[0], true)
	if err != nil {
		return err
	}
	name := d.String()[2:]
	err = linkFile(t.r, dir, name)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if !replace {
		return nil
	}
	// For an instant it has another name; a name beside the directories of
	// objects is nobody's object.
	side := tempName()
	if err := linkFile(t.r, t.dir, side); err != nil {
		return err
	}
	if err := unix.Renameat(int(t.dir.Fd()), side, int(dir.Fd()), name); err != nil {
		_ = unix.Unlinkat(int(t.dir.Fd()), side, 0)
		return &fs.PathError{Op: "rename", Path: dir.Name() + "/" + name, Err: err}
	}
	return nil
}

func linkFile(f, dir *os.File, name string) error {
	err := unix.Linkat(unix.AT_FDCWD, procPath(f), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &fs.PathError{Op: "link", Path: dir.Name() + "/" + name, Err: err}
	}
	return nil
}

// readObject reads an object of at most limit bytes into memory and checks it
// against its digest where the kernel does not.
func (r *Repo) readObject(d Digest, limit int64) ([]byte, error) {
	f, err := r.openObject(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, limit)
	if err != nil {
		return nil, err
	}
	if !r.sealed {
		got, err := fsverity.Of(context.Background(), bytes.NewReader(data), int64(len(data)), r.meta.alg)
		if err != nil {
			return nil, err
		}
		if got != d {
			return nil, fault.New(fault.Corrupt, "run kedge fsck --repair", "object %s has the digest %s", d, got)
		}
	}
	return data, nil
}
