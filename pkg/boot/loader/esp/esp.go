// Package esp finds the EFI system partition of a sysroot: where it is mounted,
// as systemd's generator or fstab does it, or else on its disk, and then mounts
// it for this process alone.
package esp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/mountns"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Dirs are where the partition is mounted below a root, in the order in which
// they are looked at.
var Dirs = []string{"efi", "boot/efi", "boot"}

// Options say where to look.
type Options struct {
	// Dir is the root below which the partition is mounted: that of the host to
	// be, of an offline sysroot, or of the running machine.
	Dir string
	// Firmware, of a running machine, names the partition that it booted from. It
	// is mounted where it is not.
	Firmware loader.Firmware
	// Write refuses one that cannot be written.
	Write bool
	// Remount makes it writable where it is mounted read-only; the process must
	// have mounts of its own (internal/mountns).
	Remount bool
	// AnyFilesystem takes a directory of any file system for the partition, for
	// tests on machines whose kernel has no FAT.
	AnyFilesystem bool
}

// Open opens the partition. Without one it is NotFound, one that is not FAT a
// Conflict, and one that cannot be written, where that is asked for, Denied.
func Open(o Options) (*os.Root, error) {
	var wrong error
	for _, name := range Dirs {
		dir := filepath.Join(o.Dir, name)
		mounted, err := isMounted(dir, o.AnyFilesystem)
		if err != nil {
			return nil, fmt.Errorf("look for the EFI system partition: %w", err)
		}
		if !mounted {
			continue
		}
		fat, err := isFAT(dir)
		if err != nil {
			return nil, fmt.Errorf("look for the EFI system partition: %w", err)
		}
		if !fat && !o.AnyFilesystem {
			// /boot is most often a file system of another kind, and nothing is
			// wrong with that.
			if name != "boot" {
				wrong = fault.New(fault.Conflict, "make a FAT file system on the partition (mkfs.vfat)", "%s is not a FAT file system, which the firmware could read", dir)
			}
			continue
		}
		if o.Remount {
			if err := mountns.Writable(dir); err != nil {
				return nil, fmt.Errorf("open the EFI system partition: %w", err)
			}
		}
		root, err := os.OpenRoot(dir)
		if err == nil && o.Write {
			err = writable(root)
		}
		return root, err
	}
	if wrong != nil {
		return nil, wrong
	}
	if o.Firmware.Partition != "" {
		return mount(o)
	}
	return nil, fault.New(fault.NotFound, "mount it at "+filepath.Join(o.Dir, Dirs[1])+" or "+filepath.Join(o.Dir, Dirs[0]), "no EFI system partition is mounted below %s", o.Dir)
}

// Mounted reports whether the partition is mounted below a root.
func Mounted(dir string, anyFilesystem bool) bool {
	for _, name := range Dirs {
		mounted, err := isMounted(filepath.Join(dir, name), anyFilesystem)
		if fat, ferr := isFAT(filepath.Join(dir, name)); err == nil && mounted && (anyFilesystem || ferr == nil && fat) {
			return true
		}
	}
	return false
}

// isMounted reports whether dir has a file system of its own.
func isMounted(dir string, any bool) (bool, error) {
	var st, up unix.Stat_t
	// The slash makes an automount come.
	err := unix.Stat(dir+"/.", &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err == nil {
		err = unix.Stat(filepath.Dir(dir), &up)
	}
	if err != nil {
		return false, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	return st.Dev != up.Dev || any && filepath.Base(dir) != "boot", nil
}

func isFAT(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Type == unix.MSDOS_SUPER_MAGIC, nil
}

// writable refuses a partition that the kernel made read-only, as it does with a
// FAT file system that it finds damaged.
func writable(root *os.Root) error {
	var st unix.Statfs_t
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: root.Name(), Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fault.New(fault.Denied, "remount it writable; after an error that is: unmount it, and fsck.fat -a", "the EFI system partition %s is read-only", root.Name())
	}
	return nil
}

// mount mounts the partition that the loader was started from, at no place:
// nobody else sees it, and it is gone with the descriptor.
func mount(o Options) (_ *os.Root, err error) {
	uuid := o.Firmware.Partition
	if strings.ContainsAny(uuid, "/.") {
		return nil, fault.New(fault.Corrupt, "", "the firmware names the partition %q", uuid)
	}
	device := filepath.Join(o.Dir, "dev/disk/by-partuuid", uuid)
	if _, err := os.Stat(device); err != nil {
		return nil, fault.New(fault.NotFound, "mount it at /efi", "the EFI system partition that this machine booted from is not there: %w", err)
	}
	defer func() {
		if err != nil {
			kind := fault.Conflict
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
				kind = fault.Denied
			}
			err = fault.New(kind, "mount it at /efi", "mount the EFI system partition %s: %w", device, err)
		}
	}()
	fsfd, err := unix.Fsopen("vfat", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fsfd) }()
	attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	for _, p := range [][2]string{{"source", device}, {"umask", "0077"}} {
		if err := unix.FsconfigSetString(fsfd, p[0], p[1]); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, err
	}
	if !o.Write {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(mfd) }()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", mfd))
}
