package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// unfinishedFile is there while a change is under way. Whoever takes the lock
// and finds it knows that a writer died, and clears up after it: that a sysroot
// looks settled does not say that nothing was left behind.
const unfinishedFile = stateDir + "/unfinished"

// begin announces a change, before anything of it is written. What a writer
// left that died before it could announce one goes here too.
func (s *ostreeStore) begin() error {
	s.swept = false
	if s.begun || s.interrupted {
		return nil
	}
	if err := s.Root().MkdirAll(stateDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", stateDir, err)
	}
	s.begun = true
	if err := s.repo.CleanSides(); err != nil {
		return err
	}
	f, err := s.Root().OpenFile(unfinishedFile, os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("announce the change: %w", err)
	}
	return atomicfile.SyncDir(s.Root(), stateDir)
}

// recover removes what a writer that died left, except for fetched layers,
// which spare the next import some work.
func (s *ostreeStore) recover(ctx context.Context) error {
	if _, err := s.Root().Stat(unfinishedFile); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	s.interrupted = true
	s.cfg.Log.Info("the last change was interrupted; removing what it left")
	if err := s.repo.CleanSides(); err != nil {
		return err
	}
	_, err := s.sweep(ctx, sweepOptions{prune: true})
	return err
}

// Settle implements store: it gives back the layers too that an interrupted
// change left.
func (s *ostreeStore) Settle(ctx context.Context) error {
	if !s.interrupted {
		return nil
	}
	return s.dropStaged(ctx)
}

// finish takes back the announcement once nothing is left over. A change that
// failed is undone here, so far as it has left anything.
func (s *ostreeStore) finish() {
	if !s.begun && !s.interrupted {
		return
	}
	ctx := context.Background()
	if !s.swept {
		if err := s.sysroot.Cleanup(ctx); err != nil {
			s.cfg.Log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
			return
		}
	}
	if err := s.Root().Remove(unfinishedFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("left-overs are looked for again next time", "error", err)
		return
	}
	s.begun, s.interrupted, s.swept = false, false, false
}

// abandon removes what a change that failed has brought, image and layers too,
// unless running the command again may well succeed with them.
func (s *ostreeStore) abandon(ctx context.Context, failure error) {
	switch fault.KindOf(failure) {
	case fault.Interrupted, fault.Unavailable, fault.Busy:
		return
	}
	ctx = context.WithoutCancel(ctx)
	if _, err := s.sweep(ctx, sweepOptions{prune: true, staged: true}); err != nil {
		s.cfg.Log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
	}
}
