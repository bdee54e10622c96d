package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// errUnsealed is what a root without fs-verity is answered with where nobody
// allowed it.
var errUnsealed = fault.New(fault.Conflict,
	"use a file system that has fs-verity (ext4 made with -O verity, btrfs), or --allow-missing-verity to run without: then nothing notices a changed file",
	"the composefs repository is on a file system without fs-verity")

// withoutVerity says of an error that fs-verity is missing what can be done.
func withoutVerity(err error) error {
	if errors.Is(err, fsverity.ErrNoVerity) {
		return errUnsealed
	}
	return err
}

// Import implements store. The commit point is that of composefs.WriteImage: the
// tag by which bootc keeps the image too.
func (s *composefsStore) Import(ctx context.Context, src *ocibridge.Source, _ ocibridge.Reference, base string) (root string, err error) {
	if err := s.begin(); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			s.abandon(ctx, err)
		}
	}()
	w, err := s.importImage(ctx, src, nil, base != "")
	if err != nil {
		return "", withoutVerity(err)
	}
	return w.Boot.Digest.String(), nil
}

// importImage brings an image in; damaged objects count as missing. The unified
// kernel image of one with packages names the image that they were put on.
func (s *composefsStore) importImage(ctx context.Context, src *ocibridge.Source, damaged []composefs.Digest, packages bool) (*composefs.Written, error) {
	state, err := s.state()
	if err != nil {
		return nil, err
	}
	defer state.Close()
	im, err := s.repo.NewImport(ctx, composefs.ImportOptions{State: state, Damaged: damaged})
	if err != nil {
		return nil, err
	}
	end := im.Close
	defer func() {
		if err := end(); err != nil {
			s.cfg.Log.Warn("on closing", "error", err)
		}
	}()
	src.Plain()
	img, err := src.Import(ctx, archiveStore{im})
	if err != nil {
		return nil, err
	}
	s.cfg.Progress.Step(v1.TaskImporting, "Importing the image")
	if err := checkEtc(img.Tree, "etc"); err != nil {
		return nil, err
	}
	unified, err := s.readUKI(im, img.Tree)
	if err != nil {
		return nil, err
	}
	if err := checkKernel(img.Tree); err != nil && unified == nil {
		return nil, err
	}
	c := composefs.Container{
		ManifestDigest: img.ManifestDigest, Manifest: img.Manifest, Config: img.Config, Tree: img.Tree,
		Tags: []string{composefs.BootTag(img.ManifestDigest)}, Tool: s.cfg.ComposefsTool,
	}
	for _, l := range img.Layers {
		c.DiffIDs = append(c.DiffIDs, l.DiffID)
	}
	if unified != nil && !packages {
		c.Expect = unified.root
	}
	img = nil // the layers' indexes are as large as the tree
	w, err := im.WriteImage(ctx, c)
	if err != nil {
		return nil, err
	}
	if unified != nil {
		if err := s.noteUKI(w.Boot.Digest, unified.object); err != nil {
			return nil, err
		}
	}
	end = im.Discard // nothing that is staged is of use any more
	root := w.Boot.Digest.String()
	s.manifests[root], s.files[root] = c.ManifestDigest, w.Files
	return w, nil
}

// archiveStore is a composefs.Import as ocibridge wants it.
type archiveStore struct{ *composefs.Import }

