package composefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// Repo is a composefs repository in the layout of composefs-rs:
//
//	meta.json                     format, algorithm, features
//	objects/xx/rest               files, named by their fs-verity digest
//	images/DIGEST                 → ../objects/xx/rest, an image
//	streams/oci-layer-sha256:HEX  → ../objects/xx/rest, a splitstream
//	{images,streams}/refs/NAME    → what garbage collection keeps
//
// meta.json has fs-verity exactly where every object must have it.
//
// It is safe for concurrent use. Who adds to a repository holds a shared flock
// on its directory, who removes from it an exclusive one.
type Repo struct {
	root *os.Root
	dir  *os.File // of root: for flock and syncfs
	meta *Meta

	sealed   bool        // every object must have fs-verity
	noVerity atomic.Bool // the file system turned out to have none
	objects  objectDir
}

// CreateOptions say how a repository is made.
type CreateOptions struct {
	Algorithm Algorithm // SHA512 if zero, as bootc has it
	// AllowMissingVerity makes a repository without fs-verity where the file
	// system has none. meta.json records it: it is not sealed then.
	AllowMissingVerity bool
}

const metaName = "meta.json"

// CreateRepo makes a repository in the directory name beneath parent, or opens
// the one that is there. The commit point is meta.json getting its name; on a
// file system without fs-verity nothing is left behind.
func CreateRepo(parent *os.Root, name string, o CreateOptions) (*Repo, error) {
	r, err := OpenRepo(parent, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if o.Algorithm == 0 {
		o.Algorithm = SHA512
	}
	made := true
	if err := parent.Mkdir(name, 0o700); errors.Is(err, fs.ErrExist) {
		made = false
	} else if err != nil {
		return nil, fmt.Errorf("make the composefs repository: %w", err)
	}
	if err := writeMeta(parent, name, o); err != nil {
		if made {
			_ = parent.Remove(name)
		}
		return nil, fmt.Errorf("make the composefs repository: %w", err)
	}
	if err := atomicfile.SyncDir(parent, "."); err != nil {
		return nil, fmt.Errorf("make the composefs repository: %w", err)
	}
	return OpenRepo(parent, name)
}

func writeMeta(parent *os.Root, name string, o CreateOptions) error {
	root, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat("objects"); err == nil {
		return fault.New(fault.Conflict, "have bootc or cfsctl of this host upgrade it", "it has objects but no meta.json: its format is older than kedge knows")
	}
	data, err := newMeta(o.Algorithm).encode()
	if err != nil {
		return err
	}
	// A file without a name: a creator that dies leaves nothing behind.
	dir := objectDir{root: root, path: "."}
	defer dir.close()
	defer fsverity.HoldForks()()
	t, err := dir.newTemp()
	if err != nil {
		return err
	}
	defer t.discard()
	if _, err := t.w.Write(data); err != nil {
		return err
	}
	if err := t.freeze(); err != nil {
		return err
	}
	if _, err := fsverity.Seal(t.r, o.Algorithm); err != nil && (!errors.Is(err, fsverity.ErrNoVerity) || !o.AllowMissingVerity) {
		return err
	}
	if err := t.r.Sync(); err != nil {
		return err
	}
	// A link never replaces: of two creators one loses and opens the other's.
	if err := linkFile(t.r, t.dir, metaName); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(root, ".")
}

// maxMeta bounds meta.json.
const maxMeta = 1 << 20

// OpenRepo opens the repository in the directory name beneath parent. Where
// there is none the error is fs.ErrNotExist; where kedge does not understand it
// a *FormatError of kind Conflict. Nothing is written.
func OpenRepo(parent *os.Root, name string) (_ *Repo, err error) {
	root, err := parent.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open the composefs repository: %w", err)
	}
	r := &Repo{root: root}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open the composefs repository: %w", err)
			if errors.Is(err, fs.ErrNotExist) {
				err = fault.New(fault.Corrupt, "put meta.json back: it is the same in every repository that one version of a program makes", "%w", err)
			}
			_ = r.Close()
		}
	}()
	if err := r.readMeta(); err != nil {
		return nil, err
	}
	if r.dir, err = root.Open("."); err != nil {
		return nil, err
	}
	r.objects = objectDir{root: root, path: "objects"}
	return r, nil
}

func (r *Repo) readMeta() error {
	f, err := r.root.Open(metaName)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := readBounded(f, maxMeta)
	if err != nil {
		return err
	}
	if r.meta, err = decodeMeta(data); err != nil {
		return err
	}
	switch _, err := fsverity.Measure(f); {
	case err == nil:
		r.sealed = true
	case !errors.Is(err, fsverity.ErrNotSealed) && !errors.Is(err, fsverity.ErrNoVerity):
		return err
	}
	return nil
}

