package esp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/blockdev"
	"github.com/kedge-os/kedge/pkg/fault"
)

// device returns the device of a partition that is mounted nowhere: the one that
// the machine's loader was started from, or the first on the disks of a directory;
// "" where there is none to look for.
func (o Options) device() (string, error) {
	uuid := o.Firmware.Partition
	if uuid == "" {
		return o.find(blockdev.TypeESP)
	}
	if strings.ContainsAny(uuid, "/.") {
		return "", fault.New(fault.Corrupt, "", "the firmware names the partition %q", uuid)
	}
	device := filepath.Join(o.Dir, "dev/disk/by-partuuid", uuid)
	if _, err := os.Stat(device); err != nil {
		return "", fault.New(fault.NotFound, "mount it at /efi", "the EFI system partition that this machine booted from is not there: %w", err)
	}
	return device, nil
}

// find returns the device of the first partition of a type on the disks of o.Disk,
// "" where there is none.
func (o Options) find(kind string) (string, error) {
	if o.Disk == "" {
		return "", nil
	}
	place, err := blockdev.Find(o.Disk)
	if fault.KindOf(err) == fault.NotFound {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for boot partitions: %w", err)
	}
	disks, err := blockdev.Disks(o.Machine, place.Device)
	if err != nil {
		return "", fmt.Errorf("look for boot partitions: %w", err)
	}
	for _, disk := range disks {
		list, err := blockdev.Partitions(o.Machine, disk)
		if err != nil {
			return "", fmt.Errorf("look for boot partitions on %s: %w", disk, err)
		}
		for _, p := range list {
			if p.Type == kind {
				return p.Device, nil
			}
		}
	}
	return "", nil
}

// OpenExtended opens the extended boot loader partition (XBOOTLDR) on the disks of
// o.Disk, where it is FAT, which is what firmware and loaders read; nil where there
// is none.
func OpenExtended(o Options) (*os.Root, error) {
	device, err := o.extended()
	if device == "" || err != nil {
		return nil, err
	}
	return mount(device, "extended boot loader partition", o.Write)
}

// extended returns its device. Fedora has its ext4 /boot on a partition of this
// type, which is none of ours.
func (o Options) extended() (string, error) {
	device, err := o.find(blockdev.TypeXBOOTLDR)
	if device == "" || err != nil {
		return "", err
	}
	f, err := os.Open(device)
	if err != nil {
		return "", fmt.Errorf("look for boot partitions: %w", err)
	}
	defer f.Close()
	fat, err := blockdev.IsFAT(f)
	if !fat || err != nil {
		return "", err
	}
	return device, nil
}

// Blessable reports whether the partition that has the entries is mounted where
// systemd-bless-boot looks for it: the extended one, where there is one, at /boot.
// Only root can look at disks; for others what is mounted has to be enough.
func Blessable(o Options) bool {
	if device, err := o.extended(); err != nil || device == "" {
		return Mounted(o.Dir, o.AnyFilesystem)
	}
	boot := filepath.Join(o.Dir, "boot")
	mounted, err := isMounted(boot, false)
	if !mounted || err != nil {
		return false
	}
	fat, err := isFAT(boot)
	return fat && err == nil
}

// mount mounts a partition at no place: nobody else sees it, and it is gone with
// the descriptor.
func mount(device, what string, write bool) (_ *os.Root, err error) {
	defer func() {
		if err != nil {
			kind := fault.Conflict
			if fault.KindOf(err) == fault.Denied || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
				kind = fault.Denied
			}
			err = fault.New(kind, "mount it at /efi", "mount the %s %s: %w", what, device, err)
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
	if !write {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(mfd) }()
	return openRoot(fmt.Sprintf("/proc/self/fd/%d", mfd), write)
}
