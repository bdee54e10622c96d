package ostree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// lockPoll is how often a lock that another process holds is tried again;
// F_OFD_SETLKW would sleep in the kernel where no context reaches it.
const lockPoll = 50 * time.Millisecond

// tryLock takes an open file description lock, as libostree does, or reports
// that somebody else holds it. It ends with the descriptor.
func tryLock(f *os.File, exclusive bool) (bool, error) {
	fl := unix.Flock_t{Type: unix.F_RDLCK, Whence: 0}
	if exclusive {
		fl.Type = unix.F_WRLCK
	}
	err := retry(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &fl) })
	if errors.Is(err, unix.EINVAL) {
		how := unix.LOCK_SH
		if exclusive {
			how = unix.LOCK_EX
		}
		err = retry(func() error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) })
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return false, nil
	}
	return false, fmt.Errorf("lock %s: %w", f.Name(), err)
}

// lock takes the repository's lock, shared or exclusive, and waits for it as
// long as core.lock-timeout-secs says. Closing the file releases it; nil means
// that core.locking is off, or that a shared lock was asked for where nobody
// can write.
func (r *Repo) lock(ctx context.Context, exclusive bool) (*os.File, error) {
	if !r.config.Bool("core", "locking", true) {
		return nil, nil
	}
	f, err := openAt(r.dir, ".lock", unix.O_RDWR|unix.O_CREAT, 0o660)
	if !exclusive && (errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock the ostree repository %s: %w", r.path, err)
	}
	if err := r.waitLock(ctx, f, exclusive); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (r *Repo) waitLock(ctx context.Context, f *os.File, exclusive bool) error {
	if secs := r.config.Int("core", "lock-timeout-secs", 300); secs >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(secs)*time.Second, fault.New(fault.Busy,
			"another process writes to it; wait for it and run the command again",
			"lock the ostree repository %s: no lock within %d seconds", r.path, secs))
		defer cancel()
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		ok, err := tryLock(f, exclusive)
		if err != nil {
			return fmt.Errorf("lock the ostree repository %s: %w", r.path, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
