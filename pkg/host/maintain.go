package host

import (
	"context"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// CleanupOptions say what Cleanup removes beside left-overs and what the policy
// lets go.
type CleanupOptions struct {
	Rollback bool // the deployment that a rollback would lead to
	Staged   bool // the staged deployment
	// DryRun says what would be removed and writes nothing.
	DryRun bool
}

// Cleanup removes what nothing needs. The booted deployment, the next one and
// pinned ones stay, and what the policy of retention keeps.
func (h *Host) Cleanup(ctx context.Context, o CleanupOptions) (*v1.Cleanup, error) {
	r, err := h.cleanup(ctx, o)
	return r, wrap("cleanup", err)
}

func (h *Host) cleanup(ctx context.Context, o CleanupOptions) (*v1.Cleanup, error) {
	if o.DryRun {
		list, err := h.store.Deployments()
		if err != nil {
			return nil, err
		}
		return h.planCleanup(list, h.keeper(ctx, list), o)
	}
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	k := h.keeper(ctx, list)
	gone, err := cleanupList(list, k, o)
	if err != nil {
		return nil, err
	}
	if err := h.remove(ctx, gone...); err != nil {
		return nil, err
	}
	s, err := h.store.SweepAll(ctx)
	if err != nil {
		return nil, err
	}
	more, t, err := h.relieve(ctx, k)
	if err != nil {
		return nil, err
	}
	if list, err = h.store.Deployments(); err == nil {
		err = h.sweepPackages(list)
	}
	if err != nil {
		return nil, err
	}
	out := &v1.Cleanup{Deployments: []string{}, Objects: s.objects + t.objects, Bytes: s.bytes + t.bytes, Warnings: k.warnings()}
	for _, g := range append(gone, more...) {
		out.Deployments = append(out.Deployments, g.d.id)
		out.Removed = append(out.Removed, g.removed(false))
	}
	h.publish(ctx)
	return out, nil
}

// cleanupList returns the deployments that a clean-up removes.
func cleanupList(list deployments, k *keeper, o CleanupOptions) (gone []goodbye, err error) {
	if d := list.staged(); o.Staged && d != nil {
		gone = append(gone, goodbye{d, "kedge cleanup --staged"})
	}
	if d := list.rollback(); o.Rollback && d != nil {
		if d.pinned {
			return nil, fault.New(fault.Conflict, "kedge unpin lets it go", "the deployment %s is pinned", d.id)
		}
		gone = append(gone, goodbye{d, "kedge cleanup --rollback"})
	}
	return append(gone, k.gone(list)...), nil
}

// planCleanup says what a clean-up would remove.
func (h *Host) planCleanup(list deployments, k *keeper, o CleanupOptions) (*v1.Cleanup, error) {
	gone, err := cleanupList(list, k, o)
	if err != nil {
		return nil, err
	}
	out := &v1.Cleanup{Deployments: []string{}, DryRun: true, Warnings: k.warnings()}
	for _, g := range gone {
		out.Deployments = append(out.Deployments, g.d.id)
		out.Removed = append(out.Removed, g.removed(false))
		list = slices.DeleteFunc(slices.Clone(list), func(d *deployment) bool { return d == g.d })
	}
	what, _, err := k.shortage()
	if err != nil || what == "" {
		return out, err
	}
	for _, d := range k.spare(list) {
		out.Removed = append(out.Removed, goodbye{d, lowOn(what)}.removed(true))
	}
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
