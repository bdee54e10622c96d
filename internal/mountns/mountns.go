// Package mountns gives a process mounts of its own, so that file systems that
// the machine keeps read-only can be written by it alone: what it remounts is
// writable in its namespace and read-only as before for everybody else.
package mountns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Marker is the environment variable in which Enter leaves the namespace it
// made, for machines where process 1 is not to be looked at (containers).
const Marker = "KEDGE_MOUNT_NAMESPACE"

// Private reports whether the process has another mount namespace than process
// 1 of the machine.
func Private() (bool, error) {
	self, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil || os.Getenv(Marker) == self {
		return err == nil, err
	}
	one, err := os.Readlink("/proc/1/ns/mnt")
	if errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	return err == nil && one != self, err
}

// Enter makes sure that the process has a mount namespace of its own, in which
// mounts of the machine still appear. A namespace belongs to a thread and a Go
// program has many, so the program is executed again in the new one: Enter
// returns at once where nothing is to do and never where it is. It is to be
// called before the program has done anything.
//
// Without root it does nothing: such a process cannot remount anything.
func Enter() error {
	if os.Geteuid() != 0 {
		return nil
	}
	private, err := Private()
	if err != nil || private {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a private mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	self, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	env := append(os.Environ(), Marker+"="+self)
	err = syscall.Exec("/proc/self/exe", os.Args, env)
	return fmt.Errorf("start again in a private mount namespace: %w", err)
}

// Writable makes the file system mounted at path writable for this process. It
// refuses in the machine's own namespace; a path that is writable, or not
// there, is fine everywhere.
func Writable(path string) error {
	ro, err := readOnly(path)
	if err != nil || !ro {
		return err
	}
	private, err := Private()
	if err != nil {
		return err
	}
	if !private {
		return fault.New(fault.Denied, "run as root", "%s is mounted read-only", path)
	}
	// Most often only this mount is read-only; where the file system itself is,
	// it has to change too, and the other mounts of it keep their own flag.
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		return fault.New(fault.Denied, "", "remount %s writable: %w", path, err)
	}
	if ro, err = readOnly(path); err != nil || !ro {
		return err
	}
	if err := unix.Mount("", path, "", unix.MS_REMOUNT, ""); err != nil {
		return fault.New(fault.Denied, "", "remount %s writable: %w", path, err)
	}
	return nil
}

func readOnly(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}
