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
	// Machine is the root of the running machine, and Disk a directory whose disks
	// are searched for the partition, by its type, where it is mounted nowhere; "":
	// none are.
	Machine, Disk string
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
	dir, wrong, err := mountPoint(o.Dir, o.AnyFilesystem)
	if err != nil {
		return nil, fmt.Errorf("look for the EFI system partition: %w", err)
	}
	if dir != "" {
		if o.Remount {
			if err := mountns.Writable(dir); err != nil {
				return nil, fmt.Errorf("open the EFI system partition: %w", err)
			}
		}
		return openRoot(dir, o.Write)
	}
	if wrong != "" {
		return nil, fault.New(fault.Conflict, "make a FAT file system on the partition (mkfs.vfat)", "%s is not a FAT file system, which the firmware could read", wrong)
	}
	device, err := o.device()
	if err != nil {
		return nil, err
	}
	if device != "" {
		return mount(device, "EFI system partition", o.Write)
	}
	return nil, fault.New(fault.NotFound, "mount it at "+filepath.Join(o.Dir, Dirs[1])+" or "+filepath.Join(o.Dir, Dirs[0]), "no EFI system partition is mounted below %s", o.Dir)
}

// Mounted reports whether the partition is mounted below a root.
func Mounted(root string, anyFilesystem bool) bool {
	dir, _, err := mountPoint(root, anyFilesystem)
	return err == nil && dir != ""
}

// mountPoint returns where the partition is mounted below a root, "" for nowhere.
// wrong is a place of its own that has a file system of another kind.
func mountPoint(root string, anyFilesystem bool) (dir, wrong string, err error) {
	for _, name := range Dirs {
		dir := filepath.Join(root, name)
		mounted, err := isMounted(dir, anyFilesystem)
		if err != nil {
			return "", "", err
		}
		if !mounted {
			continue
		}
		fat, err := isFAT(dir)
		if err != nil {
			return "", "", err
		}
		if fat || anyFilesystem {
			return dir, "", nil
		}
		// /boot is most often a file system of another kind, and nothing is wrong
		// with that.
		if name != "boot" {
			wrong = dir
		}
	}
	return "", wrong, nil
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

func openRoot(dir string, write bool) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil || !write {
		return root, err
	}
	if err := writable(root); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
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
