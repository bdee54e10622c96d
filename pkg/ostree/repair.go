package ostree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Discard deletes the damaged objects that Fsck found and marks the commits
// that need them as incomplete, as ostree fsck --delete does, so that an import
// brings them anew: refs of layers whose commits are incomplete are dropped,
// after which nothing takes these layers for present. Commits in keep stay,
// whatever is wrong with them.
//
// Marks come first: whoever is interrupted leaves commits that are known to lack
// something.
func (r *Repo) Discard(ctx context.Context, found *FsckResult, keep []Checksum) error {
	if err := r.discard(ctx, found, keep); err != nil {
		return fmt.Errorf("remove damaged objects of the ostree repository %s: %w", r.path, err)
	}
	return nil
}

func (r *Repo) discard(ctx context.Context, found *FsckResult, keep []Checksum) error {
	if err := r.markDamaged(found.Damage); err != nil {
		return err
	}
	if err := r.dropPartialLayers(ctx); err != nil {
		return err
	}
	lock, err := r.lock(ctx, true)
	if err != nil {
		return err
	}
	if lock != nil {
		defer lock.Close()
	}
	kept := make(ObjectSet)
	for _, c := range keep {
		kept.add(object.Name{Checksum: c, Type: object.TypeCommit})
	}
	for _, d := range found.Damage {
		if d.Kind == Missing || kept.Has(d.Object) {
			continue
		}
		if _, err := r.deleteObject(ctx, d.Object, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (r *Repo) dropPartialLayers(ctx context.Context) error {
	refs, err := r.Refs(LayerRefPrefix)
	if err != nil {
		return err
	}
	var gone []string
	for name, commit := range refs {
		partial, err := r.IsPartial(commit)
		if err != nil {
			return err
		}
		if partial {
			gone = append(gone, name)
		}
	}
	return r.dropRefs(ctx, gone)
}
