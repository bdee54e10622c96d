package ostree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// PruneOptions say what Prune keeps beside the refs.
type PruneOptions struct {
	Keep []Checksum // commits without a ref, such as those of deployments
	// Depth is how many parents of each commit are kept; -1 means all.
	Depth  int
	DryRun bool
}

// PruneResult counts objects.
type PruneResult struct {
	Total, Pruned int
	Freed         int64 // bytes on disk; what checkouts share with the repository stays until they go
}

// Prune deletes every object that neither a ref nor opts.Keep needs.
//
// It holds the repository's lock exclusively from before it looks at the refs
// until it is done, so that no transaction, of libostree or of kedge, can rely
// on an object that goes away. Nothing is deleted unless everything that is
// kept could be read. Commits go first, so that a crash leaves none without
// its tree.
func (r *Repo) Prune(ctx context.Context, opts PruneOptions) (PruneResult, error) {
	res, err := r.prune(ctx, opts)
	if err != nil {
		return res, fmt.Errorf("prune the ostree repository %s: %w", r.path, err)
	}
	return res, nil
}

func (r *Repo) prune(ctx context.Context, opts PruneOptions) (res PruneResult, err error) {
	lock, err := r.lock(ctx, true)
	if err != nil {
		return res, err
	}
	if lock != nil {
		defer lock.Close()
	}
	roots, err := r.allRefs()
	if err != nil {
		return res, err
	}
	keep := make(ObjectSet)
	if err := r.Reachable(ctx, keep, append(roots, opts.Keep...), opts.Depth); err != nil {
		return res, err
	}
	var gone []object.Name
	err = r.Objects(ctx, func(n object.Name) error {
		res.Total++
		if n.Type == object.TypePayloadLink {
			dangling, err := r.payloadDangles(n, keep)
			if err != nil || !dangling {
				return err
			}
		} else if keep.keeps(n) {
			return nil
		}
		gone = append(gone, n)
		return nil
	})
	if err != nil {
		return res, err
	}
	slices.SortStableFunc(gone, func(a, b object.Name) int { return pruneOrder(a.Type) - pruneOrder(b.Type) })
	for _, n := range gone {
		size, err := r.deleteObject(ctx, n, opts.DryRun)
		if err != nil {
			return res, err
		}
		res.Pruned++
		res.Freed += size
	}
	return res, nil
}

// allRefs returns the commits of every ref, mirrored ones included.
func (r *Repo) allRefs() ([]Checksum, error) {
	refs, err := r.Refs("")
	if err != nil {
		return nil, err
	}
	var out []Checksum
	for _, c := range refs {
		out = append(out, c)
	}
	root, err := r.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = walkRefs(root, "refs/mirrors", "", 0, func(name string) error {
		c, err := readRef(root, "refs/mirrors/"+name)
		out = append(out, c)
		return err
	})
	return out, err
}

func pruneOrder(t object.Type) int {
	switch t {
	case object.TypeCommit:
		return 0
	case object.TypeCommitMeta:
		return 1
	case object.TypeDirtree:
		return 2
	}
	return 3
}

// payloadDangles reports whether a payload link, a symlink named by a content's
// sha256 and pointing to ../xx/CHECKSUM.file, leads to nothing that is kept.
func (r *Repo) payloadDangles(n object.Name, keep ObjectSet) (bool, error) {
	target, err := readLinkAt(r.objects, n.Path(false))
	if err != nil {
		return false, err
	}
	dir, file, _ := strings.Cut(strings.TrimPrefix(target, "../"), "/")
	to, ok := object.ParsePath(dir, file, false)
	return !ok || !keep.Has(to), nil
}

func (r *Repo) deleteObject(ctx context.Context, n object.Name, dry bool) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	path := n.Path(r.mode == Archive)
	var st unix.Stat_t
	if err := unix.Fstatat(int(r.objects.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if dry {
		return st.Blocks * 512, nil
	}
	if n.Type == object.TypeCommit {
		if err := r.MarkPartial(n.Checksum, false); err != nil {
			return 0, err
		}
		if r.config.Bool("core", "tombstone-commits", false) {
			if err := r.writeTombstone(n.Checksum); err != nil {
				return 0, err
			}
		}
	}
	if err := unix.Unlinkat(int(r.objects.Fd()), path, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}

// writeTombstone leaves the mark that a commit was here and was deleted on
// purpose.
func (r *Repo) writeTombstone(commit Checksum) error {
	n := object.Name{Checksum: commit, Type: object.TypeTombstoneCommit}
	d := object.Dict{{Key: "commit", Value: object.Bytes(append([]byte(commit.String()), 0))}}
	return r.replaceFile("objects/"+n.Path(false), d.Encode(), 0o644)
}
