// Package usroverlay makes the /usr of a running machine writable until the
// reboot, by an overlay. What is written goes to a directory beside the root, or
// to memory; the root itself is never changed, and the next boot has no overlay.
//
// The mount is made where the caller is: it is for the machine's own mount
// namespace. The commit point is the mount on /usr.
package usroverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Layers are what an overlay is made of.
type Layers struct {
	// Image mounts the root at a directory, whose usr is the lower layer. /usr as it
	// is mounted will not do: where it is of an overlay on an EROFS file, the kernel
	// lays no other on it.
	Image func(dir string) error
	// Lower is a directory beneath Disk that has the files of /usr; without Image.
	Lower string
	// Upper is a directory beneath Disk for what is written, which is emptied
	// first; "" is memory.
	Upper string
	// Disk is the directory that both are beneath. It may be mounted read-only;
	// its file system may not.
	Disk string
}

// Mounted reports whether something is mounted on usr, and whether it is an
// overlay.
func Mounted(usr string) (mounted, overlay, readOnly bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, usr, unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st); err != nil {
		return false, false, false, &os.PathError{Op: "statx", Path: usr, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(usr, &fs); err != nil {
		return false, false, false, &os.PathError{Op: "statfs", Path: usr, Err: err}
	}
	mounted = st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	return mounted, mounted && fs.Type == unix.OVERLAYFS_SUPER_MAGIC, fs.Flags&unix.ST_RDONLY != 0, nil
}

// Mount mounts an overlay on usr. run is a directory in memory. readOnly mounts
// it so that only who mounts it anew can write.
func Mount(usr, run string, l Layers, readOnly bool) (err error) {
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	w, err := newWorkshop(run)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	lower, parent, err := w.layers(l)
	if err != nil {
		return err
	}
	for _, name := range []string{"upper", "work"} {
		if err := likeLower(lower, parent, name); err != nil {
			return err
		}
	}
	var flags uintptr
	if readOnly {
		flags = unix.MS_RDONLY
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, filepath.Join(parent, "upper"), filepath.Join(parent, "work"))
	err = unix.Mount("overlay", usr, "overlay", flags, options)
	if errors.Is(err, unix.ENODEV) {
		return fault.New(fault.Conflict, "load the module overlay", "mount an overlay on %s: the kernel has none", usr)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay on %s: %w", usr, err)
	}
	return nil
}

// workshop is a private tmpfs that shows, writable, what Disk has. An overlay
// keeps its layers when it goes.
type workshop struct{ dir string }

func newWorkshop(run string) (*workshop, error) {
	dir, err := os.MkdirTemp(run, "usr-overlay-")
	if err != nil {
		return nil, err
	}
	w := &workshop{dir}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "mode=0700"); err != nil {
		_ = os.Remove(dir)
		return nil, fault.New(fault.Denied, "run as root", "mount a tmpfs at %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *workshop) close() error {
	if err := unix.Unmount(w.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", w.dir, err)
	}
	return os.Remove(w.dir)
}

// layers returns the directories that the overlay is to have: the lower one, and
// the one for upper and work.
func (w *workshop) layers(l Layers) (lower, parent string, err error) {
	disk, parent := filepath.Join(w.dir, "disk"), filepath.Join(w.dir, "memory")
	if l.Disk != "" {
		if err := os.Mkdir(disk, 0o700); err != nil {
			return "", "", err
		}
		if err := unix.Mount(l.Disk, disk, "", unix.MS_BIND, ""); err != nil {
			return "", "", fmt.Errorf("mount %s at %s: %w", l.Disk, disk, err)
		}
		if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
			return "", "", fmt.Errorf("mount %s writable: %w", l.Disk, err)
		}
	}
	lower = filepath.Join(disk, l.Lower)
	if l.Image != nil {
		image := filepath.Join(w.dir, "image")
		if err := os.Mkdir(image, 0o700); err != nil {
			return "", "", err
		}
		if err := l.Image(image); err != nil {
			return "", "", fmt.Errorf("mount the root: %w", err)
		}
		lower = filepath.Join(image, "usr")
	}
	if l.Upper == "" {
		return lower, parent, os.Mkdir(parent, 0o700)
	}
	root, err := os.OpenRoot(disk)
	if err != nil {
		return "", "", err
	}
	defer root.Close()
	if err := root.RemoveAll(l.Upper); err != nil {
		return "", "", err
	}
	return lower, filepath.Join(disk, l.Upper), root.MkdirAll(l.Upper, 0o700)
}

// likeLower makes a directory with the owner, mode and label of the lower layer:
// the upper one becomes /usr.
func likeLower(lower, parent, name string) error {
	from, err := dirfd.OpenPath(lower)
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Lstat(".")
	if err != nil {
		return err
	}
	xattrs, err := from.Xattrs(".")
	if err != nil {
		return err
	}
	to, err := dirfd.OpenPath(parent)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := to.Mkdir(name); err != nil {
		return err
	}
	var label []dirfd.Xattr
	for _, x := range xattrs {
		if x.Name == dirfd.SELinux {
			label = append(label, x)
		}
	}
	return to.SetMeta(name, st.Uid, st.Gid, st.Mode, label)
}
