package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Write makes list, the default first, the deployments that boot. They were in
// the list before or come from Deploy. A staged deployment stays staged if it
// stands first, else it is dropped. The booted deployment must be in the list.
// Deployments left out are garbage from then on: see Cleanup.
//
// If no boot entry has to change (same count, kernels, arguments, versions,
// stateroots), only the farm is flipped:
//
//  1. refs for the new list, so that no prune can take its commits
//  2. fill ostree/boot.V.S', sync the file system
//  3. COMMIT: rename the symlink ostree/boot.V to boot.V.S', sync the directory
//
// else the whole set of entries is swapped, V' being the version not in use:
//
//  1. refs for the new list
//  2. kernels that are not in boot/ostree yet, each synced before it has its name
//  3. fill boot/loader.V'/entries; carry over the files there that are not ours
//  4. fill ostree/boot.V'.S', point ostree/boot.V' to it: unused until 7
//  5. the symlink boot/loader.tmp
//  6. sync both file systems; freeze and thaw boot's, since firmware and GRUB
//     read it without replaying its journal
//  7. COMMIT: exchange boot/loader.tmp and boot/loader. A rename would free the
//     old link in the same breath, and a reader without the journal may see that
//     the link is gone before it sees the new one
//  8. freeze and thaw boot's file system again: the commit is durable
//  9. remove boot/loader.tmp, which is the old link
//
// Where the machine's boot loader reads a mirror of /boot, it is brought up to
// date before 3, its new kernels are written before 7, and its own commit point
// is behind 8: see mirror. An error there is returned: the machine still boots
// the old list.
//
// A booted host whose /boot cannot hold old and new kernels side by side first
// drops the deployments that are not in the list, in a swap of its own.
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
	if err := s.bumpMtime(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	if err := s.Load(); err != nil {
		return err
	}
	if err := s.mirror(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	s.updateLoader()
	return nil
}

func (s *Sysroot) write(ctx context.Context, list []*Deployment) error {
	if err := s.validate(list); err != nil {
		return err
	}
	staged := s.Staged()
	keepStaged := staged != nil && len(list) > 0 && list[0].Staged
	old := slices.DeleteFunc(s.Deployments(), func(d *Deployment) bool { return d.Staged })
	fresh := make([]*Deployment, 0, len(list))
	for _, d := range list {
		if !d.Staged {
			c := *d
			fresh = append(fresh, &c)
		}
	}
	assignBootSerials(fresh)
	swap, flip, err := s.compare(old, fresh)
	if err != nil {
		return err
	}
	switch {
	case swap:
		if err := s.makeRoom(ctx, fresh); err != nil {
			return err
		}
		err = s.swapEntries(ctx, fresh)
	case flip:
		err = s.flipFarm(ctx, fresh)
	}
	if err != nil {
		return err
	}
	if staged != nil && !keepStaged {
		drop := s.dropStaged
		if slices.ContainsFunc(fresh, staged.same) {
			drop = func(*Deployment) error { return s.removeMarker() }
		}
		if err := drop(staged); err != nil {
			s.log.Warn("after the commit", "error", err)
		}
	}
	return nil
}

// validate checks a list before anything is written.
func (s *Sysroot) validate(list []*Deployment) error {
	if s.booted != nil && !slices.ContainsFunc(list, func(d *Deployment) bool { return d.same(s.Booted()) }) {
		return fault.New(fault.Conflict, "reboot into another deployment first", "the booted deployment cannot be removed")
	}
	for i, d := range list {
		if d.Staged && i > 0 {
			return fault.New(fault.Internal, "", "a staged deployment can only be the first")
		}
		if slices.ContainsFunc(list[:i], d.same) {
			return fault.New(fault.Internal, "", "deployment %s is in the list twice", d.Name())
		}
		if _, err := s.root.Stat(d.Dir()); err != nil {
			return fmt.Errorf("deployment %s: %w", d.Name(), err)
		}
	}
	return nil
}

// assignBootSerials counts the deployments of each kernel.
func assignBootSerials(list []*Deployment) {
	count := map[string]int{}
	for _, d := range list {
		d.BootSerial = count[d.Bootcsum]
		count[d.Bootcsum]++
	}
}

// compare says whether a new list needs other boot entries, or at least
// another farm.
func (s *Sysroot) compare(old, fresh []*Deployment) (swap, flip bool, err error) {
	if len(old) != len(fresh) || s.needsEntries(old) {
		return true, false, nil
	}
	for i := range old {
		a, b := old[i], fresh[i]
		if a.same(b) && a.Kargs().String() == b.Kargs().String() {
			continue
		}
		flip = true
		va, err := s.Version(a)
		if err != nil {
			return false, false, err
		}
		vb, err := s.Version(b)
		if err != nil {
			return false, false, err
		}
		if a.Bootcsum != b.Bootcsum || a.Stateroot != b.Stateroot || va != vb ||
			a.Kargs().String() != b.Kargs().String() || !slices.Equal(overlays(a), overlays(b)) {
			return true, false, nil
		}
	}
	return false, flip, nil
}

// needsEntries reports that the entries in use have to be written anew
// whatever the list: the first time, and where the file of one has been lost.
func (s *Sysroot) needsEntries(old []*Deployment) bool {
	if s.boot == nil {
		return true
	}
	_, err := s.boot.Lstat("loader")
	return err != nil && len(old) > 0
}

// overlays returns the machine's own initrds of a deployment.
func overlays(d *Deployment) []string {
	list := d.Entry.Initrds()
	return list[min(1, len(list)):]
}

func (s *Sysroot) flipFarm(ctx context.Context, list []*Deployment) error {
	sub := 1 - s.sub
	if err := s.writeRefs(ctx, s.version, sub, list); err != nil {
		return err
	}
	if err := s.fillFarm(s.version, sub, list); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.syncRoot(); err != nil {
		return err
	}
	if err := s.pointFarm(s.version, sub); err != nil {
		return err
	}
	s.log.Info("deployments written", "boot", fmt.Sprintf("%d.%d", s.version, sub), "entries", "unchanged", "count", len(list))
	if err := s.syncRootDir("ostree"); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	return nil
}

func (s *Sysroot) swapEntries(ctx context.Context, list []*Deployment) error {
	boot, err := s.bootDir()
	if err != nil {
		return err
	}
	conf, err := s.readConfig()
	if err != nil {
		return err
	}
	if err := s.refuseGenerated(conf, boot); err != nil {
		return err
	}
	if err := s.mirror(ctx); err != nil {
		return err
	}
	version := 1 - s.version
	sub, err := s.readSubversion(version)
	if err != nil {
		return err
	}
	sub = 1 - sub
	if err := s.writeRefs(ctx, version, sub, list); err != nil {
		return err
	}
	if err := s.fillEntries(ctx, boot, conf, version, list); err != nil {
		return err
	}
	if err := s.fillFarm(version, sub, list); err != nil {
		return err
	}
	if err := s.pointFarm(version, sub); err != nil {
		return err
	}
	// GRUB with /boot on the root file system looks for /boot/boot/….
	if err := boot.Symlink(".", "boot"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := replaceLink(boot, loaderDir(version), "loader.tmp"); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.syncRoot(); err != nil {
		return err
	}
	if err := s.syncBoot(); err != nil {
		return err
	}
	if err := bootdir.Exchange(boot, ".", "loader.tmp", "loader"); err != nil {
		return err
	}
	s.log.Info("deployments written", "boot", fmt.Sprintf("%d.%d", version, sub), "entries", "swapped", "count", len(list))
	if err := s.syncBoot(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	if err := boot.Remove("loader.tmp"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("after the commit", "error", err)
	}
	return nil
}

// fillEntries writes the kernels and entries of a list into loader.V, and the
// kernels into the mirror.
func (s *Sysroot) fillEntries(ctx context.Context, boot *os.Root, conf config, version int, list []*Deployment) error {
	if err := boot.RemoveAll(loaderDir(version)); err != nil {
		return err
	}
	dir := entriesDir(version)
	if err := boot.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := s.carryForeign(boot, version); err != nil {
		return fmt.Errorf("carry over the boot entries of others: %w", err)
	}
	items := make([]loader.Item, len(list))
	show := slices.ContainsFunc(list, func(d *Deployment) bool { return d.Stateroot != list[0].Stateroot })
	for i, d := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		entry, err := s.prepareBoot(conf, d, i, len(list), version, show)
		if err != nil {
			return fmt.Errorf("deployment %s: %w", d.Name(), err)
		}
		name := path.Join(dir, conf.entryName(d, i, len(list)))
		if err := boot.WriteFile(name, entry.Encode(), 0o644); err != nil {
			return err
		}
		items[i] = s.mirrorItem(d, entry, i, len(list))
	}
	return s.loader.Prepare(ctx, items)
}

// prepareBoot installs the kernel of a deployment and makes its entry.
func (s *Sysroot) prepareBoot(conf config, d *Deployment, i, n, version int, show bool) (*bls.Entry, error) {
	root, err := s.root.OpenRoot(d.Dir())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	k, err := locateKernel(root)
	if err != nil {
		return nil, err
	}
	lab, err := d.labels(root)
	if err != nil {
		return nil, err
	}
	if err := s.installKernel(k, root, d, lab); err != nil {
		return nil, err
	}
	return s.entryFor(conf, d, k, root, i, n, version, show)
}
