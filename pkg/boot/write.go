package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
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
//  7. COMMIT: rename boot/loader.tmp to boot/loader
//  8. freeze and thaw boot's file system again: the commit is durable
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
	return s.Load()
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
	if err := boot.Rename("loader.tmp", "loader"); err != nil {
		return err
	}
	s.log.Info("deployments written", "boot", fmt.Sprintf("%d.%d", version, sub), "entries", "swapped", "count", len(list))
	if err := s.syncBoot(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	return nil
}

// fillEntries writes the kernels and entries of a list into loader.V.
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
	}
	return nil
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
	lab, err := labels(root)
	if err != nil {
		return nil, err
	}
	if err := s.installKernel(k, root, d, lab); err != nil {
		return nil, err
	}
	return s.entryFor(conf, d, k, root, i, n, version, show)
}

// carryForeign copies what stands in the directory in use and is not ours,
// entries of other systems and a boot manager's own files, to loader.V.
func (s *Sysroot) carryForeign(boot *os.Root, version int) error {
	src, err := dirfd.Open(boot, loaderDir(s.version))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := dirfd.Open(boot, loaderDir(version))
	if err != nil {
		return err
	}
	defer dst.Close()
	return carry(src, dst, s.isOurs)
}

// carry copies the files of one directory to another but for those in its
// entries directory that ours names.
func carry(src, dst *dirfd.Dir, ours func(dir *dirfd.Dir, name string) bool) error {
	names, err := src.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != "entries" {
			if err := copyAny(src, dst, n); err != nil {
				return err
			}
			continue
		}
		from, err := src.Sub(n)
		if err != nil {
			return err
		}
		defer from.Close()
		to, err := dst.Sub(n)
		if err != nil {
			return err
		}
		defer to.Close()
		entries, err := from.Names()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !ours(from, e) {
				if err := copyAny(from, to, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// isOurs reports whether a file in the entries directory is a deployment's
// entry: it has libostree's kind of name and an ostree= argument.
func (s *Sysroot) isOurs(dir *dirfd.Dir, name string) bool {
	if !isEntryName(name) {
		return false
	}
	text, err := dir.ReadSmall(name, maxEntry)
	if err != nil {
		return false
	}
	options, _ := bls.Parse(string(text)).Get("options")
	return len(karg.Parse(options).Values("ostree")) > 0
}

// fillFarm makes ostree/boot.V.S with a link for each deployment.
func (s *Sysroot) fillFarm(version, sub int, list []*Deployment) error {
	farm := fmt.Sprintf("ostree/boot.%d.%d", version, sub)
	if err := s.root.RemoveAll(farm); err != nil {
		return err
	}
	if err := s.root.Mkdir(farm, 0o755); err != nil {
		return err
	}
	for _, d := range list {
		dir := path.Join(farm, d.Stateroot, d.Bootcsum)
		if err := s.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		target := path.Join("../../../deploy", d.Stateroot, "deploy", d.Name())
		if err := s.root.Symlink(target, path.Join(dir, fmt.Sprint(d.BootSerial))); err != nil {
			return err
		}
	}
	return nil
}

// pointFarm makes ostree/boot.V lead to boot.V.S, in one step.
func (s *Sysroot) pointFarm(version, sub int) error {
	name := fmt.Sprintf("ostree/boot.%d", version)
	tmp := name + ".tmp"
	if err := replaceLink(s.root, fmt.Sprintf("boot.%d.%d", version, sub), tmp); err != nil {
		return err
	}
	return s.root.Rename(tmp, name)
}

// replaceLink makes a symlink; what has the name goes away first.
func replaceLink(root *os.Root, target, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.Symlink(target, name)
}

func refName(version, sub, i int) string { return fmt.Sprintf("ostree/%d/%d/%d", version, sub, i) }

// writeRefs adds the refs that keep the commits of a list.
func (s *Sysroot) writeRefs(ctx context.Context, version, sub int, list []*Deployment) error {
	if s.opts.Repo == nil || len(list) == 0 {
		return nil
	}
	refs := make(map[string]string, len(list))
	for i, d := range list {
		refs[refName(version, sub, i)] = d.Checksum
	}
	if err := s.opts.Repo.SetRefs(ctx, refs); err != nil {
		return fmt.Errorf("write the refs of the deployments: %w", err)
	}
	return nil
}
