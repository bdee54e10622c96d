package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/retention"
	"github.com/kedge-os/kedge/pkg/fault"
)

// shortage says which file system has less free than the policy wants; "" is
// none. onlyBoot: the store's has enough.
func (k *keeper) shortage() (what string, onlyBoot bool, err error) {
	h := k.h
	low := func(root *os.Root, want retention.Amount) (bool, error) {
		if want == (retention.Amount{}) {
			return false, nil
		}
		if !h.cfg.NoSync {
			// What was removed counts as free when it is on disk.
			if err := bootdir.Syncfs(root); err != nil {
				return false, err
			}
		}
		var st unix.Statfs_t
		dir, err := root.Open(".")
		if err != nil {
			return false, err
		}
		defer dir.Close()
		if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
			return false, err
		}
		return int64(st.Bavail)*st.Bsize < want.Of(int64(st.Blocks)*st.Bsize), nil
	}
	if short, err := low(h.root, k.Root); short || err != nil {
		return "the store's file system", false, err
	}
	boot, err := os.OpenRoot(h.bootPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer boot.Close()
	if same, err := bootdir.SameFilesystem(h.root, boot); err != nil {
		return "", false, err
	} else if !same {
		if short, err := low(boot, k.Boot); short || err != nil {
			return "/boot", true, err
		}
	}
	if l := h.store.Loader().Root(); l != nil {
		if short, err := low(l, k.Boot); short || err != nil {
			return "the EFI system partition", true, err
		}
	}
	return "", false, nil
}

// relieve removes what can be spared, one after the other, until there is as much
// room as the policy wants.
func (h *Host) relieve(ctx context.Context, k *keeper) (out []goodbye, total swept, err error) {
	for {
		what, onlyBoot, err := k.shortage()
		if err != nil || what == "" {
			return out, total, err
		}
		list, err := h.store.Deployments()
		if err != nil {
			return out, total, err
		}
		c, fates := k.fates(list)
		i := retention.Oldest(c, fates, onlyBoot)
		if i < 0 {
			h.cfg.Log.Warn("there is less free space than the retention policy wants, and no deployment can be spared", "on", what)
			return out, total, nil
		}
		g := goodbye{list[i], lowOn(what)}
		s, err := h.removeAndSweep(ctx, g)
		if err != nil {
			return out, total, err
		}
		out = append(out, g)
		total.objects, total.bytes = total.objects+s.objects, total.bytes+s.bytes
	}
}

func lowOn(what string) string {
	return "less free on " + what + " than the policy wants (min-free)"
}

func (h *Host) removeAndSweep(ctx context.Context, g goodbye) (swept, error) {
	h.cfg.Log.Info("a deployment is removed", "deployment", g.d.id, "why", g.why)
	if err := h.remove(ctx, g); err != nil {
		return swept{}, err
	}
	return h.store.Sweep(ctx)
}

// roomFor makes room for an image, and is a NoSpace error where that cannot be:
// where all that can be spared would not be enough, nothing is removed.
func (h *Host) roomFor(ctx context.Context, list deployments, image *imageInfo) error {
	short := checkSpace(h.space(list, image))
	if short == nil {
		return nil
	}
	k := h.keeper(ctx, list)
	if !h.mayFit(k, list, image) {
		return short
	}
	for _, d := range k.spare(list) {
		if _, err := h.removeAndSweep(ctx, goodbye{d, "to make room for a new image"}); err != nil {
			return err
		}
		if short = checkSpace(h.space(list, image)); short == nil {
			return nil
		}
	}
	return fault.New(fault.NoSpace, "the deployments that could be spared are removed already, and what boots is as it was: free some space there by other means", "%w", short)
}

// mayFit reports whether an image fits at best when all is removed that can be
// spared. What shares its contents with others frees less than what is counted
// here.
func (h *Host) mayFit(k *keeper, list deployments, image *imageInfo) bool {
	var gain int64
	spare := k.spare(list)
	for _, d := range spare {
		if d.image != nil {
			gain += d.image.size() * expansion / 2
		}
	}
	root := h.space(list, image)
	return len(spare) > 0 && !slices.ContainsFunc(root[:min(1, len(root))], func(s v1.PlanSpace) bool { return s.Needed > s.Free+gain })
}

// planRetention says which deployments go when the image comes.
func (h *Host) planRetention(ctx context.Context, p *v1.Plan, list deployments, image *imageInfo) {
	k := h.keeper(ctx, list)
	p.Warnings = append(p.Warnings, k.warnings()...)
	d := list.followed()
	if d == nil {
		return
	}
	_, gone := k.behind(list, d.stateroot)
	for _, g := range gone {
		p.Removes = append(p.Removes, g.removed(false))
	}
	if checkSpace(p.Space) == nil || !h.mayFit(k, list, image) {
		return
	}
	for _, d := range k.spare(list) {
		if !slices.ContainsFunc(gone, func(g goodbye) bool { return g.d == d }) {
			p.Removes = append(p.Removes, goodbye{d, "to make room for the image, this one before those below"}.removed(true))
		}
	}
	p.Warnings = append(p.Warnings, "there is too little space until older deployments are removed, which is done first; whether that is enough is seen then")
}

// mayMakeRoom reports whether a plan removes deployments for want of space.
func mayMakeRoom(p *v1.Plan) bool {
	return slices.ContainsFunc(p.Removes, func(r v1.RemovedDeployment) bool { return r.IfNeeded })
}
