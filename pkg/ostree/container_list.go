package ostree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// StoredContainer is an image that a ref keeps in the repository.
type StoredContainer struct {
	Reference string // "docker://…"
	Image     *ContainerImage
}

// Containers lists the images that have a ref, in the order of their
// references. The error joins what could not be read; the others are listed.
func (r *Repo) Containers() ([]StoredContainer, error) {
	refs, err := r.Refs(ImageRefPrefix + "/")
	if err != nil {
		return nil, err
	}
	var list []StoredContainer
	var errs []error
	for ref, commit := range refs {
		name, err := UnescapeRef(strings.TrimPrefix(ref, ImageRefPrefix+"/"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		img, err := r.ContainerManifest(commit)
		if err != nil {
			errs = append(errs, fmt.Errorf("image %s: %w", name, err))
			continue
		}
		list = append(list, StoredContainer{name, img})
	}
	slices.SortFunc(list, func(a, b StoredContainer) int { return strings.Compare(a.Reference, b.Reference) })
	return list, errors.Join(errs...)
}

// RemoveContainer takes an image's ref away and reports whether there was one.
// Its layers go with the next PruneContainers.
func (r *Repo) RemoveContainer(ctx context.Context, reference string) (bool, error) {
	ref := ImageRef(reference)
	if _, err := r.ResolveRev(ref); err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return false, nil
		}
		return false, err
	}
	return true, r.dropRefs(ctx, []string{ref})
}

func (r *Repo) dropRefs(ctx context.Context, refs []string) error {
	if len(refs) == 0 {
		return nil
	}
	txn, err := r.Txn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = txn.Abort() }()
	for _, ref := range refs {
		if err := txn.SetRef(ref, object.Checksum{}); err != nil {
			return err
		}
	}
	return txn.Commit()
}

// keepingRefs are the prefixes of refs whose images' layers stay: images,
// deployments of libostree and rpm-ostree, and bases of derived commits.
var keepingRefs = []string{ImageRefPrefix, BaseImageRefPrefix, "ostree/0", "ostree/1", "rpmostree/base"}

// PruneContainers takes the refs of layers away that no image, deployment or
// base image ref refers to, and then kedge's layer indexes whose layer has no
// ref. state is kedge's directory beside the repository, may be nil. Objects
// stay until Prune. It returns the number of refs.
//
// An image whose manifest cannot be read is an error, and nothing is removed:
// its layers are not known.
func (r *Repo) PruneContainers(ctx context.Context, state *os.Root) (int, error) {
	used := map[string]bool{}
	diffIDs := map[string]bool{}
	for _, prefix := range keepingRefs {
		refs, err := r.Refs(prefix + "/")
		if err != nil {
			return 0, err
		}
		for ref, commit := range refs {
			img, err := r.ContainerManifest(commit)
			if errors.Is(err, ErrNotContainer) {
				continue
			}
			if err != nil {
				return 0, fmt.Errorf("read the image of %s: %w", ref, err)
			}
			layers, err := img.Layers()
			if err != nil {
				return 0, fmt.Errorf("read the image of %s: %w", ref, err)
			}
			for _, l := range layers {
				used[LayerRef(l.Digest)] = true
				diffIDs[l.DiffID] = true
			}
		}
	}
	refs, err := r.Refs(LayerRefPrefix + "/")
	if err != nil {
		return 0, err
	}
	var unused []string
	for ref := range refs {
		if !used[ref] {
			unused = append(unused, ref)
		}
	}
	slices.Sort(unused)
	if err := r.dropRefs(ctx, unused); err != nil {
		return 0, err
	}
	return len(unused), pruneIndexes(state, diffIDs)
}

func pruneIndexes(state *os.Root, diffIDs map[string]bool) error {
	if state == nil {
		return nil
	}
	names, err := indexNames(state)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for id := range diffIDs {
		if name, err := layerFileName(id); err == nil {
			keep[name] = true
		}
	}
	for _, name := range names {
		if keep[name] || strings.HasPrefix(name, unfinished) {
			continue
		}
		if err := state.Remove(layersDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a layer index: %w", err)
		}
	}
	return nil
}
