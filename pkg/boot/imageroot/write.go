package imageroot

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Write makes list, the default first, the deployments that boot. They were in
// the list before or come from Deploy. A staged deployment stays staged if it
// stands first, else it is dropped. The booted deployment must be in the list.
// Deployments left out are garbage from then on: see Cleanup.
//
//  1. kernels that are not in the boot directory yet, each synced before it has
//     its name
//  2. fill loader/entries.kedge; carry over the entries that are not ours
//  3. sync both file systems; freeze and thaw boot's, since firmware and GRUB
//     read it without replaying its journal
//  4. /etc and origin of a deployment whose state directory was in use: one
//     exchange of directories. An older entry with the same image has the new
//     /etc from here on; the default is still the old one, with its own
//  5. COMMIT: exchange loader/entries.kedge and loader/entries
//  6. freeze and thaw boot's file system again: the commit is durable
//  7. remove loader/entries.kedge, which are the old entries
//
// Where the boot directory is the loader's, 1, 2, 5, 6 and 7 are the loader's
// Prepare and Commit.
//
// Where the entries stay the same, 4 is all there is. A booted host whose /boot
// cannot hold old and new kernels side by side first drops the deployments that
// are not in the list, in an exchange of its own.
//
// A process that dies before the commit leaves the old list and garbage that
// the next Write or Cleanup removes; one that dies after it leaves the new one.
// After the commit point errors of what follows are logged, not returned. The
// deployments are loaded again at the end: values from before are stale.
func (s *Sysroot) Write(ctx context.Context, list []*Deployment) error {
	if err := s.requireLock("write the list of deployments"); err != nil {
		return err
	}
	if err := s.write(ctx, list); err != nil {
		return fmt.Errorf("write the list of deployments: %w", err)
	}
	s.release()
	if err := s.bumpMtime(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	if err := s.Load(); err != nil {
		return err
	}
	s.updateLoader(ctx)
	return nil
}

func (s *Sysroot) write(ctx context.Context, list []*Deployment) error {
	if err := s.validate(list); err != nil {
		return err
	}
	staged := s.Staged()
	keepStaged := staged != nil && len(list) > 0 && list[0].Staged
	fresh := slices.DeleteFunc(slices.Clone(list), func(d *Deployment) bool { return d.Staged })
	images := s.newImages(ctx)
	if err := s.makeRoom(images, fresh); err != nil {
		return err
	}
	if err := s.placeKernels(ctx, images, fresh); err != nil {
		return err
	}
	if err := s.swap(images, fresh); err != nil {
		return err
	}
	var err error
	switch {
	case staged == nil:
	case keepStaged:
		// Its row of entries names what is behind it.
		_, err = s.fillEntries(stagedDir, append([]*Deployment{staged}, fresh...))
	case slices.ContainsFunc(fresh, staged.same):
		err = s.removeMarker()
	default:
		err = s.dropStaged(staged)
	}
	if err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	return nil
}

// validate checks a list before anything is written.
func (s *Sysroot) validate(list []*Deployment) error {
	if s.booted != nil && !slices.ContainsFunc(list, func(d *Deployment) bool { return !d.Staged && d.same(s.Booted()) }) {
		return fault.New(fault.Conflict, "reboot into another deployment first", "the booted deployment cannot be removed")
	}
	if _, err := s.bootDir(); err != nil {
		return err
	}
	if st, err := s.boot.Lstat(loaderDir); err == nil && !st.IsDir() {
		return fault.New(fault.Conflict, "a boot directory belongs to one backend", "boot/loader is not a directory: the boot directory is libostree's")
	}
	for i, d := range list {
		if d.Staged && i > 0 {
			return fault.New(fault.Internal, "", "a staged deployment can only be the first")
		}
		if !d.Staged && slices.ContainsFunc(list[:i], func(o *Deployment) bool { return !o.Staged && o.same(d) }) {
			return fault.New(fault.Internal, "", "deployment %s is in the list twice", d.Name())
		}
		if _, err := s.root.Stat(d.Dir()); err != nil {
			return fmt.Errorf("deployment %s: %w", d.Name(), err)
		}
	}
	return nil
}

// swap makes the entries of a list those in use.
func (s *Sysroot) swap(images *images, list []*Deployment) error {
	changed := false
	if !s.onLoader() {
		var err error
		if changed, err = s.fillEntries(nextDir, list); err != nil {
			return err
		}
	}
	if err := images.ctx.Err(); err != nil {
		return err
	}
	if err := s.syncfs(s.root); err != nil {
		return err
	}
	if err := s.syncBoot(); err != nil {
		return err
	}
	undo, err := s.settlePending(list)
	if err != nil {
		return err
	}
	if s.onLoader() {
		if err := s.commitMenu(images, list); err != nil {
			undo()
			return err
		}
	}
	if changed {
		if err := bootdir.Exchange(s.boot, loaderDir, path.Base(nextDir), path.Base(entriesDir)); err != nil {
			undo()
			return err
		}
		s.log.Info("deployments written", "count", len(list))
		if err := s.syncBoot(); err != nil {
			s.log.Warn("after the commit", "error", err)
		}
	}
	for _, d := range list {
		if d.pending {
			if err := s.removePending(d); err != nil {
				s.log.Warn("after the commit", "error", err)
			}
			d.pending = false
		}
	}
	if err := s.boot.RemoveAll(nextDir); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	if s.onLoader() {
		return nil
	}
	// A loader with a menu made from these entries boots the old list until this is
	// done; its kernels are there until Cleanup.
	return s.commitMenu(images, list)
}

// settlePending puts /etc and origin of deployments whose state directory is in
// use where they belong, and returns what takes that back.
func (s *Sysroot) settlePending(list []*Deployment) (undo func(), err error) {
	var done []func() error
	undo = func() {
		for _, f := range slices.Backward(done) {
			if err := f(); err != nil {
				s.log.Error("taking back", "error", err)
			}
		}
	}
	for _, d := range list {
		if !d.pending {
			continue
		}
		old, err := s.readOrigin(d.OriginPath())
		if err != nil {
			undo()
			return nil, err
		}
		exchanged, err := s.exchangeEtc(d)
		if err != nil {
			undo()
			return nil, err
		}
		if exchanged {
			done = append(done, func() error { _, err := s.exchangeEtc(d); return err })
		}
		if err := atomicfile.Write(s.root, d.OriginPath(), d.Origin.Encode(), 0o644); err != nil {
			undo()
			return nil, err
		}
		done = append(done, func() error { return atomicfile.Write(s.root, d.OriginPath(), old.Encode(), 0o644) })
	}
	return undo, nil
}

// exchangeEtc exchanges the waiting etc of a deployment and that of its state
// directory; false where none waits.
func (s *Sysroot) exchangeEtc(d *Deployment) (bool, error) {
	waiting, err := dirfd.Open(s.root, d.pendingDir())
	if err != nil {
		return false, err
	}
	defer waiting.Close()
	if there, err := waiting.Exists("etc"); err != nil || !there {
		return false, err
	}
	if s.booted != nil && s.booted.digest == d.Digest {
		return false, fault.New(fault.Internal, "", "the /etc of the booted deployment is never replaced")
	}
	state, err := dirfd.Open(s.root, d.Dir())
	if err != nil {
		return false, err
	}
	defer state.Close()
	if err := unix.Renameat2(waiting.Fd(), "etc", state.Fd(), "etc", unix.RENAME_EXCHANGE); err != nil {
		return false, &fs.PathError{Op: "exchange", Path: d.Dir() + "/etc", Err: err}
	}
	if s.opts.NoSync {
		return true, nil
	}
	return true, state.Sync()
}

func (s *Sysroot) syncfs(root *os.Root) error {
	if s.opts.NoSync {
		return nil
	}
	return bootdir.Syncfs(root)
}

// syncBoot makes the boot file system durable for boot loaders too.
func (s *Sysroot) syncBoot() error {
	if s.opts.NoSync {
		return nil
	}
	host := s.host
	if s.booted != nil {
		host = nil
	}
	return bootdir.Sync(s.boot, host, s.log)
}
