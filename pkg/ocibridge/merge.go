package ocibridge

import (
	"errors"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// OSTreeBase is the commit that an ostree-chunked image carries.
type OSTreeBase struct {
	Commit      object.Checksum
	CommitBytes []byte       // the commit object
	CommitMeta  []byte       // its detached metadata (a{sv}), or nil
	Tree        *fstree.Tree // the commit's tree as it is, with /usr/etc; frozen
	FinalDiffID string       // of the last ostree layer

	// Exact says that Tree, written again, has the checksums that the commit
	// names. It does not for a commit that libostree before 2024.10 made with
	// xattrs in another order than that of their names: such objects are not
	// what any libostree computes from a file on disk, and fsck rejects them.
	Exact bool
}

// merge lays the layers over each other.
func (im *importer) merge() (*Image, error) {
	img := &Image{Source: im.Source}
	var objects []*ObjectLayer
	for _, l := range im.Layers {
		x := im.index[l.DiffID]
		img.Layers = append(img.Layers, ImageLayer{LayerInfo: l, Layer: x.Layer, Objects: x.Objects, Fetched: im.fetched[l.DiffID]})
		if l.Role != Derived {
			objects = append(objects, x.Objects)
		}
	}
	tree := fstree.New()
	if len(objects) > 0 {
		base, err := commitTree(objects, im.opt.Limits)
		if err != nil {
			return nil, err
		}
		img.OSTree = base
		base.FinalDiffID = im.Labels[labelFinalDiffID]
		tree = imageForm(base.Tree)
	}
	for _, l := range img.Layers {
		if l.Role != Derived {
			continue
		}
		if err := tree.Apply(l.Layer); err != nil {
			var bad *fstree.LayerError
			if errors.As(err, &bad) {
				return nil, fault.New(fault.Corrupt, rebuildHint, "layer %s: entry %q: %s", l.Digest, bad.Path, bad.Reason)
			}
			return nil, err
		}
	}
	tree.Freeze()
	img.Tree = tree
	return img, nil
}

// imageForm returns a commit's tree as the image's own tars show it: what the
// commit has as /usr/etc is /etc there, and derived layers change it as such.
func imageForm(base *fstree.Tree) *fstree.Tree {
	t := base.Clone()
	usr := t.Root.Lookup("usr")
	if usr == nil || !usr.IsDir() || t.Root.Lookup("etc") != nil {
		return t
	}
	if etc := usr.Lookup("etc"); etc != nil {
		usr.Remove("etc")
		t.Root.Set("etc", etc)
	}
	return t
}
