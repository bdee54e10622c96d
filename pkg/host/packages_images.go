package host

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// withPackageImages gives images with packages their names in kedge's layout,
// and their bases those that the deployments follow.
func (h *Host) withPackageImages(images []v1.StoredImage, list deployments) ([]v1.StoredImage, error) {
	local, err := h.storedImages()
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if d.origin.record == nil || slices.ContainsFunc(images, func(i v1.StoredImage) bool { return i.Digest == d.imageDigest() }) {
			continue
		}
		if _, i, err := h.store.Base(d); err == nil {
			images = append(images, v1.StoredImage{Digest: i.digest, Version: i.version, Layers: len(i.layers), Size: i.size(), Deployments: []string{}})
		}
	}
	for n := range images {
		i := &images[n]
		for _, s := range local {
			if s.ManifestDigest == i.Digest {
				i.Image, i.Base = s.Name, s.Base
			}
		}
		follows := list.find(func(d *deployment) bool { return d.imageDigest() == i.Digest && d.origin.ref != nil })
		if i.Base == "" && len(i.Deployments) == 0 && follows != nil {
			i.Image = follows.origin.ref.String()
		}
	}
	slices.SortStableFunc(images, func(a, b v1.StoredImage) int {
		if c := strings.Compare(a.Image, b.Image); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return images, nil
}

// storedImages lists the layout, without making one.
func (h *Host) storedImages() ([]layering.Stored, error) {
	root, err := h.root.OpenRoot(path.Join(h.store.StateDir(), packagesDir, "images"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return layering.Layout{Root: root}.Images()
}

// fetchPackages opens the image of a deployment with packages: what was made of
// them is in the layout, the rest where the base came from.
func (h *Host) fetchPackages(ctx context.Context, d *deployment) (*ocibridge.Source, error) {
	s, err := h.storedImage(d.manifest)
	if err != nil {
		return nil, err
	}
	return h.openLocal(ctx, s.Name, layerBase{ref: *d.origin.ref, image: &imageInfo{digest: d.imageDigest()}})
}

// storedImage returns an image of the layout by its name or its digest.
func (h *Host) storedImage(name string) (*layering.Stored, error) {
	list, err := h.storedImages()
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.Name == name || trimDigest(s.ManifestDigest) == trimDigest(name) {
			return &s, nil
		}
	}
	return nil, fault.New(fault.NotFound, "kedge image list shows the images that have a base", "there is no image with packages called %s", name)
}
