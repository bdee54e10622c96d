// Package ostree reads and writes libostree repositories natively: objects,
// commits, refs, transactions, checkout, prune, fsck, bit for bit as libostree
// does, so that ostree, rpm-ostree and bootc work on what it wrote and the
// other way round.
//
// Modes: bare, bare-user and archive are read and written; bare-user-only and
// bare-split-xattrs are read. A host's /ostree/repo is bare.
//
// Everything is resolved beneath the repository's directory descriptor, and no
// symlink is followed inside it except the aliases below refs/.
//
// # Where the commit points are
//
// Objects are written to a staging directory below tmp/ and are nothing but
// cache until Txn.Commit. Commit syncs the file system, moves the objects to
// objects/ (those that are referred to first, commits last), syncs the
// directories, and only then renames each ref into place: that rename is the
// commit point of what the ref names. A crash before it leaves unreferenced,
// complete objects that Prune takes away; a crash in the staging phase leaves
// a staging directory that the next transaction of the same boot continues
// with, and one of a later boot throws away, because it cannot know what had
// reached the disk.
//
// Locks are libostree's: open file description locks on .lock (shared for a
// transaction, exclusive for Prune) and beside each staging directory.
package ostree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Checksum names an object.
type Checksum = object.Checksum

// Mode is how a repository stores file objects.
type Mode uint8

// The repository modes (core.mode in config).
const (
	Bare Mode = iota + 1
	BareUser
	Archive
	BareUserOnly
	BareSplitXattrs
)

var modeNames = map[Mode]string{
	Bare: "bare", BareUser: "bare-user", Archive: "archive-z2",
	BareUserOnly: "bare-user-only", BareSplitXattrs: "bare-split-xattrs",
}

// String returns the mode as it stands in config.
func (m Mode) String() string { return modeNames[m] }

func parseMode(s string) (Mode, error) {
	if s == "archive" {
		return Archive, nil
	}
	for m, name := range modeNames {
		if name == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown repository mode %q", s)
}

// ErrReadOnlyMode is wrapped by the error about writing to a repository of a
// mode that is only read.
var ErrReadOnlyMode = errors.New("repositories of this mode are only read")

// Repo is an open repository. It is safe for concurrent use.
type Repo struct {
	dir, objects, tmp *os.File
	path              string // for messages
	mode              Mode
	config            *Config
	bootID            string
	recent            atomic.Pointer[recentFiles]
}

// Open opens the repository in the directory path.
func Open(path string) (*Repo, error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	return open(dir, path)
}

// OpenAt opens the repository in the directory name beneath root.
func OpenAt(root *os.Root, name string) (*Repo, error) {
	dir, err := root.OpenFile(name, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, openError(filepath.Join(root.Name(), name), err)
	}
	return open(dir, filepath.Join(root.Name(), name))
}

func openError(path string, err error) error {
	err = fmt.Errorf("open the ostree repository %s: %w", path, err)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return &fault.Error{Kind: fault.NotFound, Hint: "is this a system with an ostree sysroot?", Err: err}
	}
	return err
}

func open(dir *os.File, path string) (*Repo, error) {
	r := &Repo{dir: dir, path: path}
	if err := r.open(); err != nil {
		_ = r.Close()
		err = fmt.Errorf("open the ostree repository %s: %w", path, err)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || fault.KindOf(err) == fault.Internal {
			return nil, fault.New(fault.Corrupt, "after an interrupted installation, install again; else restore what is missing there from a backup", "%w", err)
		}
		return nil, err
	}
	return r, nil
}

// open reads the configuration and opens the directories.
func (r *Repo) open() error {
	data, err := readFileAt(r.dir, "config", maxConfig)
	if err != nil {
		return err
	}
	if r.config, err = ParseConfig(data); err != nil {
		return err
	}
	if v := r.config.Text("core", "repo_version", ""); v != "1" {
		return fmt.Errorf("repository version %q instead of 1", v)
	}
	if r.mode, err = parseMode(r.config.Text("core", "mode", "bare")); err != nil {
		return err
	}
	if r.objects, err = openDirAt(r.dir, "objects"); err != nil {
		return err
	}
	if r.tmp, err = openDirAt(r.dir, "tmp"); err != nil {
		return err
	}
	r.bootID, err = bootID()
	return err
}

// Create makes a repository of a mode in the directory path, which may exist.
// On a repository of the same mode it only opens it.
func Create(path string, mode Mode) (*Repo, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("create the ostree repository %s: %w", path, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("create the ostree repository %s: %w", path, err)
	}
	defer root.Close()
	return CreateAt(root, ".", mode)
}

