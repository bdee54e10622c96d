package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/lockfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// lockFile is libostree's: an open file description lock on it excludes every
// other writer. A writer removes the file when it is done, while it still
// holds the lock.
const lockFile = "ostree/lock"

// Lock makes this process the sysroot's only writer and loads the deployments
// again. It waits until ctx ends; a ctx that has no deadline is tried once. A
// lock that is not to be had is a Busy error with the holder's process id.
func (s *Sysroot) Lock(ctx context.Context) error {
	if s.lock != nil {
		return nil
	}
	f, err := lockfile.Wait(ctx, s.tryLock)
	if err != nil {
		return fmt.Errorf("lock the sysroot: %w", err)
	}
	if f == nil {
		return lockfile.Busy(s.root, lockFile)
	}
	s.lock = f
	return s.Load()
}

// tryLock returns the locked file, or nil where another process holds it.
func (s *Sysroot) tryLock() (*os.File, error) {
	for {
		f, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE|unix.O_NOCTTY, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, f.Close()
		}
		if err != nil {
			_ = f.Close()
			return nil, &fs.PathError{Op: "lock", Path: lockFile, Err: err}
		}
		// Between the open and the lock the former holder may have removed the
		// file: then the lock is on a file that nobody else sees.
		mine, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		if there, err := s.root.Lstat(lockFile); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		_ = f.Close()
	}
}

// Unlock ends what Lock began.
func (s *Sysroot) Unlock() {
	if s.lock == nil {
		return
	}
	_ = s.root.Remove(lockFile)
	_ = s.lock.Close()
	s.lock = nil
}

// requireLock guards every function that writes.
func (s *Sysroot) requireLock(what string) error {
	if s.lock == nil {
		return fault.New(fault.Internal, "", "%s: the sysroot is not locked", what)
	}
	return nil
}
