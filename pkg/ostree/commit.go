package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Commit makes the staged objects durable and part of the repository, and then
// the refs. Order:
//
//  1. the objects are sealed where the configuration asks for it (Verity);
//     syncfs: their data and metadata are on disk;
//  2. rename to objects/, commits not yet, of whole directories where objects/
//     has none of the name; syncfs, where libostree syncs each of up to 256
//     directories, one journal commit a time;
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
