// Package boot is the sysroot of the ostree backend: stateroots, deployments
// and the boot entries that lead to them, in libostree's own layout, so that
// ostree, bootc and rpm-ostree read and continue what kedge wrote and the
// other way round. Facts of the layout: ostree-sysroot.c,
// ostree-sysroot-deploy.c and ostree-sysroot-cleanup.c of libostree.
//
//	/ostree/deploy/STATEROOT/var                       shared by its deployments
//	/ostree/deploy/STATEROOT/deploy/CSUM.SERIAL/       a deployment
//	/ostree/deploy/STATEROOT/deploy/CSUM.SERIAL.origin what it came from
//	/ostree/boot.V -> boot.V.S                         the farm in use
//	/ostree/boot.V.S/STATEROOT/BOOTCSUM/N -> deployment
//	/boot/loader -> loader.V                           the entries in use
//	/boot/loader.V/entries/ostree-N.conf
//	/boot/ostree/STATEROOT-BOOTCSUM/                   kernel and initramfs
//	/run/ostree/staged-deployment                      what shutdown finalises
//
// A change goes through two calls. Deploy makes a deployment directory that
// nothing points to; Write makes a new list of deployments the one that boots.
// Write has the only two commit points there are: the rename of /boot/loader,
// or, when no boot entry changes, of /ostree/boot.V. On a booted host Stage
// does what Deploy does and leaves a marker; Finalize, run at shutdown, brings
// /etc up to date and calls Write.
//
// Whatever is not reached from the list in use is garbage: Cleanup removes it,
// also what a killed process left behind. The package never touches boot
// entries of others, never writes to a booted deployment, and never removes
// the booted deployment.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/mountns"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Repo is what the sysroot needs of the repository in /ostree/repo.
type Repo interface {
	// Checkout makes the directory name in parent and fills it with the
	// commit's tree as hardlinks into the repository.
	Checkout(ctx context.Context, commit string, parent *os.Root, name string) error
	// CommitVersion returns the commit's "version" metadata, "" where there is
	// none. A commit that is not there is fs.ErrNotExist.
	CommitVersion(commit string) (string, error)
	// Refs returns the refs whose names begin with prefix.
	Refs(prefix string) (map[string]string, error)
	// SetRefs writes refs; an empty commit removes one.
	SetRefs(ctx context.Context, refs map[string]string) error
}

// Options are the surroundings of a Sysroot. Zero values stand for the machine
// the program runs on.
type Options struct {
	Repo   Repo
	Logger *slog.Logger
	Clock  func() time.Time
	// Host is the root of the machine the program runs on ("/"): its run/,
	// proc/ and sysroot/ tell whether the sysroot is the booted one.
	Host string
	// NoSync leaves out every sync and freeze. For tests, and for the negative
	// control of the power-cut proof: a sysroot written so survives no crash.
	NoSync bool
	// StartFinalizer, when set, makes sure before anything is staged that
	// finalisation will run at shutdown.
	StartFinalizer func(context.Context) error
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
	// Token tells the sysroot's entries from those of others in what Loader
	// writes (loader.Record).
	Token string
	// Tries is how often Loader tries a new deployment before the next one; 0: it
	// does not count.
	Tries uint64
}

// Sysroot is an open sysroot with its list of deployments as of the last Load.
// It is for one goroutine.
type Sysroot struct {
	opts Options
	log  *slog.Logger
	// again names what WithDefault made the default, whose tries begin anew where
	// they are used up.
	again string
	// good names the deployment that Bless found good.
	good string
	keep func(*Deployment) bool // see Retain

	root *os.Root // holds ostree/
	boot *os.Root // holds loader and ostree/STATEROOT-BOOTCSUM; nil: no boot directory
	host *os.Root // the running machine's root

	loader   loader.Loader
	booted   *bootedRoot // nil: not the sysroot the machine runs from
	lock     *os.File
	version  int // V of boot.V and loader.V
	sub      int // S of boot.V.S
	list     []*Deployment
	problems []error
	told     []string          // problems that were logged
	merged   []etcmerge.Change // of the last merge of /etc
}

// Init makes an empty directory a sysroot without deployments: ostree/deploy
// and boot. The repository is its owner's.
func Init(path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("initialise the sysroot: %w", err)
	}
	defer root.Close()
	for _, dir := range []string{"ostree/deploy", "boot"} {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("initialise the sysroot %s: %w", path, err)
		}
	}
	return nil
}

// Open opens the sysroot at path and loads its deployments. For the booted
// sysroot, by whichever of its names ("/", "/sysroot"), Booted and Staged tell
// the machine's state. A directory without ostree/deploy is NotFound.
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
		rootPath, bootPath = s.booted.physical, filepath.Join(s.opts.Host, "boot")
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
	st, err := s.root.Stat("ostree/deploy")
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return fault.New(fault.NotFound, "kedge install to-filesystem makes one", "no ostree/deploy directory there")
	}
	if err != nil {
		return err
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

// Root returns the directory that holds ostree/. It is valid until Close.
func (s *Sysroot) Root() *os.Root { return s.root }

// Loader returns what the machine's boot loader reads.
func (s *Sysroot) Loader() loader.Loader { return s.loader }

// UseLoader replaces the loader of a sysroot without deployments; Options.Loader
// and Options.Token say what they are.
func (s *Sysroot) UseLoader(l loader.Loader, token string) {
	s.loader.Close()
	s.loader, s.opts.Token = l, token
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

// MergeFor returns the deployment whose /etc and kernel arguments a new one of
// the stateroot continues: the booted one if it is of that stateroot, else the
// first in the list; nil where there is none.
func (s *Sysroot) MergeFor(stateroot string) *Deployment {
	if b := s.Booted(); b != nil && b.Stateroot == stateroot {
		return b
	}
	return s.first(func(d *Deployment) bool { return d.Stateroot == stateroot && !d.Staged })
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

// statOf returns the inode at name, symlinks followed within root.
func statOf(root *os.Root, name string) (*unix.Stat_t, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return &st, nil
}
