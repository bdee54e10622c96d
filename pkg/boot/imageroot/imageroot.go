// Package imageroot is the sysroot of the composefs backend: deployments that
// are images, with the boot entries that lead to them, in the layout that
// bootc's composefs backend has, so that bootc reads and continues what kedge
// wrote and the other way round. It stands beside package boot, which is the
// sysroot of the ostree backend. Facts of the layout: crates/lib/src/
// bootc_composefs and parsers/bls_config.rs of bootc 1.16.9.
//
//	/sysroot/composefs/                        the repository, its owner's
//	/sysroot/state/deploy/DIGEST/etc/          a deployment's /etc, whole
//	/sysroot/state/deploy/DIGEST/var           -> ../../os/default/var
//	/sysroot/state/deploy/DIGEST/DIGEST.origin what it came from
//	/sysroot/state/os/default/var/             /var of all of them
//	/sysroot/state/kedge/                      kedge's own
//	/boot/loader/entries/                      the entries in use; see menu.go
//	/boot/loader/entries.staged/               those that come with the shutdown
//	/boot/bootc_composefs-DIGEST/              vmlinuz and initrd
//	/boot/EFI/Linux/bootc/…-DIGEST.efi         a unified kernel image; see uki.go
//	/boot/EFI/Linux/kedge/SUM/…-DIGEST.efi     one that was made here; see uki_local.go
//	/run/composefs/staged-deployment           what shutdown finalises
//
// DIGEST is the fs-verity digest of the image. The kernel and initrd of several
// deployments stand once, under the digest of the first that had them.
//
// A deployment is a boot entry. Two entries with one digest, of which each has
// its own kernel arguments, have one state directory and so one /etc, one
// origin and one pin between them; Deployment.SharesState says so.
//
// A change goes through two calls, as in package boot. Deploy makes a state
// directory that nothing points to; Write makes a new list of deployments the
// one that boots. Write has the only commit point there is: the exchange of
// /boot/loader/entries for a directory that was filled beside it. On a booted
// host Stage does what Deploy does and leaves a marker; Finalize, run at
// shutdown, brings /etc up to date and calls Write.
//
// Whatever is not reached from the list in use is garbage: Cleanup removes it.
// The package never touches boot entries of others, never writes to the state
// of the booted deployment but for its origin, and never removes that.
package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/kedge-os/kedge/internal/mountns"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Repo is what the sysroot needs of the repository in /sysroot/composefs.
type Repo interface {
	// Tree returns the files of the image with that fs-verity digest. An image
	// that is not there is NotFound.
	Tree(ctx context.Context, digest string) (*fstree.Tree, error)
	// Open reads a regular file of a tree that Tree returned.
	Open(ctx context.Context, n *fstree.Inode) (io.ReadCloser, error)
	// UKI opens the unified kernel image that came with the image of that digest;
	// nil where none did.
	UKI(ctx context.Context, digest string) (UKIFile, error)
}

// Options are the surroundings of a Sysroot. Zero values stand for the machine
// the program runs on.
type Options struct {
	Repo   Repo
	Logger *slog.Logger
	Clock  func() time.Time
	// Host is the root of the machine the program runs on ("/"): its run/, proc/
	// and sysroot/ tell whether the sysroot is the booted one.
	Host string
	// NoSync leaves out every sync and freeze: for tests, and for the negative
	// control of a power-cut proof.
	NoSync bool
	// StartFinalizer, when set, makes sure before anything is staged that
	// finalisation will run at shutdown.
	StartFinalizer func(context.Context) error
	// Mount mounts the image with that digest at a directory, read-only, for as long
	// as the calling thread's mount namespace lasts. It is for the program that
	// rebuilds a SELinux policy.
	Mount func(ctx context.Context, digest, dir string) error
	// Writable makes the file systems of a booted sysroot writable where they
	// are mounted read-only; the process then needs a mount namespace of its
	// own (internal/mountns).
	Writable bool
	// Arch is the architecture that kargs.d files are matched against
	// (karg.Arch()).
	Arch string
	// Loader is what the machine's boot loader reads; nil: it reads /boot. Close
	// closes it.
	Loader loader.Loader
	// Tries is how often Loader tries a new deployment before the next one; 0: it
	// does not count.
	Tries uint64
}

// The layout beneath the sysroot.
const (
	repoDir   = "composefs"
	deployDir = "state/deploy"
	varDir    = "state/os/default/var"
	// varLink is what a deployment's var leads to.
	varLink = "../../os/default/var"
	// stateDir is kedge's own.
	stateDir = "state/kedge"
)

// KernelDirs matches the directories of kernels beneath the boot directory.
const KernelDirs = kernelPrefix + "*"

// Sysroot is an open sysroot with its list of deployments as of the last Load.
// It is for one goroutine.
type Sysroot struct {
	opts Options
	log  *slog.Logger

	root *os.Root // holds composefs/ and state/
	boot *os.Root // holds loader/ and the kernels; nil: no boot directory
	host *os.Root // the running machine's root

	loader loader.Loader
	booted *bootedRoot // nil: not the sysroot the machine runs from
	lock   *os.File
	guard  *os.File               // see keepFromGC
	keep   func(*Deployment) bool // see Retain

	list     []*Deployment
	problems []error
	told     []string          // problems that were logged
	merged   []etcmerge.Change // of the last merge of /etc
	// droppedPCRs: see DroppedPCRs
	droppedPCRs bool
	// mentioned are the digests and kernel directories that any entry names,
	// also one that is not understood: they are no garbage.
	mentioned map[string]bool
}

