package host

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

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

// PushImage puts an image with packages into a registry, from which other hosts
// can switch to it: by its name or digest, "" that of the next boot. Layers of the
// base are mounted from where they came from, or streamed.
func (h *Host) PushImage(ctx context.Context, name, to string) (*v1.StoredImage, error) {
	i, err := h.pushImage(ctx, name, to)
	return i, wrap("image push", err)
}

func (h *Host) pushImage(ctx context.Context, name, to string) (*v1.StoredImage, error) {
	ref, err := reference(to, "", false)
	if err != nil {
		return nil, err
	}
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	if d := list.followed(); name == "" && d != nil {
		if d.imageDigest() == d.manifest {
			return nil, fault.New(fault.Conflict, "skopeo copy copies images between registries", "the deployment %s is the image of a registry as it is, without packages", d.id)
		}
		name = d.manifest
	}
	s, err := h.storedImage(name)
	if err != nil {
		return nil, err
	}
	from := list.find(func(d *deployment) bool { return d.manifest == s.ManifestDigest && d.origin.ref != nil })
	if from == nil {
		return nil, fault.New(fault.NotFound, "kedge status shows what is deployed", "no deployment says where the base of %s came from", s.Name)
	}
	images, err := h.localImages()
	if err != nil {
		return nil, err
	}
	defer images.Root.Close()
	origin, err := layerBase{ref: *from.origin.ref, image: &imageInfo{digest: s.Base}}.origin()
	if err != nil {
		return nil, err
	}
	manifest, err := images.Read(digest.Digest(s.ManifestDigest))
	if err != nil {
		return nil, err
	}
	h.cfg.Progress.Step(v1.TaskPulling, "Pushing to "+ref.String())
	err = ocibridge.Push(ctx, ref, ocibridge.Upload{
		Manifest: manifest, Config: s.Manifest.Config, Layers: s.Manifest.Layers, Local: images.Open, Origin: origin,
	}, h.cfg.Images)
	if err != nil {
		return nil, err
	}
	return &v1.StoredImage{Image: ref.String(), Digest: s.ManifestDigest, Base: s.Base, Layers: len(s.Manifest.Layers), Deployments: []string{}}, nil
}
