package host

import (
	"context"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// CleanupOptions say what Cleanup removes beside left-overs.
type CleanupOptions struct {
	Rollback bool // the deployment that a rollback would lead to
	Staged   bool // the staged deployment
}

// Cleanup removes what nothing needs. The booted deployment, the next one and
// pinned ones stay.
func (h *Host) Cleanup(ctx context.Context, o CleanupOptions) (*v1.Cleanup, error) {
	r, err := h.cleanup(ctx, o)
	return r, wrap("cleanup", err)
}

func (h *Host) cleanup(ctx context.Context, o CleanupOptions) (*v1.Cleanup, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var gone deployments
	if d := list.staged(); o.Staged && d != nil {
		gone = append(gone, d)
	}
	if d := list.rollback(); o.Rollback && d != nil {
		if d.pinned {
			return nil, fault.New(fault.Conflict, "kedge unpin lets it go", "the deployment %s is pinned", d.id)
		}
		gone = append(gone, d)
	}
	out := &v1.Cleanup{Deployments: []string{}}
	if len(gone) > 0 {
		if err := h.store.Remove(ctx, gone...); err != nil {
			return nil, err
		}
		for _, d := range gone {
			out.Deployments = append(out.Deployments, d.id)
			h.record(v1.HistoryEntry{Verb: "cleanup", Result: "done", ID: d.id, Image: d.origin.text, Detail: "removed"})
		}
	}
	s, err := h.store.SweepAll(ctx)
	if err != nil {
		return nil, err
	}
	if list, err = h.store.Deployments(); err == nil {
		err = h.sweepPackages(list)
	}
	if err != nil {
		return nil, err
	}
	out.Objects, out.Bytes = s.objects, s.bytes
	h.publish(ctx)
	return out, nil
}

// Pin keeps the deployment at an index until it is unpinned.
func (h *Host) Pin(ctx context.Context, index int, pinned bool) (*v1.Result, error) {
	verb := map[bool]string{true: "pin", false: "unpin"}[pinned]
	r, err := h.pin(ctx, verb, index, pinned)
	return r, wrap(verb, err)
}

func (h *Host) pin(ctx context.Context, verb string, index int, pinned bool) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := list.at(index)
	if err != nil {
		return nil, err
	}
	r := &v1.Result{Operation: verb, ID: d.id, Image: d.status(), Changed: d.pinned != pinned}
	if !r.Changed {
		return r, nil
	}
	if err := h.store.SetPinned(d, pinned); err != nil {
		return nil, err
	}
	h.record(historyOf(verb, d))
	h.publish(ctx)
	return r, nil
}

// Images lists the images in the store.
func (h *Host) Images(context.Context) ([]v1.StoredImage, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, wrap("image list", err)
	}
	images, err := h.store.Images(list)
	if err == nil {
		images, err = h.withPackageImages(images, list)
	}
	return images, wrap("image list", err)
}
