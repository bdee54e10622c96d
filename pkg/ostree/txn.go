package ostree

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Txn is a transaction: it gathers objects in a staging directory and moves
// them, and then the refs, into place. Its writing methods are safe for
// concurrent use; Commit and Abort end it and are not.
type Txn struct {
	repo    *Repo
	ctx     context.Context
	lock    *os.File
	stage   *staging
	present *objectNames // in the repository
	staged  *objectNames // when the transaction began
	space   spaceBudget
	done    bool
	// files are the file objects to be moved beside those that were put; nil
	// means all that are staged.
	files func(Checksum) bool

	mu   sync.Mutex
	refs []refUpdate
	put  ObjectSet // written by this transaction
	// commits are those of this transaction. An abandoned one may have left
	// others in the staging directory, whose objects can have been pruned since.
	commits map[Checksum]bool
}

type refUpdate struct {
	name   string
	target Checksum // zero: delete
	alias  string
}

// Txn starts a transaction. It takes the repository's lock, shared, so that
// nothing is pruned meanwhile, and continues a staging directory that an
// earlier process of the same boot left. The caller must end it with Commit or
// Abort; Abort after Commit does nothing.
func (r *Repo) Txn(ctx context.Context) (*Txn, error) {
	if err := r.checkWritable(); err != nil {
		return nil, err
	}
	return r.newTxn(ctx, r.openStaging)
}

// newTxn starts a transaction in the staging directory that open returns.
func (r *Repo) newTxn(ctx context.Context, open func() (*staging, error)) (*Txn, error) {
	lock, err := r.lock(ctx, false)
	if err != nil {
		return nil, err
	}
	t := &Txn{repo: r, ctx: ctx, lock: lock, put: make(ObjectSet), commits: make(map[Checksum]bool)}
	if t.stage, err = open(); err == nil {
		t.present = &objectNames{dir: r.objects, archive: r.mode == Archive}
		t.staged = &objectNames{dir: t.stage.dir, archive: r.mode == Archive}
		err = t.space.init(r)
	}
	if err != nil {
		_ = t.Abort()
		return nil, fmt.Errorf("start a transaction in the ostree repository %s: %w", r.path, err)
	}
	return t, nil
}

// SetRef makes a ref name a commit when the transaction commits; the zero
// Checksum deletes it. Refs change in the order of the calls. name is REF or
// REMOTE:REF.
func (t *Txn) SetRef(name string, commit Checksum) error {
	return t.addRef(refUpdate{name: name, target: commit})
}

// SetAlias makes a ref another name of the ref target.
func (t *Txn) SetAlias(name, target string) error {
	if err := checkRef(target); err != nil {
		return err
	}
	return t.addRef(refUpdate{name: name, alias: target})
}

func (t *Txn) addRef(u refUpdate) error {
	if _, err := refPath(u.name); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refs = slices.DeleteFunc(t.refs, func(o refUpdate) bool { return o.name == u.name })
	t.refs = append(t.refs, u)
	return nil
}

// Abort ends the transaction without moving anything. The staging directory
// stays for the next transaction of this boot, unless space had run out.
func (t *Txn) Abort() error {
	if t.done {
		return nil
	}
	t.done = true
	defer t.unlock()
	if t.stage == nil || t.stage.private {
		return nil
	}
	if t.space.short.Load() {
		return t.repo.removeStaging(t.stage)
	}
	t.repo.unlockStaging(t.stage)
	return nil
}

func (t *Txn) unlock() {
	if t.lock != nil {
		_ = t.lock.Close()
	}
}

// has reports whether an object is in the repository or staged.
func (t *Txn) has(n object.Name) (bool, error) {
	t.mu.Lock()
	put := t.put.Has(n)
	t.mu.Unlock()
	if put {
		return true, nil
	}
	if ok, err := t.present.has(n); ok || err != nil {
		return ok, err
	}
	return t.staged.has(n)
}

// wrote notes an object that is staged now.
func (t *Txn) wrote(n object.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put.add(n)
}

// spaceBudget is how much a transaction may still write before the file system
// has less free than core.min-free-space-* asks for.
type spaceBudget struct {
	left  atomic.Int64
	min   uint64
	short atomic.Bool
}

func (b *spaceBudget) init(r *Repo) error {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(r.dir.Fd()), &st) }); err != nil {
		return fmt.Errorf("ask for the free space: %w", err)
	}
	size := uint64(st.Bsize)
	reserve, err := r.config.minFree(st.Blocks * size)
	if err != nil {
		return err
	}
	free := st.Bavail * size
	if os.Geteuid() == 0 {
		free = st.Bfree * size
	}
	b.min = reserve
	if free > reserve {
		b.left.Store(int64(min(free-reserve, 1<<62)))
	}
	return nil
}

// take counts n bytes that are about to be written.
func (b *spaceBudget) take(n int64) error {
	if b.min == 0 || b.left.Add(-n) >= 0 {
		return nil
	}
	b.short.Store(true)
	return fault.New(fault.NoSpace, "", "not enough space: %d MB must stay free (core.min-free-space-percent, -size)", b.min>>20)
}

// give returns bytes that turned out not to be needed.
func (b *spaceBudget) give(n int64) { b.left.Add(n) }