// Close frees the repository's descriptors, and with them its lock.
func (r *Repo) Close() error {
	r.objects.close()
	if r.dir != nil {
		_ = r.dir.Close()
	}
	return r.root.Close()
}

// Algorithm returns the algorithm of the repository's digests.
func (r *Repo) Algorithm() Algorithm { return r.meta.alg }

// Sealed reports whether every object has fs-verity. Where it is false the
// kernel argument must say so too (Karg.AllowNoVerity).
func (r *Repo) Sealed() bool { return r.sealed }

// Meta returns the repository's meta.json. It must not be changed.
func (r *Repo) Meta() *Meta { return r.meta }

// lock takes a flock (unix.LOCK_SH or LOCK_EX) that lasts until unlock, on a
// descriptor of its own: locks of one descriptor replace each other.
func (r *Repo) lock(how int) (unlock func(), err error) {
	f, err := r.root.Open(".")
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.Busy, "wait until the other program (kedge, bootc, cfsctl) is done", "another program works in the composefs repository")
		}
		return nil, fmt.Errorf("lock the composefs repository: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// sync makes everything that was written to the repository durable.
func (r *Repo) sync() error {
	if err := unix.Syncfs(int(r.dir.Fd())); err != nil {
		return fmt.Errorf("sync the composefs repository: %w", err)
	}
	return nil
}

// symlink makes name, beneath the repository, a symlink to target, also beneath
// it, replacing one that is there.
func (r *Repo) symlink(name, target string) error {
	dir := path.Dir(name)
	if err := r.root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	link := relativeTo(dir, target)
	if old, err := r.root.Readlink(name); err == nil && old == link {
		return nil
	}
	tmp := dir + "/" + tempName()
	if err := r.root.Symlink(link, tmp); err != nil {
		return err
	}
	if err := r.root.Rename(tmp, name); err != nil {
		_ = r.root.Remove(tmp)
		return err
	}
	return nil
}

// relativeTo returns target as seen from dir; both are clean and relative to
// the same root.
func relativeTo(dir, target string) string {
	d, t := strings.Split(dir, "/"), strings.Split(target, "/")
	for len(d) > 0 && len(t) > 1 && d[0] == t[0] {
		d, t = d[1:], t[1:]
	}
	return strings.Repeat("../", len(d)) + strings.Join(t, "/")
}

func objectPath(d Digest) string {
	s := d.String()
	return "objects/" + s[:2] + "/" + s[2:]
}

// linked returns the object that the symlink name leads to, by its text.
func (r *Repo) linked(name string) (Digest, error) {
	target, err := r.root.Readlink(name)
	if err != nil {
		return "", err
	}
	parts := strings.Split(target, "/")
	if len(parts) < 3 || parts[len(parts)-3] != "objects" {
		return "", fault.New(fault.Corrupt, "", "%s leads to %.200q, which is no object", name, target)
	}
	d, err := ParseDigest(parts[len(parts)-2] + parts[len(parts)-1])
	if err != nil || d.Algorithm() != r.meta.alg {
		return "", fault.New(fault.Corrupt, "", "%s leads to %.200q, which is no object", name, target)
	}
	return d, nil
}

// objectDir is a directory of objects, xx/rest. The 256 directories in it are
// opened once, without following symlinks.
type objectDir struct {
	root *os.Root
	path string // beneath root

	mu   sync.Mutex
	top  *os.File
	dirs [256]*os.File
}

func (o *objectDir) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, d := range o.dirs {
		if d != nil {
			_ = d.Close()
			o.dirs[i] = nil
		}
	}
	if o.top != nil {
		_ = o.top.Close()
		o.top = nil
	}
}

// open returns the directory itself, made if it is missing and create is set.
func (o *objectDir) open(create bool) (*os.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.openTop(create)
}

func (o *objectDir) openTop(create bool) (_ *os.File, err error) {
	if o.top != nil {
		return o.top, nil
	}
	if create {
		if err := o.root.MkdirAll(o.path, 0o755); err != nil {
			return nil, err
		}
	}
	o.top, err = o.root.OpenFile(o.path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	return o.top, err
}

// sub returns the directory of the objects whose digest begins with first.
func (o *objectDir) sub(first byte, create bool) (*os.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.dirs[first]; d != nil {
		return d, nil
	}
	top, err := o.openTop(create)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%02x", first)
	fd, err := openat(top, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) && create {
		if err := unix.Mkdirat(int(top.Fd()), name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &fs.PathError{Op: "mkdir", Path: o.path + "/" + name, Err: err}
		}
		fd, err = openat(top, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: o.path + "/" + name, Err: err}
	}
	o.dirs[first] = os.NewFile(uintptr(fd), o.path+"/"+name)
	return o.dirs[first], nil
}

// openat does not follow a symlink in the last element.
func openat(dir *os.File, name string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