// Begin implements ocibridge.Store.
func (s archiveStore) Begin(diffID string) (ocibridge.LayerWriter, error) {
	w, err := s.Import.Begin(diffID)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// HasLayer implements store.
func (s *composefsStore) HasLayer(l imageLayer) bool { return s.repo.HasLayer(l.diffID) }

// stored calls fn for each image that the repository has a tag of kedge's or
// bootc's for.
func (s *composefsStore) stored(fn func(tag string, i *composefs.StoredImage) error) error {
	tags, err := s.repo.Tags()
	if err != nil {
		return err
	}
	for tag, manifest := range tags {
		if tag != composefs.BootTag(manifest) {
			continue
		}
		i, err := s.repo.ReadImage(manifest)
		if err != nil {
			s.cfg.Log.Warn("an image cannot be read", "image", manifest, "error", err)
			continue
		}
		if err := fn(tag, i); err != nil {
			return err
		}
	}
	return nil
}

// Images implements store. Only deployments know an image by a name.
func (s *composefsStore) Images(list deployments) ([]v1.StoredImage, error) {
	images := []v1.StoredImage{}
	seen := map[string]bool{}
	add := func(name string, i *imageInfo) {
		if seen[i.digest] {
			return
		}
		seen[i.digest] = true
		out := v1.StoredImage{Image: name, Digest: i.digest, Version: i.version, Layers: len(i.layers), Size: i.size(), Deployments: []string{}}
		for _, d := range list {
			if d.manifest == i.digest {
				out.Deployments = append(out.Deployments, d.id)
			}
		}
		images = append(images, out)
	}
	for _, d := range list {
		if d.image != nil && d.origin.ref != nil {
			add(d.origin.ref.String(), d.image)
		}
	}
	err := s.stored(func(tag string, i *composefs.StoredImage) error {
		info, err := parseImage(i.ManifestDigest, i.Manifest, i.Config)
		if err != nil {
			s.cfg.Log.Warn("an image cannot be read", "image", i.ManifestDigest, "error", err)
			return nil
		}
		add(tag, info)
		return nil
	})
	return images, err
}

// FindImage implements store.
func (s *composefsStore) FindImage(name string) (root string, err error) {
	var found composefs.Digest
	list, err := s.Deployments()
	if err != nil {
		return "", err
	}
	for _, d := range list {
		if d.origin.ref != nil && d.origin.ref.String() == name {
			return d.root, nil
		}
	}
	err = s.stored(func(tag string, i *composefs.StoredImage) error {
		if tag == name || trimDigest(i.ManifestDigest) == trimDigest(name) {
			found = i.Boot()
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if found == "" || !s.repo.HasImage(found) {
		return "", fault.New(fault.NotFound, "kedge status and kedge image list show what there is", "there is no deployment or image %q", name)
	}
	return found.String(), nil
}

// abandon removes what a change that failed has brought, unless the next try can
// use it.
func (s *composefsStore) abandon(ctx context.Context, failure error) {
	if mayContinue(failure) {
		return
	}
	if _, err := s.sweep(context.WithoutCancel(ctx), true); err != nil {
		s.cfg.Log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
	}
}

// Settle implements store.
func (s *composefsStore) Settle(ctx context.Context) error {
	if !s.change.interrupted {
		return nil
	}
	_, err := s.sweep(ctx, true)
	return err
}

// Sweep implements store. Objects are looked through only where an image went,
// or a change failed that may have brought some.
func (s *composefsStore) Sweep(ctx context.Context) (swept, error) {
	return s.sweep(ctx, s.change.interrupted)
}

// SweepAll implements store.
func (s *composefsStore) SweepAll(ctx context.Context) (swept, error) {
	if err := s.begin(); err != nil {
		return swept{}, err
	}
	return s.sweep(ctx, true)
}

func (s *composefsStore) sweep(ctx context.Context, collect bool) (swept, error) {
	if err := s.sysroot.Cleanup(ctx); err != nil {
		return swept{}, err
	}
	dropped, err := s.dropTags()
	if err != nil {
		return swept{}, fmt.Errorf("remove images without a deployment: %w", err)
	}
	if !collect && dropped == 0 {
		s.change.swept = true
		return swept{}, nil
	}
	state, err := s.state()
	if err != nil {
		return swept{}, err
	}
	defer state.Close()
	o := composefs.GCOptions{State: state}
	for _, b := range s.sysroot.Deployments() {
		d, err := composefs.ParseDigest(b.Digest)
		if err != nil {
			return swept{}, err
		}
		o.Images = append(o.Images, d)
	}
	done, err := s.repo.GC(ctx, o)
	if err != nil {
		return swept{}, err
	}
	if err := s.dropUKIs(); err != nil {
		return swept{}, err
	}
	s.change.swept = true
	return swept{objects: done.Objects, bytes: done.Bytes}, nil
}

// dropTags removes the tags of images that no deployment was made from, and
// makes those that a deployment lacks. Tags that are not bootc's stay, with what
// they keep.
func (s *composefsStore) dropTags() (int, error) {
	tags, err := s.repo.Tags()
	if err != nil {
		return 0, err
	}
	deployed := map[string]bool{}
	for _, b := range s.sysroot.Deployments() {
		deployed[b.ManifestDigest()] = true
		if p := readPackages(b.Origin); p != nil {
			deployed[p.base] = true
		}
	}
	n := 0
	for tag, manifest := range tags {
		if !strings.HasPrefix(tag, composefs.BootTag("")) || deployed[manifest] {
			continue
		}
		if err := s.repo.Untag(tag); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
		n++
	}
	return n, nil
}
