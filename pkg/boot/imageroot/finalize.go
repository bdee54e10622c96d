package imageroot

import (
	"context"
	"fmt"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/stamp"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Finalized says what a finalisation did.
type Finalized struct {
	Deployment *Deployment // nil: there was nothing to do
	Etc        etcmerge.Stats
}

// Finalize makes the deployment that kedge staged the default: it merges /etc
// again, now with what changed since the staging, and writes the list. Kernels
// are there already; of /etc only what changed is written. What others staged,
// or is held, is left alone.
//
// The commit point is Write's. Before it, a failure keeps the old default and
// leaves a stamp that Failure reads, also after the reboot.
func (s *Sysroot) Finalize(ctx context.Context) (Finalized, error) {
	if err := s.requireLock("finalize"); err != nil {
		return Finalized{}, err
	}
	d := s.Staged()
	m, err := s.readMarker()
	if err != nil {
		return Finalized{}, err
	}
	switch {
	case d == nil || m == nil:
		s.log.Info("nothing is staged")
		return Finalized{}, nil
	case !d.Ours || m.Kedge == nil:
		s.log.Info("the staged deployment is not kedge's to finalize", "deployment", d.Name())
		return Finalized{}, nil
	case d.Held:
		s.log.Info("the staged deployment is held", "deployment", d.Name())
		return Finalized{}, nil
	}
	result, err := s.finalize(ctx, d, m.Kedge)
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

func (s *Sysroot) finalize(ctx context.Context, staged *Deployment, m *markerKedge) (Finalized, error) {
	merge := s.first(func(d *Deployment) bool { return !d.Staged && d.Digest == m.Merge })
	if b := s.Booted(); b.sameState(merge) {
		merge = b
	}
	if m.Merge != "" && merge == nil {
		return Finalized{}, fault.New(fault.Conflict, "stage the deployment again", "the deployment whose /etc it continues is not in the list any more")
	}
	var stats etcmerge.Stats
	if !staged.pending || !staged.sameState(merge) {
		o := etcmerge.WriteOptions{Since: time.Unix(0, m.Began)}
		var err error
		if _, stats, err = s.mergeEtc(ctx, s.newImages(ctx), staged, merge, o); err != nil {
			return Finalized{}, err
		}
	}
	if err := s.markUpdated(); err != nil {
		return Finalized{}, err
	}
	fresh := *staged
	fresh.Staged = false
	if err := s.Write(ctx, s.With(&fresh, Retention{Merge: merge, All: m.Retain})); err != nil {
		return Finalized{}, err
	}
	return Finalized{Deployment: s.first(fresh.same), Etc: stats}, nil
}

// Failure is a finalisation that failed; Deployment is its name.
type Failure = stamp.Failure

const failureFile = stateDir + "/finalize-failure"

// Failure returns the last finalisation that failed and has not been made good
// by another one or ClearFailure; nil where there is none.
func (s *Sysroot) Failure() (*Failure, error) { return stamp.Read(s.root, failureFile) }

// ClearFailure forgets a failed finalisation.
func (s *Sysroot) ClearFailure() error { return stamp.Clear(s.root, failureFile) }
