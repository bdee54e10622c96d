package ostree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Objects calls fn for every loose object, a directory of objects/ at a time
// in their order. What is not an object's name is passed over.
func (r *Repo) Objects(ctx context.Context, fn func(object.Name) error) error {
	dirs, err := readDirNames(r.objects, ".")
	if err != nil {
		return fmt.Errorf("list the objects of %s: %w", r.path, err)
	}
	for _, dir := range dirs {
		if len(dir) != 2 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		files, err := readDirNames(r.objects, dir)
		if err != nil {
			return fmt.Errorf("list the objects of %s: %w", r.path, err)
		}
		for _, file := range files {
			if n, ok := object.ParsePath(dir, file, r.mode == Archive); ok {
				if err := fn(n); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Reachable collects the objects that commits need. depth is how many parents
// of each commit are followed; -1 means all. A parent that is not there, or is
// only a tombstone, ends the chain, as in libostree: history may be incomplete,
// a commit's tree may not.
func (r *Repo) Reachable(ctx context.Context, set ObjectSet, commits []Checksum, depth int) error {
	for _, c := range commits {
		for left := depth; ; left-- {
			n := object.Name{Checksum: c, Type: object.TypeCommit}
			commit, err := r.ReadCommit(c)
			if errors.Is(err, fs.ErrNotExist) && left != depth {
				break
			}
			if err != nil {
				return err
			}
			set.add(n)
			set.add(object.Name{Checksum: c, Type: object.TypeCommitMeta})
			partial, err := r.IsPartial(c)
			if err != nil {
				return err
			}
			if err := r.reachableDir(ctx, set, commit.Tree, commit.Meta, partial, 0); err != nil {
				return fmt.Errorf("commit %s: %w", c, err)
			}
			if commit.Parent.IsZero() || left == 0 {
				break
			}
			c = commit.Parent
		}
	}
	return nil
}

func (r *Repo) reachableDir(ctx context.Context, set ObjectSet, dirtree, dirmeta Checksum, partial bool, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDirDepth {
		return fault.New(fault.Corrupt, "", "dirtree %s: %w", dirtree, errTooDeep)
	}
	set.add(object.Name{Checksum: dirmeta, Type: object.TypeDirmeta})
	if !set.add(object.Name{Checksum: dirtree, Type: object.TypeDirtree}) {
		return nil
	}
	files, dirs, err := r.ReadDirtree(dirtree)
	if errors.Is(err, fs.ErrNotExist) && partial {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range files {
		set.add(object.Name{Checksum: e.Checksum, Type: object.TypeFile})
	}
	for _, e := range dirs {
		if err := r.reachableDir(ctx, set, e.Tree, e.Meta, partial, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// ObjectSet is a set of objects.
type ObjectSet map[object.Name]struct{}

// Has reports whether an object is in the set.
func (s ObjectSet) Has(n object.Name) bool {
	_, ok := s[n]
	return ok
}

// add reports whether the object was not there yet.
func (s ObjectSet) add(n object.Name) bool {
	if s.Has(n) {
		return false
	}
	s[n] = struct{}{}
	return true
}

// keeps reports whether an object is in the set or belongs to one that is: the
// xattrs of a file of mode bare-split-xattrs, and links to contents, whose
// names do not tell.
func (s ObjectSet) keeps(n object.Name) bool {
	switch n.Type {
	case object.TypeFileXattrsLink:
		return s.Has(object.Name{Checksum: n.Checksum, Type: object.TypeFile})
	case object.TypeFileXattrs, object.TypeTombstoneCommit:
		return true
	}
	return s.Has(n)
}

func partialPath(commit Checksum) string { return "state/" + commit.String() + ".commitpartial" }

// IsPartial reports whether a commit is marked as incomplete.
func (r *Repo) IsPartial(commit Checksum) (bool, error) {
	return existsAt(r.dir, partialPath(commit))
}

// MarkPartial marks a commit as incomplete, as fsck does when objects of it are
// gone ("f" is libostree's mark for that), or takes the mark away.
func (r *Repo) MarkPartial(commit Checksum, partial bool) error {
	var err error
	if partial {
		err = r.replaceFile(partialPath(commit), []byte("f"), 0o644)
	} else {
		err = unlinkAt(r.dir, partialPath(commit))
	}
	if err != nil {
		return fmt.Errorf("mark the commit %s: %w", commit, err)
	}
	return nil
}
