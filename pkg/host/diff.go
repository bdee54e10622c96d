package host

import (
	"context"
	"strconv"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Diff compares the files of two roots: each is an index, digest or version of
// a deployment, or an image in the store. An empty b is what the next boot
// takes, an empty a what runs, or where that is the same, what a rollback
// leads to.
func (h *Host) Diff(ctx context.Context, a, b string) ([]v1.FileChange, error) {
	changes, err := h.diff(ctx, a, b)
	return changes, wrap("diff", err)
}

func (h *Host) diff(ctx context.Context, a, b string) ([]v1.FileChange, error) {
	from, to, err := h.twoRoots(a, b)
	if err != nil {
		return nil, err
	}
	x, err := h.store.Tree(ctx, from)
	if err != nil {
		return nil, err
	}
	y, err := h.store.Tree(ctx, to)
	if err != nil {
		return nil, err
	}
	changes := []v1.FileChange{}
	// Times are the store's own and sizes follow from contents.
	err = fstree.Diff(x, y, fstree.AllFields&^fstree.FieldMtime, func(c fstree.Change) error {
		word, err := h.changeWord(c)
		if err != nil {
			return err
		}
		changes = append(changes, v1.FileChange{Path: "/" + c.Path, Change: word})
		return ctx.Err()
	})
	return changes, err
}

// twoRoots returns the roots that are to be compared.
func (h *Host) twoRoots(a, b string) (from, to string, err error) {
	list, err := h.store.Deployments()
	if err != nil {
		return "", "", err
	}
	if to, err = h.rootNamed(list, b, list.next()); err != nil {
		return "", "", err
	}
	other := list.current()
	if other != nil && other.root == to {
		other = list.rollback()
	}
	from, err = h.rootNamed(list, a, other)
	return from, to, err
}

const (
	metaFields    = fstree.FieldPerm | fstree.FieldOwner | fstree.FieldXattrs
	contentFields = fstree.FieldContent | fstree.FieldSize | fstree.FieldTarget | fstree.FieldRdev
)

func (h *Host) changeWord(c fstree.Change) (string, error) {
	switch {
	case c.A == nil:
		return "added", nil
	case c.B == nil:
		return "removed", nil
	case c.A.Type() != c.B.Type():
		return "type", nil
	case c.Fields&contentFields == fstree.FieldContent && c.Fields&metaFields != 0:
		// A store's handle may cover a file's metadata too.
		same, err := h.store.SameContent(c.A, c.B)
		if err != nil || same {
			return "metadata", err
		}
		return "content", nil
	case c.Fields&contentFields != 0:
		return "content", nil
	}
	return "metadata", nil
}

// rootNamed returns the root that a name stands for.
func (h *Host) rootNamed(list deployments, name string, preset *deployment) (string, error) {
	if name == "" {
		if preset == nil {
			return "", fault.New(fault.NotFound, "kedge status shows what there is", "there is nothing to compare with")
		}
		return preset.root, nil
	}
	if indexForm.MatchString(name) {
		index, err := strconv.Atoi(name)
		if err != nil {
			return "", err
		}
		d, err := list.at(index)
		if err != nil {
			return "", err
		}
		return d.root, nil
	}
	if d := list.find(func(d *deployment) bool { return d.matches(name) }); d != nil {
		return d.root, nil
	}
	return h.store.FindImage(name)
}
