package ostree

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// DamageKind is what is wrong with an object.
type DamageKind uint8

// The kinds of damage.
const (
	Missing   DamageKind = iota + 1 // something needs the object and it is not there
	Corrupted                       // its bytes or metadata are not those of its checksum
	Malformed                       // its bytes are no object of its type
	Unreadable
)

// String returns the kind in one word.
func (k DamageKind) String() string {
	return [...]string{"", "missing", "corrupted", "malformed", "unreadable"}[k]
}

// Damage is a damaged object.
type Damage struct {
	Object  object.Name
	Kind    DamageKind
	Commits []Checksum // that need it, in order; empty: no commit does
	Refs    []string   // of a missing commit: the refs that name it
	Err     error
}

// FsckOptions are the options of Fsck.
type FsckOptions struct {
	// Mark marks the commits that damage makes incomplete, as ostree fsck does,
	// so that neither program takes them for whole.
	Mark bool
	// Progress is called with the number of objects checked; it may be nil and
	// is called from several goroutines.
	Progress func(done, total int)
}

// FsckResult is what Fsck found.
type FsckResult struct {
	Objects int
	Damage  []Damage   // in the order of the objects
	Partial []Checksum // commits that were marked as incomplete before
	// Unsealed are file objects without fs-verity in a repository that asks for
	// it (VerityOn), in order.
	Unsealed []Checksum
}

// Fsck hashes every object again, on all processors, and follows every commit
// and ref to what it needs. It changes nothing unless told to mark commits.
// Damage is a result, not an error. The lock it holds, shared, keeps Prune out.
func (r *Repo) Fsck(ctx context.Context, opts FsckOptions) (*FsckResult, error) {
	res, err := r.fsck(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("check the ostree repository %s: %w", r.path, err)
	}
	return res, nil
}

