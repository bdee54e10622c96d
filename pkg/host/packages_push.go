package host

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/layering"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// PushOptions say which image with packages goes where.
type PushOptions struct {
	Image string // its name or digest; "" is that of the next boot
	// Target is a tag of a registry for PushImage, and for CopyImage a name in
	// containers-storage; there "" is the image's own.
	Target string
	// WithoutKeys pushes an image although its packages generated keys, which are
	// not in it.
	WithoutKeys bool
}

// PushImage puts an image with packages into a registry, from which other hosts
// can switch to it. Layers of the base are mounted from where they came from, or
// streamed.
//
// Errors: Conflict for an image whose packages generated keys, Unavailable where
// the base's layers are out of reach.
func (h *Host) PushImage(ctx context.Context, o PushOptions) (*v1.StoredImage, error) {
	i, err := h.pushImage(ctx, o)
	return i, wrap("image push", err)
}

func (h *Host) pushImage(ctx context.Context, o PushOptions) (*v1.StoredImage, error) {
	to, err := reference(o.Target, "", false)
	if err != nil {
		return nil, err
	}
	if to.Transport != ocibridge.Registry {
		return nil, fault.New(fault.Usage, "name a tag of a registry, such as registry.example/os:mine", "%s cannot be pushed to", to)
	}
	p, err := h.parcel(o.Image)
	if err != nil {
		return nil, err
	}
	defer p.images.Root.Close()
	if len(p.image.Secrets) > 0 && !o.WithoutKeys {
		return nil, fault.New(fault.Conflict, "make sure that each host makes its own (such as with ssh-keygen -A before sshd starts), then give --without-keys",
			"the packages generated keys when they were installed, which are not in the image: %s", someOf(p.image.Secrets))
	}
	h.cfg.Progress.Step(v1.TaskPulling, "Pushing to "+to.String())
	return p.send(ctx, h, to)
}

// CopyImage puts an image with packages into containers-storage, where podman
// finds it. Layers of the base that are not there come from where it came from.
//
// Errors: NoSpace before anything is written; Unavailable as PushImage.
func (h *Host) CopyImage(ctx context.Context, o PushOptions) (*v1.StoredImage, error) {
	i, err := h.copyImage(ctx, o)
	return i, wrap("image copy-to-storage", err)
}

func (h *Host) copyImage(ctx context.Context, o PushOptions) (*v1.StoredImage, error) {
	p, err := h.parcel(o.Image)
	if err != nil {
		return nil, err
	}
	defer p.images.Root.Close()
	to, err := ocibridge.ParseReference(orDefault(o.Target, p.image.Name), ocibridge.ContainersStorage)
	if err != nil {
		return nil, err
	}
	dir, err := to.StorageRoot()
	if err != nil {
		return nil, err
	}
	tree, err := h.store.Tree(ctx, p.from.root)
	if err != nil {
		return nil, err
	}
	var all int64
	err = tree.Walk(func(_ string, n *fstree.Inode) error {
		all += n.Size
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.before = func(missing []digest.Digest) error {
		// The last layer is that of the packages, unpacked as it is; of the others
		// only the sum is known.
		layers := p.image.Manifest.Layers
		last := layers[len(layers)-1]
		need := int64(0)
		for _, d := range missing {
			if d != last.Digest {
				need = all
				break
			}
			need = last.Size
		}
		fs, err := fileSystem(dir)
		if err != nil {
			return err
		}
		space := fs.plan(dir, need, 0)
		h.cfg.Progress.Step(v1.TaskPulling, fmt.Sprintf("Copying to %s: %s", dir, spaceText(space)))
		return checkSpace([]v1.PlanSpace{space})
	}
	return p.send(ctx, h, to)
}

// parcel is an image with packages that is to go somewhere.
type parcel struct {
	images layering.Layout
	image  *layering.Stored
	from   *deployment // one that was made of it
	before func(missing []digest.Digest) error
}

// parcel finds an image with packages; its layout is the caller's to close.
func (h *Host) parcel(name string) (*parcel, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	if d := list.followed(); name == "" && d != nil {
		if d.imageDigest() == d.manifest {
			return nil, fault.New(fault.Conflict, "podman pull and skopeo copy take it from there", "the deployment %s is the image of a registry as it is, without packages", d.id)
		}
		name = d.manifest
	}
	p := &parcel{}
	if p.image, err = h.storedImage(name); err != nil {
		return nil, err
	}
	p.from = list.find(func(d *deployment) bool { return d.manifest == p.image.ManifestDigest && d.origin.ref != nil })
	if p.from == nil {
		return nil, fault.New(fault.NotFound, "kedge status shows what is deployed", "no deployment says where the base of %s came from", p.image.Name)
	}
	p.images, err = h.localImages()
	return p, err
}

func (p *parcel) send(ctx context.Context, h *Host, to ocibridge.Reference) (*v1.StoredImage, error) {
	origin, err := layerBase{ref: *p.from.origin.ref, image: &imageInfo{digest: p.image.Base}}.origin()
	if err != nil {
		return nil, err
	}
	manifest, err := p.images.Read(digest.Digest(p.image.ManifestDigest))
	if err != nil {
		return nil, err
	}
	err = ocibridge.Push(ctx, to, ocibridge.Upload{
		Manifest: manifest, Config: p.image.Manifest.Config, Layers: p.image.Manifest.Layers, Local: p.images.Open, Origin: origin, Before: p.before,
	}, h.cfg.Images)
	if err != nil {
		return nil, err
	}
	return &v1.StoredImage{Image: to.String(), Digest: p.image.ManifestDigest, Base: p.image.Base, Layers: len(p.image.Manifest.Layers), Deployments: []string{}}, nil
}
