package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/stamp"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Finalized says what a finalisation did.
type Finalized struct {
	Deployment *Deployment // nil: there was nothing to do
	Etc        etcmerge.Stats
}

// Finalize makes the deployment that kedge staged the default: it merges /etc
// again, now with what changed since the staging, and writes the list. Kernels
// are there already; of /etc only what changed is written. What others staged,
// or is held, is left alone. A mirror of /boot is brought up to date in any case.
//
// The commit point is Write's. Before it, a failure keeps the old default and
// leaves a stamp that Failure reads, also after the reboot.
func (s *Sysroot) Finalize(ctx context.Context) (Finalized, error) {
	if err := s.requireLock("finalize"); err != nil {
		return Finalized{}, err
	}
	d := s.Staged()
	switch {
	case d == nil:
		s.log.Info("nothing is staged")
	case !d.Ours:
		s.log.Info("the staged deployment is not kedge's to finalize", "deployment", d.Name())
	case d.Held:
		s.log.Info("the staged deployment is held", "deployment", d.Name())
	}
	if d == nil || !d.Ours || d.Held {
		// What ostree changed since the boot has to be in the loader's menu.
		return Finalized{}, s.mirror(ctx)
	}
	result, err := s.finalize(ctx, d)
	if err != nil {
		err = fmt.Errorf("finalize %s: %w", d.Name(), err)
		if serr := stamp.Write(s.root, failureFile, Failure{Time: s.opts.Clock(), Deployment: d.Name(), Message: err.Error()}); serr != nil {
			s.log.Error("the stamp of the failure was not written", "error", serr)
		}
		return Finalized{}, err
	}
	if err := s.ClearFailure(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	return result, nil
}

func (s *Sysroot) finalize(ctx context.Context, staged *Deployment) (Finalized, error) {
	marker, err := s.readMarker()
	if err != nil {
		return Finalized{}, err
	}
	merge := s.markerMerge(marker)
	if _, named := marker.Get(mergeKey); named && merge == nil {
		return Finalized{}, fault.New(fault.Conflict, "stage the deployment again", "the deployment whose /etc it continues is not in the list any more")
	}
	stats, err := s.finishEtc(ctx, staged, merge, stagedAt(marker))
	if err != nil {
		return Finalized{}, err
	}
	if err := s.markUpdated(staged); err != nil {
		return Finalized{}, err
	}
	fresh := *staged
	fresh.Staged = false
	retain, _ := marker.Bool(retainKey)
	if err := s.Write(ctx, s.With(&fresh, Retention{Merge: merge, All: retain})); err != nil {
		return Finalized{}, err
	}
	return Finalized{Deployment: s.first(fresh.same), Etc: stats}, nil
}

// stagedAt is the time at which the first merge of /etc began.
func stagedAt(marker object.Dict) time.Time {
	ns, ok := marker.Uint64(kedgeKey)
	if !ok {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}

// finishEtc brings the staged /etc up to date.
func (s *Sysroot) finishEtc(ctx context.Context, staged, merge *Deployment, since time.Time) (etcmerge.Stats, error) {
	root, err := s.root.OpenRoot(staged.Dir())
	if err != nil {
		return etcmerge.Stats{}, err
	}
	defer root.Close()
	lab, err := labels(root)
	if err != nil {
		return etcmerge.Stats{}, err
	}
	changes, stats, err := s.mergeEtc(ctx, root, merge, etcmerge.WriteOptions{Labels: lab, Since: since})
	if err != nil {
		return stats, err
	}
	if err := s.refreshPolicy(ctx, root, changes); err != nil {
		return stats, err
	}
	if err := root.Remove("etc/.updated"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stats, err
	}
	return stats, nil
}

// markUpdated removes the stamp of /var, so that what systemd runs once after
// an update of /usr runs (ConditionNeedsUpdate=). The booted stateroot's /var
// is the mounted one, which may be a file system of its own.
func (s *Sysroot) markUpdated(d *Deployment) error {
	root, name := s.root, path.Join("ostree/deploy", d.Stateroot, "var/.updated")
	if b := s.Booted(); b != nil && b.Stateroot == d.Stateroot {
		root, name = s.host, "var/.updated"
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Failure is a finalisation that failed; Deployment is CHECKSUM.SERIAL.
type Failure = stamp.Failure

// failureFile lives in kedge's own state: libostree removes its own stamp at
// the next boot, and status has to show this until it is settled.
const failureFile = "ostree/kedge/finalize-failure"

// Failure returns the last finalisation that failed and has not been made good
// by another one or ClearFailure; nil where there is none.
func (s *Sysroot) Failure() (*Failure, error) { return stamp.Read(s.root, failureFile) }

// ClearFailure forgets a failed finalisation.
func (s *Sysroot) ClearFailure() error { return stamp.Clear(s.root, failureFile) }
