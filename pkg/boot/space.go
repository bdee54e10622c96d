package boot

import (
	"context"
	"fmt"
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
	if same, err := bootdir.SameFilesystem(s.root, s.boot); err != nil || same {
		return err
	}
	block, free, err := bootdir.Space(s.boot)
	if err != nil {
		return err
	}
	need, err := s.missingKernels(next, block)
	if err != nil || bootdir.Fits(need, free) {
		return err
	}
	var keep []*Deployment
	for _, d := range s.list {
		if !d.Staged && slices.ContainsFunc(next, d.same) {
			keep = append(keep, d)
		}
	}
	gain, err := s.prunableKernels(next)
	if err != nil || !bootdir.Fits(need, free+gain) || len(keep) == 0 {
		return err
	}
	s.log.Warn("/boot is too small: the old deployments go before the new one comes", "needed", need, "free", free)
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
	return s.removeKernelsExcept(next)
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

// prunableKernels returns the bytes of the kernels in /boot that a list does
// not boot.
func (s *Sysroot) prunableKernels(list []*Deployment) (int64, error) {
	names, err := readNames(s.boot, "ostree")
	if err != nil {
		return 0, err
	}
	var gain int64
	for _, n := range names {
		if _, _, ok := parseBootName(n); !ok || bootsKernel(list, n) {
			continue
		}
		dir, err := dirfd.Open(s.boot, path.Join("ostree", n))
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

func (s *Sysroot) removeKernelsExcept(list []*Deployment) error {
	return removeExcept(s.boot, "ostree", func(name string) bool {
		_, _, ok := parseBootName(name)
		return !ok || bootsKernel(list, name) || bootsKernel(s.list, name)
	})
}
