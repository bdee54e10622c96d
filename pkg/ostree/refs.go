package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// checkRef reports whether name is one that libostree accepts: parts of
// letters, digits, '_', '-' and '.' that do not start with '.' or '-',
// separated by slashes (OSTREE_REF_FRAGMENT_REGEXP).
func checkRef(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		ok := part != "" && part[0] != '.' && part[0] != '-'
		for i := range len(part) {
			c := part[i]
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.')
		}
		if !ok {
			return fault.New(fault.Usage, "", "%q is not a name for an ostree ref", name)
		}
	}
	return nil
}

// refPath returns where a ref is kept in the repository's directory.
func refPath(name string) (string, error) {
	remote, ref, ok := strings.Cut(name, ":")
	if !ok {
		return "refs/heads/" + name, checkRef(name)
	}
	if err := checkRef(remote); err != nil || strings.Contains(remote, "/") {
		return "", fault.New(fault.Usage, "", "%q is not a name for an ostree remote", remote)
	}
	return "refs/remotes/" + remote + "/" + ref, checkRef(ref)
}

// root opens the repository's directory for the few operations that follow
// symlinks, and those only inside it.
func (r *Repo) root() (*os.Root, error) {
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", r.dir.Fd()))
}

// Refs returns the refs whose names start with prefix: REF for refs/heads,
// REMOTE:REF for refs/remotes. Mirrored refs (refs/mirrors) are left out, as
// libostree does without a collection id.
func (r *Repo) Refs(prefix string) (map[string]Checksum, error) {
	refs := make(map[string]Checksum)
	err := r.eachRef(prefix, func(root *os.Root, name, file string) error {
		c, err := readRef(root, file)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile, or an alias of nothing
			return nil
		case err != nil:
			return fmt.Errorf("ref %s: %w", name, err)
		}
		refs[name] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the refs of %s: %w", r.path, err)
	}
	return refs, nil
}