// Init makes an empty directory a sysroot without deployments: state and boot.
// The repository is its owner's.
func Init(path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("initialise the sysroot: %w", err)
	}
	defer root.Close()
	for _, dir := range []string{deployDir, varDir, stateDir, "boot"} {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("initialise the sysroot %s: %w", path, err)
		}
	}
	return nil
}

// Open opens the sysroot at path and loads its deployments. For the booted
// sysroot, by whichever of its names ("/", "/sysroot"), Booted and Staged tell
// the machine's state. A directory without state/deploy is NotFound.
func Open(path string, o Options) (*Sysroot, error) {
	if o.Host == "" {
		o.Host = "/"
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Arch == "" {
		o.Arch = karg.Arch()
	}
	if o.Loader == nil {
		o.Loader = loader.None{}
	}
	s := &Sysroot{opts: o, log: o.Logger, loader: o.Loader}
	if err := s.open(path); err != nil {
		s.Close()
		return nil, fmt.Errorf("open the sysroot %s: %w", path, err)
	}
	if err := s.Load(); err != nil {
		s.Close()
		return nil, fmt.Errorf("load the sysroot %s: %w", path, err)
	}
	return s, nil
}

func (s *Sysroot) open(path string) (err error) {
	if s.host, err = os.OpenRoot(s.opts.Host); err != nil {
		return err
	}
	if s.booted, err = s.findBooted(path); err != nil {
		return err
	}
	rootPath, bootPath := path, filepath.Join(path, "boot")
	if s.booted != nil {
		rootPath, bootPath = s.booted.physical, s.booted.boot
		if s.opts.Writable {
			for _, p := range []string{rootPath, bootPath} {
				if err := mountns.Writable(p); err != nil {
					return err
				}
			}
		}
	}
	if s.root, err = os.OpenRoot(rootPath); err != nil {
		return err
	}
	st, err := s.root.Stat(deployDir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return fault.New(fault.NotFound, "kedge install to-filesystem --backend composefs makes one", "no %s directory there", deployDir)
	}
	if err != nil {
		return err
	}
	if s.onLoader() {
		s.boot = s.loader.Root()
		return nil
	}
	s.boot, err = os.OpenRoot(bootPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Close releases the lock and every descriptor.
func (s *Sysroot) Close() {
	s.Unlock()
	s.loader.Close()
	for _, r := range []*os.Root{s.root, s.boot, s.host} {
		if r != nil {
			_ = r.Close()
		}
	}
}

// Root returns the directory that holds composefs/ and state/. It is valid
// until Close.
func (s *Sysroot) Root() *os.Root { return s.root }

// Loader returns what the machine's boot loader reads.
func (s *Sysroot) Loader() loader.Loader { return s.loader }

// UseLoader replaces the loader of a sysroot without deployments; Options.Loader
// says what it is.
func (s *Sysroot) UseLoader(l loader.Loader) {
	s.loader.Close()
	if s.loader = l; s.onLoader() {
		_ = s.boot.Close()
		s.boot = l.Root()
	}
}

// IsBooted reports whether this is the sysroot that the machine runs from.
func (s *Sysroot) IsBooted() bool { return s.booted != nil }

// Deployments returns the deployments, the default first; a staged one stands
// before all others. The slice may be changed, the deployments may not.
func (s *Sysroot) Deployments() []*Deployment {
	return append([]*Deployment(nil), s.list...)
}

// Problems returns what Load found wrong and passed over: entries without
// their deployment, broken origins.
func (s *Sysroot) Problems() []error { return s.problems }

// Booted returns the deployment that the machine runs from, or nil.
func (s *Sysroot) Booted() *Deployment {
	return s.first(func(d *Deployment) bool { return d.Booted })
}

// Staged returns the deployment that is finalised at shutdown, or nil.
func (s *Sysroot) Staged() *Deployment {
	return s.first(func(d *Deployment) bool { return d.Staged })
}

// MergeFor returns the deployment whose /etc and kernel arguments a new one
// continues: the booted one, else the first; nil where there is none.
func (s *Sysroot) MergeFor() *Deployment {
	if b := s.Booted(); b != nil {
		return b
	}
	return s.first(func(d *Deployment) bool { return !d.Staged })
}

func (s *Sysroot) first(match func(*Deployment) bool) *Deployment {
	for _, d := range s.list {
		if match(d) {
			return d
		}
	}
	return nil
}

// bootDir returns the boot directory or what to do about its absence.
func (s *Sysroot) bootDir() (*os.Root, error) {
	if s.boot == nil {
		return nil, fault.New(fault.NotFound, "make the directory boot in the sysroot, or mount it", "the sysroot has no boot directory")
	}
	return s.boot, nil
}