func (r *Repo) fsck(ctx context.Context, opts FsckOptions) (*FsckResult, error) {
	lock, err := r.lock(ctx, false)
	if err != nil {
		return nil, err
	}
	if lock != nil {
		defer lock.Close()
	}
	verity, err := r.config.Verity()
	if err != nil {
		return nil, err
	}
	f := &fsck{repo: r, verity: verity, there: make(ObjectSet), damage: make(map[object.Name]*Damage)}
	var list []object.Name
	err = r.Objects(ctx, func(n object.Name) error {
		f.there.add(n)
		list = append(list, n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := f.hashAll(ctx, list, opts.Progress); err != nil {
		return nil, err
	}
	res := &FsckResult{Objects: len(list)}
	for _, n := range list {
		if n.Type != object.TypeCommit {
			continue
		}
		partial, err := r.IsPartial(n.Checksum)
		if err != nil {
			return nil, err
		}
		if partial {
			res.Partial = append(res.Partial, n.Checksum)
		}
		if err := f.follow(ctx, n.Checksum, partial); err != nil {
			return nil, err
		}
	}
	if err := f.checkRefs(); err != nil {
		return nil, err
	}
	res.Damage = f.sorted()
	slices.SortFunc(f.unsealed, Checksum.Compare)
	res.Unsealed = f.unsealed
	if opts.Mark {
		return res, r.markDamaged(res.Damage)
	}
	return res, nil
}

func (r *Repo) markDamaged(list []Damage) error {
	marked := make(map[Checksum]bool)
	for _, d := range list {
		for _, c := range d.Commits {
			if !marked[c] {
				marked[c] = true
				if err := r.MarkPartial(c, true); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

type fsck struct {
	repo     *Repo
	verity   Verity
	there    ObjectSet
	mu       sync.Mutex
	damage   map[object.Name]*Damage
	unsealed []Checksum
}

func (f *fsck) report(n object.Name, kind DamageKind, err error) *Damage {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.damage[n]
	if d == nil {
		d = &Damage{Object: n, Kind: kind, Err: err}
		f.damage[n] = d
	}
	return d
}

func (f *fsck) hashAll(ctx context.Context, list []object.Name, progress func(done, total int)) error {
	g, ctx := errgroup.WithContext(ctx)
	var next, done atomic.Int64
	for range workers() {
		g.Go(func() error {
			tree := fstree.New()
			for {
				i := int(next.Add(1)) - 1
				if i >= len(list) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				f.check(ctx, tree, list[i])
				if k := int(done.Add(1)); progress != nil && (k%512 == 0 || k == len(list)) {
					progress(k, len(list))
				}
			}
		})
	}
	return g.Wait()
}

func (f *fsck) check(ctx context.Context, tree *fstree.Tree, n object.Name) {
	var sum Checksum
	var err error
	switch n.Type {
	case object.TypeFile:
		if sum, err = f.repo.hashFile(ctx, tree, n.Checksum); err == nil && f.verity == VerityOn {
			err = f.checkSeal(n.Checksum)
		}
	case object.TypeCommit, object.TypeDirtree, object.TypeDirmeta, object.TypeFileXattrs:
		sum, err = f.repo.hashMeta(n)
	default:
		return // named after another object, not by what they hold
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, fs.ErrNotExist): // cancelled, or pruned meanwhile
	case errors.Is(err, object.ErrFormat):
		f.report(n, Malformed, err)
	case err != nil:
		f.report(n, Unreadable, err)
	case sum != n.Checksum:
		f.report(n, Corrupted, fmt.Errorf("its checksum is %s", sum))
	}
}

func (f *fsck) checkSeal(c Checksum) error {
	sealed, err := f.repo.isSealed(c)
	if err != nil || sealed {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unsealed = append(f.unsealed, c)
	return nil
}

func (r *Repo) hashMeta(n object.Name) (sum Checksum, err error) {
	data, err := r.readMeta(n)
	if err != nil {
		return sum, err
	}
	if sum = object.Sum(data); sum != n.Checksum {
		return sum, nil
	}
	switch n.Type {
	case object.TypeCommit:
		_, err = object.DecodeCommit(data)
	case object.TypeDirtree:
		_, _, err = object.DecodeDirtree(data)
	case object.TypeDirmeta:
		_, err = object.DecodeDirmeta(data)
	case object.TypeFileXattrs:
		_, err = object.DecodeXattrs(data)
	}
	return sum, err
}

// hashFile computes a file object's checksum from what is on disk.
func (r *Repo) hashFile(ctx context.Context, tree *fstree.Tree, c Checksum) (sum Checksum, err error) {
	m, rc, err := r.openFile(r.objects, c)
	if err != nil {
		return sum, err
	}
	defer rc.Close()
	header := object.FileHeader(m.UID, m.GID, m.Mode, m.Target, tree.Intern(m.Xattrs))
	if m.IsSymlink() {
		return sha256.Sum256(header), nil
	}
	return sumContent(ctx, header, &fstree.Inode{Mode: m.Mode, Size: m.Size}, rc)
}

// follow reports what a commit needs and does not have. A commit that is known
// to be incomplete may lack objects, but what it has must be sound.
func (f *fsck) follow(ctx context.Context, commit Checksum, partial bool) error {
	f.blame(object.Name{Checksum: commit, Type: object.TypeCommit}, commit)
	c, err := f.repo.ReadCommit(commit)
	if err != nil {
		return nil //nolint:nilerr // reported when it was hashed
	}
	seen := make(ObjectSet)
	var visit func(dirtree, dirmeta Checksum, depth int) error
	need := func(n object.Name) bool {
		if !seen.add(n) {
			return false
		}
		if !f.there.Has(n) {
			if !partial {
				f.report(n, Missing, fs.ErrNotExist)
				f.blame(n, commit)
			}
			return false
		}
		f.blame(n, commit)
		return true
	}
	visit = func(dirtree, dirmeta Checksum, depth int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		need(object.Name{Checksum: dirmeta, Type: object.TypeDirmeta})
		if !need(object.Name{Checksum: dirtree, Type: object.TypeDirtree}) || depth > maxDirDepth {
			return nil
		}
		files, dirs, err := f.repo.ReadDirtree(dirtree)
		if err != nil {
			return nil //nolint:nilerr // reported when it was hashed
		}
		for _, e := range files {
			need(object.Name{Checksum: e.Checksum, Type: object.TypeFile})
		}
		for _, e := range dirs {
			if err := visit(e.Tree, e.Meta, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return visit(c.Tree, c.Meta, 0)
}

// blame notes that a commit needs an object, if that is damaged.
func (f *fsck) blame(n object.Name, commit Checksum) {
	if d := f.damage[n]; d != nil && !slices.Contains(d.Commits, commit) {
		d.Commits = append(d.Commits, commit)
	}
}

func (f *fsck) checkRefs() error {
	refs, err := f.repo.Refs("")
	if err != nil {
		return err
	}
	for name, c := range refs {
		n := object.Name{Checksum: c, Type: object.TypeCommit}
		if !f.there.Has(n) {
			d := f.report(n, Missing, fs.ErrNotExist)
			d.Refs = append(d.Refs, name)
			slices.Sort(d.Refs)
		}
	}
	return nil
}

func (f *fsck) sorted() []Damage {
	out := make([]Damage, 0, len(f.damage))
	for _, d := range f.damage {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Damage) int {
		return cmp.Or(a.Object.Checksum.Compare(b.Object.Checksum), cmp.Compare(a.Object.Type, b.Object.Type))
	})
	return out
}
