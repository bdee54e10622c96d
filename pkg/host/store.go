package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/boot/usroverlay"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// store is a backend: where roots are kept, and how they come to boot. Only a
// backend's own files know what a root is there (a commit, an image with its
// fs-verity digest) and what leads to it.
//
// Every method that changes something needs the lock. Those that are said to
// have a commit point make their change there at once: before it the sysroot
// boots what it did, behind it what was asked for.
type store interface {
	// Name is the backend's name as status shows it.
	Name() string
	// Root is the directory that holds the store, the physical root. It is valid
	// until Close.
	Root() *os.Root
	// StateDir is kedge's own directory beside the store, beneath Root.
	StateDir() string
	// Booted reports whether the machine runs from this store.
	Booted() bool
	// Problems are what is wrong with the sysroot and was passed over.
	Problems() []error
	// Warnings are what status says of the deployments together.
	Warnings(list deployments) []string
	Close()
	etcStore
	// UsrLayers says where an overlay on the /usr of a deployment lies, and
	// MarkUnlocked tells other programs that there is one, until the reboot.
	UsrLayers(ctx context.Context, d *deployment) usroverlay.Layers
	MarkUnlocked(d *deployment, readOnly bool) error

	// Lock excludes every other writer, other programs too, until Unlock, and
	// clears up after one that died.
	Lock(ctx context.Context) error
	Unlock()
	// Interrupted reports that Lock found what a writer that died had begun.
	Interrupted() bool

	Deployments() (deployments, error)
	// Describe fills in what status says of a deployment of this backend alone.
	Describe(d *deployment, e *v1.BootEntry)
	// OpenDeployment opens the directories in which /etc and /var of a
	// deployment lie: the first holds etc, the second is /var.
	OpenDeployment(d *deployment) (root, vardir *os.Root, err error)
	// ImageKargs are the kernel arguments that a deployment's image brings itself.
	ImageKargs(ctx context.Context, d *deployment) (karg.Args, error)
	// NoteUpdate notes an image that is newer than that of a deployment.
	NoteUpdate(ctx context.Context, d *deployment, i *imageInfo) error

	// CheckVerity refuses roots that the backend means to be guarded by fs-verity
	// and that would not be, unless that is allowed, or was for base.
	CheckVerity(base *deployment, allow bool) error
	// HasLayer reports whether a layer need not be fetched. It writes nothing.
	HasLayer(l imageLayer) bool
	// Import brings an image into the store under the name ref and returns its
	// root. Layers that were fetched before a failure are kept for the next try.
	// An image with packages has no name, and base is the root that they were put
	// on; for any other base is "".
	Import(ctx context.Context, src *ocibridge.Source, ref ocibridge.Reference, base string) (root string, err error)
	// Base returns the root and the image that a deployment's packages were put
	// on: its own where it has none. NotFound where the store lacks it.
	Base(d *deployment) (root string, i *imageInfo, err error)
	// Mount puts the files of a root at dir, an empty directory beneath Root, for
	// as long as the calling thread's mount namespace and dir last, and says where
	// in it the defaults of /etc are ("" for etc).
	Mount(ctx context.Context, root, dir string) (etc string, err error)
	// Images are the images in the store, those that only a deployment keeps too.
	Images(list deployments) ([]v1.StoredImage, error)
	// FindImage returns the root of an image by its digest or its reference;
	// NotFound where the store has none.
	FindImage(name string) (root string, err error)
	// Tree reads the files of a root.
	Tree(ctx context.Context, root string) (*fstree.Tree, error)
	// Exists reports whether a root has a path; a symlink in the middle of it
	// leads nowhere.
	Exists(root, name string) (bool, error)
	// SameContent reports whether two regular files of Tree, of one size, have
	// the same bytes.
	SameContent(a, b *fstree.Inode) (bool, error)
	// OpenFile opens a regular file of a Tree that was read from this store.
	OpenFile(n *fstree.Inode) (io.ReadCloser, error)
	// BootsUKI reports whether a deployment of a root would boot a unified kernel
	// image, which is signed with the root and the kernel arguments that it has.
	BootsUKI(ctx context.Context, root string) (bool, error)
	// KernelDirs matches the directories of kernels beneath the boot directory.
	KernelDirs() string

	// LoaderDirs match the directories of kernels, and unified kernel images, in
	// what Loader reads.
	LoaderDirs() []string
	// Prunable returns the bytes of kernels, in /boot and in what Loader reads,
	// that go before a new deployment comes where there is no room for both.
	Prunable() (boot, loader int64, err error)
	// Loader is what the boot loader of the host reads.
	Loader() loader.Loader
	// Bless has Loader, a loader.Counter, not count the booted deployment any more.
	Bless(ctx context.Context) error
	// UseLoader replaces it, in a sysroot that has no deployment yet. The store
	// closes it.
	UseLoader(l loader.Loader, r loader.Record)
	// InitStateroot makes a stateroot; one that is there is used as it is.
	InitStateroot(name string) error
	// Deploy makes a root what the next boot takes and returns the deployment.
	// On the booted host it is staged. It has a commit point.
	Deploy(ctx context.Context, r deployRequest) (*deployment, error)
	// Retain says what stays when a new deployment becomes the default, beside
	// what always does: what runs, what the new one continues, what is pinned and
	// what is of another stateroot.
	Retain(list deployments)
	// SetDefault makes a deployment that is there what the next boot takes; all
	// others keep their order, and a staged one is discarded. It has a commit
	// point.
	SetDefault(ctx context.Context, d *deployment) error
	// Remove takes deployments out of the boot menu. It has a commit point.
	Remove(ctx context.Context, gone ...*deployment) error
	// SetPinned pins a deployment or unpins it.
	SetPinned(d *deployment, pinned bool) error
	// Release lets shutdown finalise the staged deployment.
	Release() error
	// Finalize puts in place what kedge staged, at shutdown, and returns the
	// deployment's id; "" where there was nothing to do. A failure leaves the
	// old default and is told by FinalizeFailure from then on.
	Finalize(ctx context.Context) (id string, err error)
	// FinalizeFailure says why the last finalisation failed; "" where none did
	// since the last that went well.
	FinalizeFailure() string

	// Settle gives back what an interrupted change left for the next try, where
	// nothing has to be changed any more.
	Settle(ctx context.Context) error
	// Sweep removes what no deployment needs, where something went that may
	// have left some; SweepAll looks for it in any case.
	Sweep(ctx context.Context) (swept, error)
	SweepAll(ctx context.Context) (swept, error)
	// Fsck checks every object and every deployment, and returns how what is
	// damaged may be repaired; nil where there is nothing to repair.
	Fsck(ctx context.Context) (*v1.Check, repairFunc, error)
}

