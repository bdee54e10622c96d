// Package host is what an operator asks of a host: install it, move it to
// another image, bring it up to date, go back, look at it. It is the only
// package that knows the image source, the store and the boot entries, and
// joins them:
//
//	ocibridge ──► store (ostree │ composefs) ──► boot
//
// An operation takes the sysroot's lock, decides, checks that there is room,
// imports the image into the store, makes a deployment, and then either writes
// the boot entries (a sysroot that is not booted) or stages the deployment for
// shutdown (the booted one). The commit points are those of boot.Write and
// boot.Stage; an operation that fails or is cancelled before has changed
// nothing that boots, and what it left in the store is used by the next try or
// removed by Cleanup. What follows the commit point (history, published
// status, clean-up) never fails the operation.
//
// Every method of Host is for one goroutine.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// Progress is told how an operation goes.
type Progress interface {
	ocibridge.Progress
	// Step says that a task without bytes to count begins; task is one of
	// v1.TaskImporting and v1.TaskStaging.
	Step(task, description string)
}

// Config is what a Host works with. Zero fields take the machine's own.
type Config struct {
	// Sysroot is the directory that holds the store ("/"). It is written directly
	// unless it is the one that the machine is booted from.
	Sysroot string
	// Machine is the root of the running machine ("/"): its run/ and proc/
	// tell what is booted.
	Machine string
	// Images says how images are looked up. Progress and Logger are set here.
	Images   ocibridge.Options
	Clock    func() time.Time
	Log      *slog.Logger
	Progress Progress
	// Write opens a booted sysroot for writing where it is mounted read-only;
	// the process must have mounts of its own (internal/mountns).
	Write bool
	// ComposefsTool is a mkcomposefs program that writes composefs images, in
	// stores of sha256 digests; "" is kedge's own code, which writes the same.
	ComposefsTool string
	// AnyESP takes a directory on any file system for the EFI system partition,
	// for tests on machines whose kernel has no FAT.
	AnyESP bool
	// NoSync leaves out every sync, for tests.
	NoSync bool
}

func (c Config) withDefaults() Config {
	if c.Sysroot == "" {
		c.Sysroot = "/"
	}
	if c.Machine == "" {
		c.Machine = "/"
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = silent{}
	}
	c.Images.Progress, c.Images.Logger = c.Progress, c.Log
	return c
}

// closeQuietly closes what only holds descriptors and temporary files: a
// failure cannot undo what was done, and is logged.
func (c Config) closeQuietly(x io.Closer) {
	if err := x.Close(); err != nil {
		c.Log.Warn("on closing", "error", err)
	}
}

type silent struct{}

func (silent) Layers([]ocibridge.LayerProgress) {}
func (silent) Bytes(int, int64)                 {}
func (silent) Done(int)                         {}
func (silent) Step(string, string)              {}

// Host is an open sysroot.
type Host struct {
	cfg     Config
	backend *backend
	store   store
	root    *os.Root // the store's
}

// Open opens the sysroot that cfg names, with the backend that it has. A
// directory that is none is NotFound.
func Open(_ context.Context, cfg Config) (*Host, error) {
	cfg = cfg.withDefaults()
	b, err := findBackend(cfg)
	var store store
	if err == nil {
		store, err = b.open(cfg)
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.New(fault.Denied, "run the command as root", "%w", err)
	case errors.Is(err, fs.ErrNotExist) && fault.KindOf(err) == fault.Internal:
		return nil, fault.New(fault.NotFound, "kedge install to-filesystem makes a sysroot", "%w", err)
	case err != nil:
		return nil, err
	}
	return &Host{cfg: cfg, backend: b, store: store, root: store.Root()}, nil
}

// Close releases the lock, if it is held, and every descriptor.
func (h *Host) Close() { h.store.Close() }

// Booted reports whether the machine is booted from this sysroot, so that
// changes take effect at shutdown.
func (h *Host) Booted() bool { return h.store.Booted() }

// Waits reports whether the next boot takes a deployment that does not run yet.
func (h *Host) Waits(id string) bool {
	list, err := h.store.Deployments()
	if err != nil {
		return false
	}
	next := list.next()
	return next != nil && next.id == id && !next.booted
}

// lock makes this process the only writer and checks that it may write.
func (h *Host) lock(ctx context.Context) (unlock func(), err error) {
	if err := h.store.Lock(ctx); err != nil {
		if errors.Is(err, fs.ErrPermission) || fault.KindOf(err) == fault.Denied {
			return nil, fault.New(fault.Denied, "run as root; the sysroot must not be on a read-only medium", "%w", err)
		}
		return nil, err
	}
	if err := h.sweepSessions(); err != nil {
		h.cfg.Log.Warn("left-overs were not removed", "error", err)
	}
	return h.store.Unlock, nil
}

// lockList is lock, and the deployments as they are under it.
func (h *Host) lockList(ctx context.Context) (list deployments, unlock func(), err error) {
	if unlock, err = h.lock(ctx); err != nil {
		return nil, nil, err
	}
	if list, err = h.store.Deployments(); err != nil {
		unlock()
		return nil, nil, err
	}
	return list, unlock, nil
}

// followed returns the deployment whose intent an operation continues.
func (h *Host) followed() (*deployment, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	if d := list.followed(); d != nil {
		return d, nil
	}
	return nil, h.nothingDeployed()
}

func (h *Host) nothingDeployed() error {
	if n, err := unlisted(h.root, h.backend.deployments); err == nil && n > 0 {
		return errUnlisted(n)
	}
	return fault.New(fault.NotFound, "kedge install to-filesystem installs an image", "nothing is deployed in %s", h.cfg.Sysroot)
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
