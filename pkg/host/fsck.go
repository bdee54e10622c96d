package host

import (
	"context"
	"errors"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// FsckOptions are what Fsck can be told.
type FsckOptions struct {
	// Repair fetches what is damaged again, from where the deployments' images
	// came.
	Repair bool
}

// fetchFunc opens the image that a deployment was made from, the very digest.
type fetchFunc func(ctx context.Context, d *deployment) (*ocibridge.Source, error)

// repairFunc puts back what a check found damaged. An error tells what could not
// be; what could, is.
type repairFunc func(ctx context.Context, list deployments, fetch fetchFunc) error

// Fsck checks every object and every deployment. Problems are in the result;
// an error means that the check itself was not possible.
func (h *Host) Fsck(ctx context.Context, o FsckOptions) (*v1.Check, error) {
	check := h.fsck
	if o.Repair {
		check = h.repair
	}
	c, err := check(ctx)
	return c, wrap("fsck", err)
}

func (h *Host) fsck(ctx context.Context) (*v1.Check, error) {
	c, repair, err := h.store.Fsck(ctx)
	if err == nil {
		c.Repairable = repair != nil
	}
	return c, err
}

// repair checks, repairs and checks again: only what the second check does not
// find any more is said to be repaired.
func (h *Host) repair(ctx context.Context) (*v1.Check, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	before, repair, err := h.store.Fsck(ctx)
	if err != nil || repair == nil {
		return before, err
	}
	h.cfg.Progress.Step(v1.TaskImporting, "Fetching what is damaged")
	failed := repair(ctx, list, h.fetchAgain)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	after, _, err := h.store.Fsck(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range before.Problems {
		if !slices.Contains(after.Problems, p) {
			after.Repaired = append(after.Repaired, p)
		}
	}
	if failed != nil && len(after.Problems) > 0 {
		after.Problems = append(after.Problems, "not everything could be repaired: "+failed.Error())
	}
	if len(after.Repaired) > 0 {
		e := v1.HistoryEntry{Verb: "fsck", Result: "done", Detail: "repaired"}
		if d := list.current(); d != nil {
			e.ID = d.id
		}
		h.record(e)
	}
	h.publish(ctx)
	return after, nil
}

// restoreKernels puts the kernels of deployments back.
func restoreKernels[D any](ctx context.Context, restore func(context.Context, D) error, list []D) error {
	var failed []error
	for _, d := range list {
		failed = append(failed, restore(ctx, d))
	}
	return errors.Join(failed...)
}

// fetchAgain implements fetchFunc: by digest from a registry; from elsewhere if
// the image there is still the same.
func (h *Host) fetchAgain(ctx context.Context, d *deployment) (*ocibridge.Source, error) {
	if d.manifest == "" || d.origin.ref == nil {
		return nil, fault.New(fault.NotFound, "", "the deployment %s was made from no image that is known", d.id)
	}
	if d.imageDigest() != d.manifest {
		return h.fetchPackages(ctx, d)
	}
	ref := *d.origin.ref
	if ref.Transport == ocibridge.Registry {
		var err error
		if ref, err = ref.WithDigest(d.manifest); err != nil {
			return nil, err
		}
	}
	src, err := ocibridge.Open(ctx, ref, h.cfg.Images)
	if err != nil {
		return nil, err
	}
	if src.ManifestDigest != d.manifest {
		h.cfg.closeQuietly(src)
		return nil, fault.New(fault.NotFound, "", "%s is another image now than %s, of which deployment %s was made", ref, d.manifest, d.id)
	}
	return src, nil
}
