package host

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// EtcDiff returns what was changed in /etc of the deployment that runs, or on a
// sysroot that is not booted of the default one, against its image's defaults.
func (h *Host) EtcDiff(ctx context.Context) ([]v1.EtcChange, error) {
	changes, err := h.etcDiff(ctx)
	return changes, wrap("etc diff", err)
}

func (h *Host) etcDiff(ctx context.Context) ([]v1.EtcChange, error) {
	_, d, err := h.etcOwner()
	if err != nil {
		return nil, err
	}
	e, err := h.openEtc(ctx, d)
	if err != nil {
		return nil, err
	}
	defer e.close()
	m, err := etcmerge.Plan(ctx, etcmerge.Sides{Base: e.defaults, Local: e.local, Image: e.defaults})
	if err != nil {
		return nil, err
	}
	out := etcChanges(m.Changes)
	for i, c := range m.Changes {
		if out[i].Lines, err = e.lines(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// EtcConflicts returns the paths in /etc that were changed on the machine and in
// an image. Of a staged deployment, and of any other, it is what a merge of the
// machine's /etc into its image comes to; of the deployment that runs, what the
// merge came to that made it, as far as the /etc before it is still there. ""
// is the staged deployment, or without one what runs.
func (h *Host) EtcConflicts(ctx context.Context, target string) ([]v1.EtcChange, error) {
	changes, err := h.etcConflicts(ctx, target)
	return changes, wrap("etc conflicts", err)
}

func (h *Host) etcConflicts(ctx context.Context, target string) ([]v1.EtcChange, error) {
	list, from, err := h.etcOwner()
	if err != nil {
		return nil, err
	}
	to, err := list.named(target)
	if err != nil {
		return nil, err
	}
	if to == from {
		if from = list.rollback(); from == nil {
			return nil, fault.New(fault.NotFound, "name another deployment", "there is no deployment before %s whose /etc it was made from", to.id)
		}
	}
	image, err := h.imageFiles(ctx, to.root)
	if err != nil {
		return nil, err
	}
	changes, err := h.etcPreview(ctx, from, image)
	if err != nil {
		return nil, err
	}
	both := []v1.EtcChange{}
	for _, c := range changes {
		if c.Image != etcmerge.ImageSame.String() || c.Conflict {
			both = append(both, c)
		}
	}
	return both, nil
}

// named returns the deployment that an operand means: "staged", an index as
// status shows it, an id, or "" for the staged one or what runs.
func (l deployments) named(name string) (*deployment, error) {
	d := l.staged()
	switch {
	case name == "" && d == nil:
		return l.current(), nil
	case name == "staged" && d == nil:
		return nil, fault.New(fault.NotFound, "kedge upgrade stages one", "nothing is staged")
	case name == "", name == "staged":
		return d, nil
	case indexForm.MatchString(name):
		var index int
		if _, err := fmt.Sscan(name, &index); err != nil {
			return nil, err
		}
		return l.at(index)
	}
	if d := l.find(func(d *deployment) bool { return d.matches(name) }); d != nil {
		return d, nil
	}
	return nil, fault.New(fault.NotFound, "kedge status shows what there is", "no deployment %q", name)
}

// etcOwner returns the deployment whose /etc is the machine's.
func (h *Host) etcOwner() (deployments, *deployment, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, nil, err
	}
	d := list.current()
	if d == nil {
		return nil, nil, h.nothingDeployed()
	}
	return list, d, nil
}

// etcPreview returns what becomes of a deployment's changes to /etc under the
// defaults of an image.
func (h *Host) etcPreview(ctx context.Context, from *deployment, image *source.Image) ([]v1.EtcChange, error) {
	e, err := h.openEtc(ctx, from)
	if err != nil {
		return nil, err
	}
	defer e.close()
	s := etcmerge.Sides{Base: e.defaults, Local: e.local}
	if s.Image, err = defaultsOf(image); err != nil {
		return nil, err
	}
	top, err := image.Dir(".")
	if err != nil {
		return nil, err
	}
	if s.Policy, err = etcmerge.ReadPolicy(top, e.local); err != nil {
		return nil, err
	}
	m, err := etcmerge.Plan(ctx, s)
	if err != nil {
		return nil, err
	}
	return etcChanges(m.Changes), nil
}

// etc is a deployment's /etc beside its image's defaults.
type etc struct {
	defaults, local source.Dir
}

func (e *etc) close() { _ = e.local.Close() } // the defaults are in memory

func (h *Host) openEtc(ctx context.Context, d *deployment) (*etc, error) {
	defaults, err := h.etcDefaults(ctx, d)
	if err != nil {
		return nil, err
	}
	local, err := h.store.OpenEtc(ctx, d)
	if err != nil {
		return nil, err
	}
	return &etc{defaults, local}, nil
}

// etcDefaults reads the defaults of /etc of a deployment's image.
func (h *Host) etcDefaults(ctx context.Context, d *deployment) (source.Dir, error) {
	image, err := h.imageFiles(ctx, d.root)
	if err != nil {
		return nil, err
	}
	return defaultsOf(image)
}

// imageFiles reads the files of a root; the defaults of /etc are in its /etc.
func (h *Host) imageFiles(ctx context.Context, root string) (*source.Image, error) {
	tree, err := h.store.Tree(ctx, root)
	if err != nil {
		return nil, err
	}
	return source.NewImage(ctx, tree, func(_ context.Context, n *fstree.Inode) (io.ReadCloser, error) { return h.store.OpenFile(n) }), nil
}

// defaultsOf opens the defaults of /etc. An ostree-chunked image has them in
// /usr/etc, and of one derived from it what was changed in /etc.
func defaultsOf(image *source.Image) (source.Dir, error) {
	if image.Lookup("etc") == nil && image.Lookup("usr/etc") == nil {
		return nil, fault.New(fault.Conflict, "the image has to be repaired", "the image has no /etc")
	}
	if image.Lookup("etc") == nil {
		return image.Dir("usr/etc")
	}
	dir, err := image.Dir("etc")
	if err != nil || image.Lookup("usr/etc") == nil {
		return dir, err
	}
	under, err := image.Dir("usr/etc")
	if err != nil {
		return nil, err
	}
	return source.Over(dir, under), nil
}

// lines returns the entries that a change of a file of lines is made of; nil
// where it is none, or where they are not known.
func (e *etc) lines(c etcmerge.Change) (out []v1.EtcLine, err error) {
	diff, err := etcmerge.Lines(e.defaults, e.local, c)
	for _, l := range diff {
		out = append(out, v1.EtcLine{Key: l.Key, Change: l.Change})
	}
	return out, err
}

func etcChanges(list []etcmerge.Change) []v1.EtcChange {
	out := make([]v1.EtcChange, 0, len(list))
	for _, c := range list {
		out = append(out, v1.EtcChange{
			Path: "/etc/" + c.Path, Change: c.Kind.String(), Image: c.Image.String(), Result: c.Outcome.String(),
			Conflict: c.Conflict(), Notes: c.Notes,
		})
	}
	return out
}

// conflictsOf returns those changes that somebody should look at.
func conflictsOf(list []v1.EtcChange) (out []v1.EtcChange) {
	for _, c := range list {
		if c.Conflict {
			out = append(out, c)
		}
	}
	return out
}
