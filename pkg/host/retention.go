package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/retention"
	"github.com/kedge-os/kedge/pkg/boot/source"
)

// keeper decides which deployments of a host stay, by its policy.
type keeper struct {
	retention.Policy
	h    *Host
	used map[string]time.Time
	// problem is what is wrong with the policy's files; then all stay.
	problem error
}

func (h *Host) keeper(ctx context.Context, list deployments) *keeper {
	k := &keeper{h: h}
	if k.Policy, k.problem = h.policy(ctx, list); k.problem != nil {
		h.cfg.Log.Warn("what the retention policy means is not known, and no deployment is removed by it", "error", k.problem)
	}
	entries, err := h.readHistory()
	if err != nil {
		h.cfg.Log.Warn("when deployments were used is not known", "error", err)
	}
	k.used = lastUses(entries)
	return k
}

// policy reads the policy of the machine that runs, else of the deployment that
// would.
func (h *Host) policy(ctx context.Context, list deployments) (retention.Policy, error) {
	d := list.current()
	switch {
	case h.Booted():
		return retention.Load(h.readMachine)
	case d == nil:
		return retention.Default(), nil
	}
	return retention.Load(func(name string) ([]byte, error) { return h.readDeployed(ctx, d, name) })
}

// warnings tell what is wrong with the policy's files.
func (k *keeper) warnings() []string { return policyWarnings(k.problem) }

func policyWarnings(problem error) []string {
	if problem == nil {
		return nil
	}
	return []string{fmt.Sprintf("no deployment is removed by itself until the retention policy is corrected: %v", problem)}
}

// readMachine reads a small file of the running machine.
func (h *Host) readMachine(name string) ([]byte, error) {
	root, err := os.OpenRoot(h.cfg.Machine)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readPolicy(f)
}

// readDeployed reads a small file of a deployment that does not run.
func (h *Host) readDeployed(ctx context.Context, d *deployment, name string) ([]byte, error) {
	if dir, ok := cutEtc(name); ok {
		etc, err := h.store.OpenEtc(ctx, d)
		if err != nil {
			return nil, err
		}
		defer etc.Close()
		sub, err := etc.Sub(path.Dir(dir))
		if err != nil {
			return nil, err
		}
		defer sub.Close()
		return readFrom(sub, path.Base(dir))
	}
	if there, err := h.store.Exists(d.root, name); err != nil || !there {
		return nil, errors.Join(err, fs.ErrNotExist)
	}
	image, err := h.imageFiles(ctx, d.root)
	if err != nil {
		return nil, err
	}
	dir, err := image.Dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return readFrom(dir, path.Base(name))
}

func cutEtc(name string) (string, bool) {
	rest, err := filepath.Rel("etc", name)
	return rest, err == nil && filepath.IsLocal(rest)
}

func readFrom(dir source.Dir, name string) ([]byte, error) {
	r, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readPolicy(r)
}

func readPolicy(r io.Reader) ([]byte, error) {
	return io.ReadAll(io.LimitReader(r, retention.MaxFile+1))
}

// candidates are deployments as a policy sees them.
func (k *keeper) candidates(list deployments) []retention.Deployment {
	records := k.h.records()
	out := make([]retention.Deployment, len(list))
	for i, d := range list {
		used, recorded := k.used[d.id]
		if !recorded {
			used = d.made
		}
		v := records.Verdict(identity(d))
		out[i] = retention.Deployment{
			Stateroot: d.stateroot, Booted: d.booted && !d.staged, Staged: d.staged, Pinned: d.pinned,
			Good: v != nil && v.State == v1.HealthGood, Used: used, Kernel: d.kernel,
		}
	}
	return out
}

// fates decides on a list as it is.
func (k *keeper) fates(list deployments) ([]retention.Deployment, []retention.Fate) {
	c := k.candidates(list)
	return c, k.Decide(c, k.h.cfg.Clock())
}

// gone returns those of a list that the policy lets go, and why.
func (k *keeper) gone(list deployments) (out []goodbye) {
	_, fates := k.fates(list)
	for i, f := range fates {
		if f.Gone != "" {
			out = append(out, goodbye{list[i], f.Gone})
		}
	}
	return out
}

// behind returns which of a list stay when a deployment in the stateroot becomes
// the default, beside those that the store keeps anyway, and those that go.
func (k *keeper) behind(list deployments, stateroot string) (stay deployments, gone []goodbye) {
	list = slices.DeleteFunc(slices.Clone(list), func(d *deployment) bool { return d.staged })
	next := append(deployments{{stateroot: stateroot}}, list...)
	_, fates := k.fates(next)
	for i, d := range list {
		switch f := fates[i+1]; {
		case f.Gone != "":
			gone = append(gone, goodbye{d, f.Gone})
		case !d.pinned: // of those the store knows more
			stay = append(stay, d)
		}
	}
	return stay, gone
}

// spare returns the deployments that are given up where room is short, the first
// to go first.
func (k *keeper) spare(list deployments) (out deployments) {
	c, fates := k.fates(list)
	list = slices.Clone(list)
	for {
		i := retention.Oldest(c, fates, false)
		if i < 0 {
			return out
		}
		out = append(out, list[i])
		list, c, fates = slices.Delete(list, i, i+1), slices.Delete(c, i, i+1), slices.Delete(fates, i, i+1)
	}
}

// goodbye is a deployment that goes.
type goodbye struct {
	d   *deployment
	why string
}

func (g goodbye) removed(ifNeeded bool) v1.RemovedDeployment {
	r := v1.RemovedDeployment{ID: g.d.id, Image: g.d.origin.text, Reason: g.why, IfNeeded: ifNeeded}
	if g.d.image != nil {
		r.Digest, r.Version = g.d.image.digest, g.d.image.version
	}
	return r
}

// remove takes deployments out of the boot menu and records it. It has the commit
// point of the store's Remove.
func (h *Host) remove(ctx context.Context, gone ...goodbye) error {
	if len(gone) == 0 {
		return nil
	}
	var list deployments
	for _, g := range gone {
		list = append(list, g.d)
	}
	if err := h.store.Remove(ctx, list...); err != nil {
		return err
	}
	for _, g := range gone {
		h.recordGone(g)
	}
	return nil
}

// recordMissing records which deployments of before are not there any more. why
// are the reasons that are known.
func (h *Host) recordMissing(before deployments, why []goodbye) {
	after, err := h.store.Deployments()
	if err != nil {
		h.cfg.Log.Warn("the history lacks what was removed", "error", err)
		return
	}
	for _, d := range slices.Backward(before) {
		if after.find(func(o *deployment) bool { return o.key == d.key }) != nil {
			continue
		}
		g := goodbye{d, "no room for its kernel"}
		if i := slices.IndexFunc(why, func(g goodbye) bool { return g.d.key == d.key }); i >= 0 {
			g = why[i]
		} else if d.staged {
			g.why = "replaced before it was booted"
		}
		h.recordGone(g)
	}
}
