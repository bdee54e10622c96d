package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
)

// checkBootSpace refuses to begin what would fill the boot file system.
func (s *Sysroot) checkBootSpace(k *Kernel, deployment, boot *os.Root, dst string) error {
	if same, err := bootdir.SameFilesystem(deployment, boot); err != nil || same {
		return err
	}
	block, free, err := bootdir.Space(boot)
	if err != nil {
		return err
	}
	need := k.missing(boot, dst, block)
	if bootdir.Fits(need, free) {
		return nil
	}
	return bootdir.NoSpace(need, free)
}

// makeRoom drops, on a booted host whose /boot is too small for the kernels of
// the list next beside all that are there, the deployments that next drops
// anyway. It has Write's commit point of its own: the list without them. Where
// that would not be enough either it does nothing, and what comes after refuses.
func (s *Sysroot) makeRoom(ctx context.Context, next []*Deployment) error {
	if s.booted == nil || s.boot == nil {
		return nil
	}
	need, free, gain, err := s.bootSpace(next)
	if err != nil {
		return err
	}
	mneed, mfree, mgain, err := s.mirrorSpace(next)
	if err != nil || bootdir.Fits(need, free) && bootdir.Fits(mneed, mfree) {
		return err
	}
	var keep []*Deployment
	for _, d := range s.list {
		if !d.Staged && slices.ContainsFunc(next, d.same) {
			keep = append(keep, d)
		}
	}
	if !bootdir.Fits(need, free+gain) || !bootdir.Fits(mneed, mfree+mgain) || len(keep) == 0 {
		return nil
	}
	s.log.Warn("/boot is too small: the old deployments go before the new one comes",
		"needed", need, "free", free, "loader needs", mneed, "loader free", mfree)
	if staged := s.Staged(); staged != nil && !slices.ContainsFunc(next, staged.same) {
		if err := s.dropStaged(staged); err != nil {
			return err
		}
		if err := s.Load(); err != nil {
			return err
		}
	}
	for _, d := range keep {
		// Entries are rebuilt from what was loaded; serials are the list's.
		d.BootSerial = -1
	}
	assignBootSerials(keep)
	if err := s.swapEntries(ctx, keep); err != nil {
		return fmt.Errorf("make room on /boot: %w", err)
	}
	if err := s.Load(); err != nil {
		return err
	}
	if err := s.mirror(ctx); err != nil {
		return err
	}
	stays := func(name string) bool { return bootsKernel(next, name) || bootsKernel(s.list, name) }
	if err := s.loader.Sweep(ctx, s.mirrorMenu(nil), stays); err != nil {
		return err
	}
	return removeExcept(s.boot, "ostree", func(name string) bool {
		_, _, ok := parseBootName(name)
		return !ok || stays(name)
	})
}

// Prunable returns the bytes of kernels, in /boot and in what the loader reads,
// that makeRoom may drop before a new deployment comes; 0 on a sysroot that is
// not booted.
func (s *Sysroot) Prunable() (boot, mirror int64, err error) {
	booted := s.Booted()
	if booted == nil || s.boot == nil {
		return 0, 0, nil
	}
	fresh := &Deployment{Stateroot: booted.Stateroot}
	stay := order.With(s.list, fresh, s.always(fresh, Retention{Merge: booted}))[1:]
	if boot, err = prunableKernels(s.boot, func(name string) bool { return bootsKernel(stay, name) }); err != nil {
		return 0, 0, err
	}
	if root := s.loader.Root(); root != nil {
		mirror, err = prunableKernels(root, func(name string) bool { return bootsKernel(stay, name) || !bootsKernel(s.list, name) })
	}
	return boot, mirror, err
}

// bootSpace returns what a list needs in /boot, what is free there, and what
// would be more without the kernels that the list does not boot; 0 where /boot is
// on the root's file system.
func (s *Sysroot) bootSpace(list []*Deployment) (need, free, gain int64, err error) {
	if same, err := bootdir.SameFilesystem(s.root, s.boot); err != nil || same {
		return 0, 0, 0, err
	}
	block, free, err := bootdir.Space(s.boot)
	if err != nil {
		return 0, 0, 0, err
	}
	if need, err = s.missingKernels(list, block); err != nil {
		return 0, 0, 0, err
	}
	gain, err = prunableKernels(s.boot, func(name string) bool { return bootsKernel(list, name) })
	return need, free, gain, err
}

// missingKernels returns the bytes of those kernels of a list that are not in
// /boot yet.
func (s *Sysroot) missingKernels(list []*Deployment, block int64) (int64, error) {
	var need int64
	counted := map[string]bool{}
	for _, d := range list {
		if counted[d.bootName()] {
			continue
		}
		counted[d.bootName()] = true
		root, err := s.root.OpenRoot(d.Dir())
		if err != nil {
			return 0, err
		}
		k, err := locateKernel(root)
		_ = root.Close()
		if err != nil {
			return 0, err
		}
		need += k.missing(s.boot, path.Join("ostree", d.bootName()), block)
	}
	return need, nil
}

// prunableKernels returns the bytes of the kernels below a boot directory that
// need not stay.
func prunableKernels(boot *os.Root, stays func(name string) bool) (int64, error) {
	names, err := dirfd.ReadNames(boot, "ostree")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var gain int64
	for _, n := range names {
		if _, _, ok := parseBootName(n); !ok || stays(n) {
			continue
		}
		dir, err := dirfd.Open(boot, path.Join("ostree", n))
		if err != nil {
			return 0, err
		}
		err = dir.Walk(func(_ *dirfd.Dir, _, _ string, st *unix.Stat_t) error {
			gain += st.Blocks * 512
			return nil
		})
		_ = dir.Close()
		if err != nil {
			return 0, err
		}
	}
	return gain, nil
}

func bootsKernel(list []*Deployment, name string) bool {
	return slices.ContainsFunc(list, func(d *Deployment) bool { return d.bootName() == name })
}
