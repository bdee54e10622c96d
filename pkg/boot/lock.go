package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// lockFile is libostree's: an open file description lock on it excludes every
// other writer. A writer removes the file when it is done, while it still
// holds the lock.
const lockFile = "ostree/lock"

// lockPoll is how often a held lock is tried again; the kernel can wait for
// such a lock, but not until a context ends.
const lockPoll = 50 * time.Millisecond

// Lock makes this process the sysroot's only writer and loads the deployments
// again. It waits until ctx ends; a ctx that has no deadline is tried once. A
// lock that is not to be had is a Busy error with the holder's process id.
func (s *Sysroot) Lock(ctx context.Context) error {
	if s.lock != nil {
		return nil
	}
	_, wait := ctx.Deadline()
	for {
		f, err := s.tryLock()
		if err != nil {
			return fmt.Errorf("lock the sysroot: %w", err)
		}
		if f != nil {
			s.lock = f
			return s.Load()
		}
		if wait {
			select {
			case <-ctx.Done():
			case <-time.After(lockPoll):
				continue
			}
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		return s.busy()
	}
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

func (s *Sysroot) busy() error {
	const hint = "wait until it has finished, and run the command again"
	if pid, name := s.holder(); pid != 0 {
		return fault.New(fault.Busy, hint, "lock the sysroot: process %d (%s) is changing it", pid, name)
	}
	return fault.New(fault.Busy, hint, "lock the sysroot: another process is changing it")
}

// holder finds the process that holds the lock. The kernel does not tell for
// such locks, so the processes' open files are looked through; 0 where it is
// not to be seen.
func (s *Sysroot) holder() (pid int, name string) {
	there, err := s.root.Stat(lockFile)
	if err != nil {
		return 0, ""
	}
	const proc = "/proc"
	processes, err := os.ReadDir(proc)
	if err != nil {
		return 0, ""
	}
	for _, p := range processes {
		n, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, p.Name())
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			st, err := os.Stat(filepath.Join(dir, "fd", fd.Name()))
			if err != nil || !os.SameFile(st, there) {
				continue
			}
			info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
			if err == nil && strings.Contains(string(info), "lock:") {
				comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
				return n, strings.TrimSpace(string(comm))
			}
		}
	}
	return 0, ""
}
