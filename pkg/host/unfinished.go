package host

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// announcement is a file in a store's StateDir that is there while a change is
// under way. Whoever takes the lock and finds it knows that a writer died, and
// clears up after it: that a sysroot looks settled does not say that nothing was
// left behind.
type announcement struct {
	dir string // the StateDir
	log *slog.Logger

	begun       bool // this process has announced a change
	interrupted bool // a writer that died had announced one
	swept       bool // nothing is left over of it
}

const unfinishedFile = "unfinished"

// begin announces a change, before anything of it is written. What a writer
// left that died before it could announce one goes by clean.
func (a *announcement) begin(root *os.Root, clean func() error) error {
	a.swept = false
	if a.begun || a.interrupted {
		return nil
	}
	if err := root.MkdirAll(a.dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", a.dir, err)
	}
	a.begun = true
	if err := clean(); err != nil {
		return err
	}
	f, err := root.OpenFile(path.Join(a.dir, unfinishedFile), os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("announce the change: %w", err)
	}
	return atomicfile.SyncDir(root, a.dir)
}

// look reports whether a writer died.
func (a *announcement) look(root *os.Root) (bool, error) {
	_, err := root.Stat(path.Join(a.dir, unfinishedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	a.interrupted = true
	a.log.Info("the last change was interrupted; removing what it left")
	return true, nil
}

// finish takes back the announcement once nothing is left over. A change that
// failed is undone here by clean, so far as it has left anything.
func (a *announcement) finish(root *os.Root, clean func() error) {
	if !a.begun && !a.interrupted {
		return
	}
	if !a.swept {
		if err := clean(); err != nil {
			a.log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
			return
		}
	}
	if err := root.Remove(path.Join(a.dir, unfinishedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("left-overs are looked for again next time", "error", err)
		return
	}
	a.begun, a.interrupted, a.swept = false, false, false
}

// mayContinue reports whether running a command again may well succeed with what
// it has brought so far, so that this is worth keeping.
func mayContinue(failure error) bool {
	switch fault.KindOf(failure) {
	case fault.Interrupted, fault.Unavailable, fault.Busy:
		return true
	}
	return false
}
