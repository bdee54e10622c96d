package imageroot

import (
	"context"
	"fmt"

	"github.com/kedge-os/kedge/pkg/fault"
)

// StageRequest is what a staged deployment is made from.
type StageRequest struct {
	DeployRequest
	// RetainAll keeps every deployment when this one becomes the default.
	RetainAll bool
	// Hold keeps it from being finalised until SetHold(false).
	Hold bool
}

// Stage makes a deployment on the booted sysroot that becomes the default at
// shutdown: state directory, kernel and a first merge of /etc are done now and
// made durable, so that Finalize has little left to do. One that was staged
// before is replaced. /etc conflicts that cannot be merged are refused here.
//
// The commit point is the rename of bootc's marker in /run. The marker is
// written locked and loader/entries.staged beside it, so that bootc shows and
// keeps the deployment but never finalises it.
func (s *Sysroot) Stage(ctx context.Context, r StageRequest) (*Deployment, error) {
	if err := s.requireLock("stage"); err != nil {
		return nil, err
	}
	if err := s.stage(ctx, r); err != nil {
		return nil, fmt.Errorf("stage %.12s: %w", r.Digest, err)
	}
	s.release()
	if err := s.bumpMtime(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	if err := s.Load(); err != nil {
		return nil, err
	}
	return s.Staged(), nil
}

func (s *Sysroot) stage(ctx context.Context, r StageRequest) error {
	if _, err := s.requireBooted("stage a deployment"); err != nil {
		return err
	}
	if start := s.opts.StartFinalizer; start != nil {
		if err := start(ctx); err != nil {
			return err
		}
	}
	before := s.Staged()
	images := s.newImages(ctx)
	d, err := s.deploy(ctx, images, r.DeployRequest)
	if err != nil {
		return err
	}
	list, err := s.fitting(images, d, Retention{Merge: r.Merge, All: r.RetainAll})
	if err != nil {
		return err
	}
	if err := s.makeRoom(images, list); err != nil {
		return err
	}
	if err := s.placeKernels(ctx, images, []*Deployment{d}); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := s.fillEntries(stagedDir, list); err != nil {
		return err
	}
	if err := s.syncfs(s.boot); err != nil {
		return err
	}
	if err := s.syncfs(s.root); err != nil {
		return err
	}
	if err := s.writeMarker(markerOf(d, r)); err != nil {
		return err
	}
	if before != nil && !before.sameState(d) {
		if err := s.removeState(before); err != nil {
			s.log.Warn("after the commit", "error", err)
		}
	}
	return nil
}

func markerOf(d *Deployment, r StageRequest) *marker {
	m := &marker{Digest: d.Digest, Locked: true, Kedge: &markerKedge{
		Entry: string(d.Entry.EncodeIn(entryOrder)), Began: d.merging.UnixNano(),
		Pending: d.pending, Retain: r.RetainAll, Hold: r.Hold,
	}}
	if r.Merge != nil {
		m.Kedge.Merge = r.Merge.Digest
	}
	return m
}

// SetHold holds the staged deployment back from finalisation, or lets it go.
func (s *Sysroot) SetHold(hold bool) error {
	if err := s.requireLock("hold the staged deployment"); err != nil {
		return err
	}
	d := s.Staged()
	m, err := s.readMarker()
	if err != nil {
		return err
	}
	if d == nil || m == nil || m.Kedge == nil {
		return fault.New(fault.NotFound, "", "kedge has staged no deployment")
	}
	m.Kedge.Hold = hold
	if err := s.writeMarker(m); err != nil {
		return err
	}
	d.Held = hold
	return s.bumpMtime()
}
