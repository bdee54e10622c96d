package host

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

// PlanOptions say what to plan.
type PlanOptions struct {
	Image     string // of a switch; "" plans an upgrade
	Transport string // of an Image without one; "" is registry
	Tag       string // of an upgrade
	// Inspect reads the whole image, and keeps nothing of it, to say what it
	// lacks.
	Inspect bool
}

// Plan says what a switch or an upgrade would do and whether it can. It writes
// nothing. What stands in the way is in the result; an error means that the
// image could not be looked at.
func (h *Host) Plan(ctx context.Context, o PlanOptions) (*v1.Plan, error) {
	p, err := h.plan(ctx, o)
	return p, wrap("plan", err)
}

func (h *Host) plan(ctx context.Context, o PlanOptions) (*v1.Plan, error) {
	p := &v1.Plan{Operation: "upgrade", Staged: h.Booted(), Space: []v1.PlanSpace{}, Problems: []string{}, Warnings: []string{}}
	ref, err := h.followedRef(o.Tag)
	if o.Image != "" {
		p.Operation = "switch"
		ref, err = reference(o.Image, o.Transport, false)
	}
	if err != nil {
		return nil, err
	}
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	src, err := ocibridge.Open(ctx, ref, h.cfg.Images)
	if err != nil {
		return nil, err
	}
	defer h.cfg.closeQuietly(src)
	info, err := sourceInfo(src)
	if err != nil {
		return nil, err
	}
	p.Target = info.status(ref)
	p.Changed = !isAt(list.followed(), ref, info.digest)
	for _, l := range info.layers {
		if h.store.HasLayer(l) {
			p.Fetch.LayersCached++
			p.Fetch.BytesCached += l.size
		} else {
			p.Fetch.Layers++
			p.Fetch.Bytes += l.size
		}
	}
	if err := h.changeable(list); err != nil {
		p.Problems = append(p.Problems, err.Error())
	}
	if p.Changed {
		if err := h.checkHeld(ctx, p.Operation, o.Image != "" || o.Tag != "", list.followed(), info.digest); err != nil {
			p.Problems = append(p.Problems, err.Error())
		}
		p.Space = append(p.Space, h.space(list, info)...)
		h.planRetention(ctx, p, list, info)
	}
	for _, s := range p.Space {
		if !s.Enough && !mayMakeRoom(p) {
			p.Problems = append(p.Problems, fmt.Sprintf("%s has too little space: %s", s.Path, spaceText(s)))
		}
	}
	h.planWarnings(p, list, ref)
	if err := h.planMissing(ctx, p, list, src, o.Inspect); err != nil {
		return nil, err
	}
	p.Possible = len(p.Problems) == 0
	return p, nil
}

func (h *Host) planWarnings(p *v1.Plan, list deployments, ref ocibridge.Reference) {
	warn := func(format string, args ...any) { p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...)) }
	if ref.Verify == ocibridge.Unverified {
		warn("no signature is demanded: what policy.json accepts is taken (--enforce-sigpolicy demands one)")
	}
	if ref.Digest() != "" {
		warn("the reference names a digest: upgrades will never find another one")
	}
	if d := list.followed(); d != nil && d.origin.refspec != "" {
		warn("the host follows the ostree ref %s, which kedge will not follow any more", d.origin.refspec)
	}
	if d := list.staged(); d != nil && !d.foreign && p.Changed {
		warn("the staged deployment %s is replaced", d.id)
	}
}

// planMissing says what the image lacks, if its files are known: they are
// where the store has the image, or where they are to be read now.
func (h *Host) planMissing(ctx context.Context, p *v1.Plan, list deployments, src *ocibridge.Source, inspect bool) error {
	var has func(string) (bool, error)
	var old []v1.PlanMissing
	if root := h.storedRoot(list, p.Target.ImageDigest); root != "" {
		has = func(path string) (bool, error) { return h.store.Exists(root, path) }
		h.planPackages(ctx, p, list.followed(), func() (*pkgdb.Database, error) { return h.packageDB(ctx, root) })
		image, err := h.imageFiles(ctx, root)
		if err != nil {
			return err
		}
		h.planEtc(ctx, p, list, image)
		old = h.backend.oldKernel(image.Lookup)
	} else if inspect {
		look := newPlanStore()
		defer look.close()
		img, err := src.Import(ctx, look)
		if err != nil {
			return err
		}
		if err := checkKernel(img.Tree); err != nil && (h.backend == ostreeBackend || !errors.Is(err, errOnlyUnified)) {
			p.Problems = append(p.Problems, err.Error())
		}
		image := look.image(ctx, img.Tree)
		h.planPackages(ctx, p, list.followed(), func() (*pkgdb.Database, error) { return pkgdb.Read(image) })
		has = func(path string) (bool, error) { return img.Tree.Resolve(path) != nil, nil }
		h.planEtc(ctx, p, list, image)
		old = h.backend.oldKernel(img.Tree.Lookup)
	} else {
		p.Warnings = append(p.Warnings, "what the image lacks, which packages change and what becomes of local changes in /etc is known only when it has been read (--inspect reads it now and keeps nothing)")
		return nil
	}
	missing, err := h.missing(list, has)
	p.Missing = append(missing, old...)
	return err
}

// storedRoot returns the root of an image that the store has, "" for none.
func (h *Host) storedRoot(list deployments, digest string) string {
	if d := list.find(func(d *deployment) bool { return d.image != nil && d.image.digest == digest }); d != nil {
		return d.root
	}
	root, err := h.store.FindImage(digest)
	if err != nil {
		return ""
	}
	return root
}

var packageManagers = []string{"dnf5", "dnf", "microdnf", "apt-get", "zypper", "rpm-ostree"}

// missing returns what a root lacks and what will therefore not work in it.
func (h *Host) missing(list deployments, has func(string) (bool, error)) ([]v1.PlanMissing, error) {
	missing := []v1.PlanMissing{}
	bin := func(names ...string) (paths []string) {
		for _, n := range names {
			paths = append(paths, "usr/bin/"+n, "usr/sbin/"+n)
		}
		return paths
	}
	for _, c := range []requirement{
		{"kedge", h.withoutKedge(list), bin("kedge")},
		{"bootc", "bootc commands do not work there", bin("bootc")},
		{"a package manager", "packages cannot be looked up or added there", bin(packageManagers...)},
		h.backend.needs,
	} {
		ok, err := c.met(has)
		if err != nil {
			return nil, err
		}
		if !ok {
			missing = append(missing, v1.PlanMissing{What: c.what, Consequence: c.consequence})
		}
	}
	return missing, nil
}

// withoutKedge says what becomes of a host whose image has no kedge.
func (h *Host) withoutKedge(list deployments) string {
	if d := list.current(); d != nil && h.selfInstalled(d) {
		return "the one that kedge self install put on this host goes on working"
	}
	return "kedge is gone after the reboot; run kedge self install before it to keep it (the boot menu leads back)"
}

// missingWarnings are what missing finds in a root that was just imported, for
// the result of the operation.
func (h *Host) missingWarnings(list deployments, root string) []string {
	missing, err := h.missing(list, func(path string) (bool, error) { return h.store.Exists(root, path) })
	if err != nil {
		h.cfg.Log.Warn("what the image lacks is not known", "error", err)
	}
	var out []string
	for _, m := range missing {
		if m.What == "kedge" {
			out = append(out, "the image has no "+m.What+": "+m.Consequence)
		}
	}
	return out
}
