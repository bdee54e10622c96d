package setuproot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// procPath is a path of what f holds open, for system calls that take only paths.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// workshop is a private tmpfs on which mounts are made before they move to where
// they belong: the kernel moves no mount out of a shared one, as systemd makes
// all of an initramfs, and before 6.15 it has no use for detached ones. What is
// left of it goes with close.
type workshop struct{ dir string }

func newWorkshop() (*workshop, error) {
	dir, err := os.MkdirTemp("/run", "kedge-initramfs-")
	if err != nil {
		return nil, err
	}
	w := &workshop{dir}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		_ = os.Remove(dir)
		return nil, fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		w.close()
		return nil, fmt.Errorf("make %s a private mount: %w", dir, err)
	}
	return w, nil
}

// close takes away what is mounted there. Best effort: the boot goes on or has
// failed already.
func (w *workshop) close() {
	_ = unix.Unmount(w.dir, unix.MNT_DETACH)
	_ = os.Remove(w.dir)
}

// mkdir makes a directory of the workshop and returns its path.
func (w *workshop) mkdir(name string) (string, error) {
	dir := w.dir + "/" + name
	return dir, os.Mkdir(dir, 0o755)
}

// mountImage mounts an EROFS image read-only at dir. The kernel does it from the
// file since 6.12. Before, and where the file system's depth counts, it takes a
// loop device: a file's EROFS is one layer of the two that the kernel allows an
// overlay to lie on, a device's is none.
func mountImage(image *os.File, dir string, loop bool) error {
	if !loop {
		err := unix.Mount(procPath(image), dir, "erofs", unix.MS_RDONLY, "")
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOTBLK) {
			return mountError("mount "+image.Name()+" as EROFS", err)
		}
	}
	device, err := attachLoop(image)
	if err != nil {
		return fmt.Errorf("attach %s to a loop device: %w", image.Name(), err)
	}
	// The mount keeps the device; without one it frees itself.
	defer device.Close()
	return mountError("mount "+image.Name()+" as EROFS by "+device.Name(), unix.Mount(device.Name(), dir, "erofs", unix.MS_RDONLY, ""))
}

// MountImage mounts an image of the composefs backend at dir, read-only: the
// EROFS image, and over it its contents from the directory objects. With sealed,
// every file that is read must have the fs-verity digest that the image names.
// Two more overlays fit on it. What it mounts stays when it fails; it is for a
// mount namespace that goes away.
func MountImage(image, objects *os.File, dir string, sealed bool) error {
	if err := mountImage(image, dir, true); err != nil {
		return err
	}
	erofs, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer erofs.Close()
	return overlay{source: "composefs", lower: procPath(erofs), data: procPath(objects), verity: sealed}.mount(dir)
}

// attachLoop returns a read-only loop device of image that frees itself after
// its last user.
func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{
		Fd:   uint32(image.Fd()),
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR},
	}
	// Another program may take the free device first.
	for range 16 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("%s: %w", device.Name(), err)
		}
	}
	return nil, unix.EBUSY
}

// overlay is a mount of overlayfs. Its layers are paths without colons, commas
// and backslashes.
type overlay struct {
	source      string
	lower       string
	data        string // a layer of contents that only lower refers to; "" for none
	verity      bool   // every content must have the fs-verity digest that lower names
	upper, work string // "": read-only
}

func (o overlay) options() string {
	options := []string{"lowerdir=" + o.lower}
	if o.data != "" {
		// "::" begins the layers of contents; every kernel that has them knows it.
		options[0] += "::" + o.data
		options = append(options, "metacopy=on", "redirect_dir=on")
	}
	if o.verity {
		options = append(options, "verity=require")
	}
	if o.upper != "" {
		options = append(options, "upperdir="+o.upper, "workdir="+o.work)
	}
	return strings.Join(options, ",")
}

func (o overlay) mount(dir string) error {
	var flags uintptr
	if o.upper == "" {
		flags = unix.MS_RDONLY
	}
	return mountError("mount "+o.source, unix.Mount(o.source, dir, "overlay", flags, o.options()))
}

func mountError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fault.New(fault.Conflict, "the image's initramfs lacks the module erofs or overlay, or the kernel has none", "%s: %w", doing, err)
	case errors.Is(err, unix.EINVAL):
		return fault.New(fault.Conflict, "the kernel's log says more; a composefs root needs Linux 6.6, and this is "+release(), "%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// release is the version of the running kernel.
func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(name.Release[:])
}

// bind mounts the directory source on the directory target. The mount is
// private: of a shared disk it would be a peer, and the kernel would mount on it
// too what is mounted on the disk later, the new root itself.
func bind(source, target *os.File, readOnly bool) error {
	tree, err := unix.OpenTree(int(source.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("take %s for a mount: %w", source.Name(), err)
	}
	defer os.NewFile(uintptr(tree), source.Name()).Close()
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set how %s is mounted: %w", source.Name(), err)
	}
	if err := unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source.Name(), target.Name(), err)
	}
	return nil
}