// CreateAt is Create in the directory name beneath root. The commit point is
// the rename of config, the last thing written.
func CreateAt(root *os.Root, name string, mode Mode) (*Repo, error) {
	if mode == BareSplitXattrs || mode == BareUserOnly {
		return nil, readOnly(mode)
	}
	fail := func(err error) (*Repo, error) {
		return nil, fmt.Errorf("create the ostree repository %s: %w", filepath.Join(root.Name(), name), err)
	}
	if err := root.MkdirAll(name, 0o755); err != nil {
		return fail(err)
	}
	repo, err := root.OpenRoot(name)
	if err != nil {
		return fail(err)
	}
	defer repo.Close()
	_, err = repo.Stat("config")
	switch {
	case err == nil:
		r, err := OpenAt(root, name)
		if err == nil && r.mode != mode {
			_ = r.Close()
			return fail(fmt.Errorf("there is one of the mode %s, not %s", r.mode, mode))
		}
		return r, err
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err)
	}
	for _, d := range []string{"objects", "tmp/cache", "extensions", "state", "refs/heads", "refs/mirrors", "refs/remotes"} {
		if err := repo.MkdirAll(d, 0o755); err != nil {
			return fail(err)
		}
	}
	config := "[core]\nrepo_version=1\nmode=" + mode.String() + "\n"
	if err := atomicfile.Write(repo, "config", []byte(config), 0o644); err != nil {
		return fail(err)
	}
	return OpenAt(root, name)
}

// Close releases the repository's descriptors.
func (r *Repo) Close() error {
	var errs []error
	for _, f := range []*os.File{r.dir, r.objects, r.tmp} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Mode returns the repository's mode.
func (r *Repo) Mode() Mode { return r.mode }

// Path returns the path that the repository was opened by, for messages.
func (r *Repo) Path() string { return r.path }

// Config returns the repository's configuration as it was when it was opened.
func (r *Repo) Config() *Config { return r.config }

// SetConfig replaces the repository's configuration by one rename.
func (r *Repo) SetConfig(c *Config) error {
	if err := r.replaceFile("config", c.Encode(), 0o644); err != nil {
		return fmt.Errorf("write the configuration of %s: %w", r.path, err)
	}
	r.config = c
	return nil
}

// sidePrefix starts the names of files in tmp/ that are about to be renamed
// over another.
const sidePrefix = ".kedge-"

// replaceFile writes name beneath the repository's directory: a temporary file
// in tmp/, fsync, rename, fsync of the directory.
func (r *Repo) replaceFile(name string, data []byte, perm uint32) error {
	tmp, err := newTemp(r.tmp, perm)
	if err != nil {
		return err
	}
	defer tmp.discard()
	if _, err = tmp.Write(data); err != nil {
		return err
	}
	if err = unix.Fchmod(tmp.fd(), perm); err != nil {
		return err
	}
	if err := r.fsync(tmp.File); err != nil {
		return err
	}
	side := sidePrefix + randomName()
	if err := tmp.link(r.tmp, side); err != nil {
		return err
	}
	if err := unix.Renameat(int(r.tmp.Fd()), side, int(r.dir.Fd()), name); err != nil {
		_ = unix.Unlinkat(int(r.tmp.Fd()), side, 0)
		return &fs.PathError{Op: "rename", Path: name, Err: err}
	}
	d, err := openDirAt(r.dir, filepath.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return r.fsync(d)
}

func (r *Repo) fsync(f *os.File) error {
	if !r.config.Bool("core", "fsync", true) {
		return nil
	}
	return f.Sync()
}

func readOnly(m Mode) error {
	return &fault.Error{
		Kind: fault.Conflict, Hint: "use a repository of the mode bare, bare-user or archive",
		Err: fmt.Errorf("write to a repository of the mode %s: %w", m, ErrReadOnlyMode),
	}
}

func (r *Repo) checkWritable() error {
	if r.mode == BareSplitXattrs || r.mode == BareUserOnly {
		return readOnly(r.mode)
	}
	return nil
}

// bootID identifies the running boot. libostree's OSTREE_BOOTID counts, so
// that both take the same staging directories for those of this boot.
func bootID() (string, error) {
	if id := os.Getenv("OSTREE_BOOTID"); id != "" && !strings.ContainsAny(id, "/\x00") {
		return id, nil
	}
	f, err := os.Open("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