// deployRequest says what a new deployment is made of.
type deployRequest struct {
	root string
	// ref is recorded as what upgrades follow; nil keeps the origin of base.
	ref *ocibridge.Reference
	// base is the deployment whose intent is continued: origin and kernel
	// arguments. /etc always comes from what runs, or would run. nil: the first
	// deployment of its stateroot.
	base      *deployment
	stateroot string
	// packages are recorded with ref; nil for none.
	packages *packageRecord
	// kargs replace those of base; nil keeps them, with what the images bring
	// set off against each other.
	kargs karg.Args
	// userKargs are those of them that a user set; nil keeps what base says.
	userKargs karg.Args
	// hold stages, and leaves it to a later release to be finalised.
	hold bool
	// allowMissingVerity: a root that nothing vouches for is better than none.
	allowMissingVerity bool
	// sign returns what signs unified kernel images on this host; nil for none.
	sign func() (uki.Signer, error)
}

// swept is what a clean-up removed from the store.
type swept struct {
	objects int
	bytes   int64
}

// requirement is one of several paths, and what becomes of a root that has none.
type requirement struct {
	what, consequence string
	paths             []string
}

// met reports whether one of the paths is there.
func (r requirement) met(has func(path string) (bool, error)) (bool, error) {
	for _, p := range r.paths {
		if ok, err := has(p); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// backend is a kind of store.
type backend struct {
	name string
	// dir is what a sysroot of this backend has, beneath the physical root; the
	// directory is touched at every change of the deployments.
	dir string
	// deployments matches the directories of deployments there.
	deployments string
	// marker is the file beneath the machine's root that says what is staged.
	marker string
	// own are the names that a sysroot may have at its top beside a new file
	// system's.
	own []string
	// needs is what an image must bring to boot from the backend.
	needs requirement
	// initialise makes cfg.Sysroot a sysroot without deployments. What is there
	// of one already stays.
	initialise func(cfg Config, o InstallOptions) error
	open       func(cfg Config) (store, error)
}

var backends = []*backend{ostreeBackend, composefsBackend}

func backendNamed(name string) (*backend, error) {
	names := make([]string, len(backends))
	for i, b := range backends {
		if names[i] = b.name; b.name == name {
			return b, nil
		}
	}
	return nil, fault.New(fault.Usage, "use --backend "+strings.Join(names, ", ")+" or "+AutoBackend, "backend %q: there is no such one", name)
}

// physical returns the directory that holds the stores: the sysroot, or where
// that is the root of a booted machine, its /sysroot.
func (b *backend) physical(cfg Config) string { return physical(cfg, b.dir) }

func physical(cfg Config, dir string) string {
	inner := filepath.Join(cfg.Sysroot, "sysroot")
	if _, err := os.Stat(filepath.Join(inner, dir)); err == nil {
		return inner
	}
	return cfg.Sysroot
}

// findBackend returns the backend that a sysroot has; NotFound for none.
func findBackend(cfg Config) (*backend, error) {
	if err := cfg.checkInside(); err != nil {
		return nil, err
	}
	var there []*backend
	var denied error
	for _, b := range backends {
		_, err := os.Stat(filepath.Join(b.physical(cfg), b.dir))
		switch {
		case err == nil:
			there = append(there, b)
		case errors.Is(err, fs.ErrPermission):
			denied = err
		}
	}
	switch {
	case len(there) == 1:
		return there[0], nil
	case len(there) > 1:
		return choose(cfg, there), nil
	case denied != nil:
		return nil, denied
	}
	if _, err := os.Stat(cfg.Sysroot); err != nil {
		return nil, fmt.Errorf("open the sysroot: %w", err)
	}
	hint := "kedge install to-filesystem makes a sysroot"
	if cfg.onMachine() {
		hint = "this machine does not run from an image; --sysroot DIR names a host that is mounted at DIR"
	}
	return nil, fault.New(fault.NotFound, hint, "open the sysroot %s: there is neither %s nor %s", cfg.Sysroot, ostreeBackend.dir, composefsBackend.dir)
}

// choose tells which of several backends in one sysroot boots: what the kernel
// command line of the machine says, or else whose boot entries there are:
// libostree's loader directory is a symlink, always.
func choose(cfg Config, there []*backend) *backend {
	named := func(name string) *backend {
		if i := slices.IndexFunc(there, func(b *backend) bool { return b.name == name }); i >= 0 {
			return there[i]
		}
		return there[0]
	}
	if cfg.onMachine() {
		if cmdline, err := os.ReadFile(filepath.Join(cfg.Machine, "proc/cmdline")); err == nil {
			if len(karg.Parse(string(cmdline)).Values("ostree")) > 0 {
				return named("ostree")
			}
			return named("composefs")
		}
	}
	if _, err := os.Readlink(filepath.Join(cfg.Sysroot, "boot/loader")); err == nil {
		return named("ostree")
	}
	return named("composefs")
}

func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// generation identifies the state of the deployments: every program touches the
// backend's directory at every change, and the marker says what is staged.
func (b *backend) generation(cfg Config) string {
	mtime := func(path string) string {
		st, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return hidden
		case err != nil:
			return "-"
		}
		return fmt.Sprint(st.ModTime().UnixNano())
	}
	return mtime(filepath.Join(b.physical(cfg), b.dir)) + "/" + mtime(filepath.Join(cfg.Machine, b.marker))
}

// hidden stands in a generation for what the user may not look at.
const hidden = "?"
