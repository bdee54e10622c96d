package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/lockfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// lockFile excludes every other kedge. bootc has no lock for its deployments,
// only the repository's own, which Deploy shares: see keepFromGC.
const lockFile = stateDir + "/lock"

// Lock makes this process the sysroot's only writer and loads the deployments
// again. It waits until ctx ends; a ctx that has no deadline is tried once. A
// lock that is not to be had is a Busy error with the holder's process id.
func (s *Sysroot) Lock(ctx context.Context) error {
	if s.lock != nil {
		return nil
	}
	if err := s.root.MkdirAll(stateDir, 0o755); err != nil {
		return fmt.Errorf("lock the sysroot: %w", err)
	}
	f, err := lockfile.Wait(ctx, func() (*os.File, error) { return s.flock(lockFile, os.O_RDWR|os.O_CREATE|unix.O_NOCTTY, unix.LOCK_EX) })
	if err != nil {
		return fmt.Errorf("lock the sysroot: %w", err)
	}
	if f == nil {
		return lockfile.Busy(s.root, lockFile)
	}
	s.lock = f
	return s.Load()
}

// flock returns the locked file, or nil where another process holds it.
func (s *Sysroot) flock(name string, flags, how int) (*os.File, error) {
	f, err := s.root.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
}

// gcWait is how long a collection of garbage by another program is waited for.
const gcWait = 30 * time.Second

// keepFromGC holds the repository's lock as somebody who adds to it, until
// release: bootc's collector takes state directories that no entry names, and
// it waits for this lock.
func (s *Sysroot) keepFromGC(ctx context.Context) error {
	if s.guard != nil {
		return nil
	}
	if _, err := s.root.Stat(repoDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gcWait)
	defer cancel()
	f, err := lockfile.Wait(ctx, func() (*os.File, error) { return s.flock(repoDir, os.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_SH) })
	if err == nil && f == nil {
		err = lockfile.Busy(s.root, repoDir)
	}
	s.guard = f
	return err
}

func (s *Sysroot) release() {
	if s.guard != nil {
		_ = s.guard.Close()
		s.guard = nil
	}
}

// Unlock ends what Lock began.
func (s *Sysroot) Unlock() {
	s.release()
	if s.lock == nil {
		return
	}
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
