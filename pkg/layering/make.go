package layering

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// spaceEvery is how often a transaction's use of space is looked at.
const spaceEvery = 50 * time.Millisecond

// Make installs the lock on the base and returns what changed. Fetch must have
// come before. The layer's file is the session's; it goes with the next Make, or
// with Close.
//
// Errors: Conflict for a scriptlet that fails and for a transaction whose
// database is not what the lock says.
func (s *Session) Make(ctx context.Context, lock *Lock) (layer *Layer, err error) {
	if lock.Engine != s.engine.name() {
		return nil, fault.New(fault.Conflict, "remove the packages, or stay with an image of the same package manager",
			"the packages were chosen by %s, and the base has %s", lock.Engine, s.engine.name())
	}
	err = s.do(func() error {
		if layer, err = s.attempt(ctx, lock); err != nil {
			return err
		}
		// Scriptlets choose numbers that are free in the image; the host may have
		// given them away, or know the names under others.
		fixed, err := s.hostNumbers(layer.Accounts)
		if err != nil || fixed == nil {
			return err
		}
		again := *lock
		again.Accounts = fixed
		layer, err = s.attempt(ctx, &again)
		return err
	})
	if err != nil {
		return nil, err
	}
	return layer, nil
}

func (s *Session) attempt(ctx context.Context, lock *Lock) (*Layer, error) {
	// What an earlier call made, or began.
	if err := errors.Join(os.RemoveAll(s.path(txUpper)), os.RemoveAll(s.path(layerFile))); err != nil {
		return nil, err
	}
	mnt, err := s.stack(txUpper, prepUpper)
	if err != nil {
		return nil, err
	}
	layer, err := s.makeLayer(ctx, mnt, lock)
	return layer, errors.Join(err, unstack(mnt))
}

func (s *Session) makeLayer(ctx context.Context, mnt string, lock *Lock) (*Layer, error) {
	merged, err := os.OpenRoot(mnt)
	if err != nil {
		return nil, err
	}
	defer merged.Close()
	started := time.Now()
	if err := s.engine.adapt(merged); err != nil {
		return nil, err
	}
	users, err := readAccounts(merged)
	if err != nil {
		return nil, err
	}
	if err := createAccounts(merged, lock.Accounts); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(s.path(bootUpper)), os.Mkdir(s.path(bootUpper), 0o755)); err != nil {
		return nil, err
	}
	b := &box{s: s, root: mnt, writable: true}
	layer := &Layer{Path: s.path(layerFile)}
	var before []Package
	if lock.changesPackages() {
		if before, err = s.engine.query(ctx, b); err != nil {
			return nil, err
		}
		if layer.Output, err = s.transact(ctx, b, lock); err != nil {
			return nil, err
		}
	}
	cs, err := s.collect(started)
	if err != nil {
		return nil, err
	}
	// Before anything else runs in a root that may not be one any more.
	if err := intact(cs); err != nil {
		return nil, err
	}
	if lock.changesPackages() {
		after, err := s.engine.query(ctx, b)
		if err != nil {
			return nil, err
		}
		if err := checkDatabase(before, lock, after); err != nil {
			return nil, err
		}
	}
	base, err := os.OpenRoot(s.base.Root)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	guarded, done := s.guardSpace(ctx)
	kernel := &kernelFixer{s: s, box: b, base: base, merged: merged, cs: cs, want: lock.Initramfs}
	changed, err := kernel.run(guarded)
	done()
	if err != nil {
		return nil, err
	}
	if changed {
		if cs, err = s.collect(started); err != nil {
			return nil, err
		}
	}
	now, err := readAccounts(merged)
	if err != nil {
		return nil, err
	}
	layer.Accounts = newAccounts(users, now)
	t := &tidier{cs: cs, base: base, merged: merged, engine: s.engine, layer: layer}
	if err := t.run(); err != nil {
		return nil, err
	}
	if err := s.nameOwners(ctx, b, layer.Factory); err != nil {
		return nil, err
	}
	layer.DiffID, layer.Size, err = writeLayer(cs, s.epoch(), layer.Path)
	return layer, err
}

// nameOwners says which packages the first of some files are of. Each takes a run
// of the package manager.
func (s *Session) nameOwners(ctx context.Context, b *box, files []VarFile) (err error) {
	const most = 8
	for i := range files[:min(most, len(files))] {
		if files[i].Package, err = s.engine.owner(ctx, b, files[i].Path); err != nil {
			return err
		}
	}
	return nil
}

// transact runs the package manager on the root of a box, and returns what was
// said.
func (s *Session) transact(ctx context.Context, b *box, lock *Lock) (string, error) {
	tx := *b
	empty, err := s.cacheDir(s.path("cache"))
	if err != nil {
		return "", err
	}
	packages := filepath.Join(s.opt.Cache, "packages")
	if err := os.MkdirAll(packages, 0o755); err != nil {
		return "", err
	}
	tx.binds = []bind{empty, {from: packages, to: boxPackages}, {from: s.path(bootUpper), to: "/boot", writable: true}}
	guarded, done := s.guardSpace(ctx)
	defer done()
	said, err := s.engine.transact(guarded, &tx, lock)
	s.journal(said, err != nil)
	return said, err
}

// guardSpace ends what runs with the returned context when the file system
// gets fuller than Options.Reserve says: scriptlets may write what they like,
// and the host has other things to store.
func (s *Session) guardSpace(ctx context.Context) (context.Context, func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	look := func() {
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err == nil && st.Bavail*uint64(st.Bsize) < s.opt.Reserve {
			cancel(fault.New(fault.NoSpace, "free some space, or leave the package out", "the transaction left less than %d MB free in %s", s.opt.Reserve>>20, s.opt.Work))
		}
	}
	look()
	go func() {
		defer close(ended)
		every := time.NewTicker(spaceEvery)
		defer every.Stop()
		for {
			select {
			case <-guarded.Done():
				return
			case <-every.C:
				look()
			}
		}
	}()
	return guarded, func() {
		cancel(nil)
		<-ended
	}
}

// collect reads the transaction's changes.
func (s *Session) collect(started time.Time) (changes, error) {
	c := &collector{out: make(changes), started: started, ended: time.Now(), epoch: s.epoch()}
	if err := c.walk(s.path(txUpper, "root"), "", level{s.base.Root, s.path(prepUpper, "root")}, false); err != nil {
		return nil, err
	}
	for _, dir := range notInImages {
		c.out.drop(dir)
	}
	if s.base.Etc == "" {
		return c.out, nil
	}
	if err := c.walk(s.path(txUpper, "etc"), "etc", level{s.base.Etc, s.path(prepUpper, "etc")}, false); err != nil {
		return nil, err
	}
	// The directory itself, as a base with /etc in place has it.
	etc, err := readChange(s.base.Etc)
	if err != nil {
		return nil, err
	}
	etc.same, etc.stat.Mtim = true, unix.NsecToTimespec(s.epoch().UnixNano())
	c.out["etc"] = etc
	return c.out, nil
}
