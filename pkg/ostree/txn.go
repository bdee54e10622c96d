package ostree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
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

// Commit makes the staged objects durable and part of the repository, and then
// the refs. Order:
//
//  1. the objects are sealed where the configuration asks for it (Verity);
//     syncfs: their data and metadata are on disk;
//  2. rename to objects/, commits not yet; syncfs, where libostree syncs each of
//     up to 256 directories, one journal commit a time;
//  3. rename of the commits; syncfs: whatever the repository shows as a commit
//     is complete, at any instant;
//  4. the refs, each by one rename (its commit point) of a synced file, in the
//     order of SetRef; sync of their directories;
//  5. the staging directory is removed.
//
// What a transaction has nothing of is left out, and no step syncs where
// core.fsync is off. After an error the transaction is over as after Abort:
// with objects and refs up to the failing step in place, and the rest still
// staged.
func (t *Txn) Commit() error {
	if t.done {
		return errors.New("the ostree transaction is over")
	}
	err := t.commit()
	if err != nil {
		_ = t.Abort()
		return fmt.Errorf("commit to the ostree repository %s: %w", t.repo.path, err)
	}
	t.done = true
	defer t.unlock()
	// What follows the commit point cannot fail the transaction; the next one
	// cleans up what is left.
	if !t.stage.private {
		_ = t.repo.removeStaging(t.stage)
	}
	_ = t.repo.CleanTmp(false)
	_ = setTimes(int(t.repo.dir.Fd()), nil) // libostree reloads its caches by this time stamp
	return nil
}

func (t *Txn) commit() error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	dirs, err := t.stagedDirs()
	if err != nil {
		return err
	}
	if len(dirs) > 0 {
		if err := t.repo.sealDirs(t.ctx, t.stage.dir, dirs); err != nil {
			return t.failed("seal new objects", err)
		}
		if err := t.repo.syncfs(); err != nil {
			return err
		}
	}
	moved := 0
	for _, dir := range dirs {
		n, err := t.moveDir(dir)
		if err != nil {
			return fmt.Errorf("move objects into place: %w", err)
		}
		moved += n
	}
	if moved > 0 {
		if err := t.repo.syncfs(); err != nil {
			return err
		}
	}
	if err := t.moveCommits(); err != nil {
		return fmt.Errorf("move commits into place: %w", err)
	}
	for _, u := range t.refs {
		if u.target.IsZero() {
			continue
		}
		ok, err := t.repo.HasObject(object.Name{Checksum: u.target, Type: object.TypeCommit})
		if err == nil && !ok {
			err = fault.New(fault.NotFound, "", "the commit %s is not in the repository", u.target)
		}
		if err != nil {
			return fmt.Errorf("write the ref %s: %w", u.name, err)
		}
	}
	return t.writeRefs(t.refs)
}

func (r *Repo) syncfs() error {
	if !r.config.Bool("core", "fsync", true) {
		return nil
	}
	if err := unix.Syncfs(int(r.dir.Fd())); err != nil {
		return fmt.Errorf("sync the file system: %w", err)
	}
	return nil
}

// stagedDirs returns the subdirectories of the staging directory that hold
// objects.
func (t *Txn) stagedDirs() ([]string, error) {
	names, err := readDirNames(t.stage.dir, ".")
	return slices.DeleteFunc(names, func(name string) bool { return len(name) != 2 }), err
}

// moveDir moves what is staged in a subdirectory, but for commits. Where
// objects/ has none of that name it moves it as a whole.
func (t *Txn) moveDir(name string) (moved int, err error) {
	src, err := openDirAt(t.stage.dir, name)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	all, err := src.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	files := slices.DeleteFunc(slices.Clone(all), func(file string) bool { return !t.moves(name, file) })
	if len(files) == 0 {
		return 0, nil
	}
	if len(files) == len(all) {
		err := unix.Renameat2(int(t.stage.dir.Fd()), name, int(t.repo.objects.Fd()), name, unix.RENAME_NOREPLACE)
		if err == nil {
			return len(files), nil
		}
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) {
			return 0, &os.PathError{Op: "rename", Path: name, Err: err}
		}
	}
	dst, err := t.repo.objectDir(name)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	for _, file := range files {
		if err := moveObject(src, dst, file, strings.HasSuffix(file, "."+object.TypeCommitMeta.String())); err != nil {
			return moved, err
		}
		moved++
	}
	return moved, nil
}

// moves reports whether a staged file is an object of this transaction.
func (t *Txn) moves(dir, file string) bool {
	n, ok := object.ParsePath(dir, file, t.repo.mode == Archive)
	switch {
	case !ok || n.Type == object.TypeCommit:
		return false
	case n.Type != object.TypeFile || t.files == nil:
		return true
	}
	return t.put.Has(n) || t.files(n.Checksum)
}

// moveCommits moves the commits, last of all objects.
func (t *Txn) moveCommits() error {
	moved := 0
	for sum := range t.commits {
		n := object.Name{Checksum: sum, Type: object.TypeCommit}
		dst, err := t.repo.objectDir(hexByte(sum[0]))
		if err != nil {
			return err
		}
		src, err := openDirAt(t.stage.dir, hexByte(sum[0]))
		if errors.Is(err, fs.ErrNotExist) { // nothing but commits that the repository has
			_ = dst.Close()
			continue
		}
		if err == nil {
			err = moveObject(src, dst, n.Path(false)[3:], false)
			_ = src.Close()
		}
		_ = dst.Close()
		if errors.Is(err, unix.ENOENT) { // the repository has it
			continue
		}
		if err != nil {
			return err
		}
		moved++
		// It is here again: nothing must say that it was deleted.
		if err := unlinkAt(t.repo.objects, object.Name{Checksum: sum, Type: object.TypeTombstoneCommit}.Path(false)); err != nil {
			return err
		}
	}
	if moved == 0 {
		return nil
	}
	return t.repo.syncfs()
}

// moveObject keeps an object that is there already, with its inode, since both
// have the same content; only detached metadata is replaced.
func moveObject(src, dst *os.File, name string, replace bool) error {
	if replace {
		return unix.Renameat(int(src.Fd()), name, int(dst.Fd()), name)
	}
	err := unix.Renameat2(int(src.Fd()), name, int(dst.Fd()), name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		if err = unix.Linkat(int(src.Fd()), name, int(dst.Fd()), name, 0); err == nil {
			return unlinkAt(src, name)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return unlinkAt(src, name)
	}
	return err
}

// objectDir opens a subdirectory of objects/, which it makes where it is
// missing.
func (r *Repo) objectDir(name string) (*os.File, error) {
	d, err := openDirAt(r.objects, name)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkdirat(int(r.objects.Fd()), name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make objects/%s: %w", name, err)
		}
		d, err = openDirAt(r.objects, name)
	}
	return d, err
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