// Aliases returns the local refs that are other names of a ref, with that ref.
func (r *Repo) Aliases() (map[string]string, error) {
	aliases := make(map[string]string)
	err := r.eachRef("", func(root *os.Root, name, file string) error {
		if target, err := root.Readlink(file); err == nil && !strings.Contains(name, ":") {
			aliases[name] = strings.TrimPrefix(path.Join(path.Dir(file), target), "refs/heads/")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the aliases of %s: %w", r.path, err)
	}
	return aliases, nil
}

// eachRef calls fn with the name and the file of every ref, in their order.
func (r *Repo) eachRef(prefix string, fn func(root *os.Root, name, file string) error) error {
	root, err := r.root()
	if err != nil {
		return err
	}
	defer root.Close()
	err = walkRefs(root, "refs/heads", "", 0, func(name string) error {
		if !strings.HasPrefix(name, prefix) {
			return nil
		}
		return fn(root, name, "refs/heads/"+name)
	})
	if err != nil {
		return err
	}
	return walkRefs(root, "refs/remotes", "", 0, func(file string) error {
		remote, ref, ok := strings.Cut(file, "/")
		name := remote + ":" + ref
		if !ok || !strings.HasPrefix(name, prefix) {
			return nil
		}
		return fn(root, name, "refs/remotes/"+file)
	})
}

func walkRefs(root *os.Root, dir, prefix string, depth int, fn func(name string) error) error {
	if depth > 64 {
		return errTooDeep
	}
	f, err := root.Open(path.Join(dir, prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	sortEntries(entries)
	for _, e := range entries {
		name := path.Join(prefix, e.Name())
		switch {
		case checkRef(e.Name()) != nil:
		case e.IsDir():
			err = walkRefs(root, dir, name, depth+1, fn)
		case e.Type().IsRegular() || e.Type()&fs.ModeSymlink != 0:
			err = fn(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const maxRefFile = 256

func readRef(root *os.Root, file string) (Checksum, error) {
	f, err := root.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Checksum{}, err
	}
	defer f.Close()
	buf := make([]byte, maxRefFile)
	n, err := readAll(f, buf)
	if err != nil {
		return Checksum{}, err
	}
	c, err := object.ParseChecksum(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return c, &fault.Error{Kind: fault.Corrupt, Err: err}
	}
	return c, nil
}

// ResolveRev returns the commit that a revision names: 64 hex digits, REF,
// REMOTE:REF, or one of these followed by ^ for its parent, any number of
// times. A ref that is not local is looked for in the remotes, as libostree
// does. What names nothing is an error of kind NotFound.
func (r *Repo) ResolveRev(rev string) (Checksum, error) {
	name := strings.TrimRight(rev, "^")
	c, err := r.resolveName(name)
	for range len(rev) - len(name) {
		if err != nil {
			break
		}
		var commit *object.Commit
		if commit, err = r.ReadCommit(c); err == nil {
			if c = commit.Parent; c.IsZero() {
				err = fault.New(fault.NotFound, "", "a commit of %s has no parent", rev)
			}
		}
	}
	if err != nil {
		return Checksum{}, fmt.Errorf("resolve %s in the ostree repository %s: %w", rev, r.path, err)
	}
	return c, nil
}

func (r *Repo) resolveName(name string) (Checksum, error) {
	if c, err := object.ParseChecksum(name); err == nil {
		return c, nil
	}
	file, err := refPath(name)
	if err != nil {
		return Checksum{}, err
	}
	root, err := r.root()
	if err != nil {
		return Checksum{}, err
	}
	defer root.Close()
	c, err := readRef(root, file)
	if errors.Is(err, fs.ErrNotExist) && !strings.Contains(name, ":") {
		var remotes []string
		if remotes, err = readDirNames(r.dir, "refs/remotes"); err != nil {
			remotes = nil
		}
		err = fs.ErrNotExist
		for _, remote := range remotes {
			if c, err = readRef(root, "refs/remotes/"+remote+"/"+name); err == nil {
				break
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR) {
		return Checksum{}, fault.New(fault.NotFound, "", "there is no such ref: %w", fs.ErrNotExist)
	}
	return c, err
}

// syncRefsApart is the number of refs up to which each new file is synced by
// itself rather than all with the whole file system.
const syncRefsApart = 4

// writeRefs changes refs, in order. What the new ones say is on disk, in the
// staging directory, before the first is renamed into place. Parent directories
// are made; a ref in the way of one is an error, as in libostree.
func (t *Txn) writeRefs(list []refUpdate) (err error) {
	r := t.repo
	temps := make([]string, len(list))
	apart := len(list) <= syncRefsApart
	for i, u := range list {
		if temps[i], err = t.stageRef(u, apart); err != nil {
			return fmt.Errorf("write the ref %s: %w", u.name, err)
		}
	}
	if !apart {
		if err := r.syncfs(); err != nil {
			return err
		}
	}
	dirs := make(map[string]bool)
	for i, u := range list {
		if err := t.placeRef(u, temps[i], dirs); err != nil {
			return fmt.Errorf("write the ref %s: %w", u.name, err)
		}
	}
	for dir := range dirs {
		d, err := openDirAt(r.dir, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of a ref that was deleted and never there
		}
		if err == nil {
			err = r.fsync(d)
			_ = d.Close()
		}
		if err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}

// stageRef writes a ref's file or symlink to the staging directory and returns
// its name there; "" for a ref that is to be deleted.
func (t *Txn) stageRef(u refUpdate, sync bool) (name string, err error) {
	dir := t.stage.dir
	name = "ref-" + randomName()
	switch {
	case u.alias != "":
		if strings.Contains(u.name, ":") {
			return "", fault.New(fault.Usage, "", "only a local ref can be an alias")
		}
		target := strings.Repeat("../", strings.Count(u.name, "/")) + u.alias
		return name, unix.Symlinkat(target, int(dir.Fd()), name)
	case u.target.IsZero():
		return "", nil
	}
	tmp, err := newTemp(dir, 0o644)
	if err != nil {
		return "", err
	}
	defer tmp.discard()
	if _, err = tmp.WriteString(u.target.String() + "\n"); err == nil {
		err = unix.Fchmod(tmp.fd(), 0o644)
	}
	if err == nil && sync {
		err = t.repo.fsync(tmp.File)
	}
	if err == nil {
		err = tmp.link(dir, name)
	}
	return name, err
}

// placeRef renames or deletes a ref and notes its directory.
func (t *Txn) placeRef(u refUpdate, tmp string, dirs map[string]bool) error {
	file, err := refPath(u.name)
	if err != nil {
		return err
	}
	root, err := t.repo.root()
	if err != nil {
		return err
	}
	defer root.Close()
	for dir := path.Dir(file); dir != "refs"; dir = path.Dir(dir) {
		dirs[dir] = true // each may be new
	}
	if tmp == "" {
		if err := root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
		return nil
	}
	if err := root.MkdirAll(path.Dir(file), 0o755); err != nil {
		return err
	}
	if err := unix.Renameat(int(t.stage.dir.Fd()), tmp, int(t.repo.dir.Fd()), file); err != nil {
		return &fs.PathError{Op: "rename", Path: file, Err: err}
	}
	return nil
}
