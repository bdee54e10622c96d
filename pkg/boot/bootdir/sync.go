// Package bootdir works on the boot directory, which boot loaders read: its
// space, what others keep there, and what it takes for a change to be seen by a
// reader who does not replay a journal.
package bootdir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Syncfs makes everything in the file system of root durable. syncfs alone does
// not make the disk below a FAT file system empty its cache; fsync does.
func Syncfs(root *os.Root) error {
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync the file system: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the file system: %w", err)
	}
	return nil
}

// Sync makes the boot file system durable in a way that a reader sees who does
// not replay its journal. sync leaves new directory entries in the journal of
// ext4 and xfs; only a freeze writes them where they belong.
//
// A directory of the running machine's own root file system host, which is nil
// where that machine booted from it, is only synced: nothing boots from there
// as it is, and freezing would stop the machine.
func Sync(boot, host *os.Root, log *slog.Logger) error {
	if err := Syncfs(boot); err != nil {
		return err
	}
	if host != nil {
		if same, err := SameFilesystem(host, boot); err != nil || same {
			return err
		}
	}
	f, err := boot.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return freezeThaw(f, log)
}

// SameFilesystem reports whether two directories can share hardlinks.
func SameFilesystem(a, b *os.Root) (bool, error) {
	x, err := device(a)
	if err != nil {
		return false, err
	}
	y, err := device(b)
	return x == y, err
}

func device(root *os.Root) (uint64, error) {
	f, err := root.Open(".")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: root.Name(), Err: err}
	}
	return st.Dev, nil
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// freezeThaw freezes and thaws a file system. A process that dies in between
// would leave it frozen for good, so a child that no signal of the terminal
// reaches waits for the end of a pipe and thaws. Where there is no program to
// do that, or the file system cannot be frozen, the sync has to be enough.
func freezeThaw(dir *os.File, log *slog.Logger) error {
	thawer, err := exec.LookPath("fsfreeze")
	if err != nil {
		log.Warn("boot file system not frozen: fsfreeze is not installed")
		return nil //nolint:nilerr // the sync has to be enough
	}
	watch := exec.Command("/bin/sh", "-c", `trap "" INT TERM HUP; read -r done || "$0" --unfreeze /proc/self/fd/3; exit 0`, thawer) //nolint:noctx // it has to outlive a cancelled operation
	watch.ExtraFiles = []*os.File{dir}
	watch.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := watch.StdinPipe()
	if err == nil {
		err = watch.Start()
	}
	if err != nil {
		log.Warn("boot file system not frozen", "error", err)
		return nil
	}
	err = freezeThawFd(int(dir.Fd()))
	if err == nil {
		_, _ = pipe.Write([]byte("done\n"))
	}
	// After an error the end of the pipe makes the child thaw.
	_ = pipe.Close()
	_ = watch.Wait()
	return err
}

func freezeThawFd(fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fiFreeze, 0); errno != 0 {
		if errors.Is(errno, unix.EOPNOTSUPP) || errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EPERM) ||
			errors.Is(errno, unix.EBUSY) || errors.Is(errno, unix.ENOTTY) {
			return nil
		}
		return fmt.Errorf("freeze the boot file system: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fiThaw, 0); errno != 0 && !errors.Is(errno, unix.EINVAL) {
		return fmt.Errorf("thaw the boot file system: %w", errno)
	}
	return nil
}
