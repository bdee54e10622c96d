package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
)

// Cleanup removes what the list in use does not reach: state directories,
// kernels, and what a writer that died left behind. What any entry names stays,
// also one that is not understood. Images and objects are the repository's to
// collect afterwards. It never touches the booted deployment, and can be
// stopped and run again at any point.
func (s *Sysroot) Cleanup(ctx context.Context) error {
	if err := s.requireLock("clean up"); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{s.cleanEntries, s.cleanState, s.cleanKernels} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return fmt.Errorf("clean up the sysroot: %w", err)
		}
	}
	s.release()
	return nil
}

// cleanEntries removes directories of entries that are not in use.
func (s *Sysroot) cleanEntries(ctx context.Context) error {
	if s.boot == nil {
		return nil
	}
	if err := s.settleMenu(ctx); err != nil {
		return err
	}
	if err := s.boot.RemoveAll(nextDir); err != nil {
		return err
	}
	if s.Staged() != nil {
		return nil
	}
	return s.removeMarker()
}

func (s *Sysroot) cleanState(ctx context.Context) error {
	keep := func(name string) bool {
		return s.mentioned[name] || s.booted != nil && s.booted.digest == name
	}
	dir, err := dirfd.Open(s.root, deployDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case !digestForm.MatchString(n):
		case keep(n):
			// What a writer of an origin left that died.
			err = atomicfile.Sweep(s.root, path.Join(deployDir, n))
		default:
			s.log.Debug("remove deployment", "deployment", n)
			err = dir.Remove(n)
		}
		if err != nil {
			return err
		}
	}
	return s.cleanPending()
}

// cleanPending removes what waited for a deployment that never came.
func (s *Sysroot) cleanPending() error {
	pending := path.Join(stateDir, "pending")
	names, err := dirfd.ReadNames(s.root, pending)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	staged := s.Staged()
	for _, n := range names {
		if staged != nil && staged.pending && staged.Digest == n {
			continue
		}
		if err := s.root.RemoveAll(path.Join(pending, n)); err != nil {
			return err
		}
	}
	return nil
}

// cleanKernels removes kernels that no entry boots.
func (s *Sysroot) cleanKernels(ctx context.Context) error {
	if s.boot == nil {
		return nil
	}
	if err := s.cleanCopies(); err != nil {
		return err
	}
	return s.sweepKernels(ctx, func(name string) bool { return s.mentioned[name] })
}

// eachKernel calls fn for every kernel directory and every unified kernel image
// beneath the boot directory, also one that was not finished.
func (s *Sysroot) eachKernel(fn func(dir, name string) error) error {
	for _, dir := range []string{".", espKernels, ukiDir, localDir} {
		names, err := dirfd.ReadNames(s.boot, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if isKernelName(n) || n == kernelTmp || dir == localDir && ownSum(n) {
				if err := fn(dir, n); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *Sysroot) removeKernels(keep func(name string) bool) error {
	return s.eachKernel(func(dir, name string) error {
		if keep(name) {
			return nil
		}
		return s.boot.RemoveAll(path.Join(dir, name))
	})
}

// KernelSpace returns the bytes that the kernels of new deployments would add
// to /boot, and how many are free there.
func (s *Sysroot) KernelSpace(ctx context.Context, list []*Deployment) (need, free int64, err error) {
	if _, err := s.bootDir(); err != nil {
		return 0, 0, err
	}
	return s.kernelSpace(s.newImages(ctx), list)
}

func (s *Sysroot) kernelSpace(images *images, list []*Deployment) (need, free int64, err error) {
	if s.onLoader() {
		return s.loader.Space(s.items(images, list))
	}
	block, free, err := bootdir.Space(s.boot)
	if err != nil {
		return 0, 0, err
	}
	counted := map[string]bool{}
	for _, d := range list {
		k, name, err := s.missingKernel(images, d)
		if err != nil {
			return 0, 0, err
		}
		if k != nil && !counted[name] {
			counted[name] = true
			need += k.bytes(block)
		}
	}
	return need, free, nil
}

// makeRoom drops, on a booted host whose /boot is too small for the kernels of
// the list next beside all that are there, the deployments that next drops
// anyway. It has Write's commit point of its own: the list without them. Where
// that would not be enough either it does nothing, and what comes after refuses.
func (s *Sysroot) makeRoom(images *images, next []*Deployment) error {
	if _, err := s.bootDir(); s.booted == nil || err != nil {
		return err
	}
	need, free, err := s.kernelSpace(images, next)
	if err != nil || bootdir.Fits(need, free) {
		return err
	}
	stays := func(d *Deployment) bool { return slices.ContainsFunc(next, d.same) }
	keep := slices.DeleteFunc(s.Deployments(), func(d *Deployment) bool { return d.Staged || !stays(d) })
	kernels := kernelNames(next)
	gain, err := s.kernelsBut(kernels)
	if err != nil || !bootdir.Fits(need, free+gain) {
		return err
	}
	s.log.Warn("/boot is too small: the old deployments go before the new one comes", "needed", need, "free", free)
	if staged := s.Staged(); staged != nil && !stays(staged) && !slices.ContainsFunc(next, staged.sameState) {
		if err := s.dropStaged(staged); err != nil {
			return err
		}
	}
	if err := s.swap(images, keep); err != nil {
		return fmt.Errorf("make room on /boot: %w", err)
	}
	if err := s.Load(); err != nil {
		return err
	}
	return s.sweepKernels(images.ctx, func(name string) bool { return kernels[name] || s.mentioned[name] })
}

// kernelNames returns the names of a list's kernels: of directories, and of
// unified kernel images.
func kernelNames(list []*Deployment) map[string]bool {
	names := map[string]bool{}
	for _, d := range list {
		name, _ := kernelOf(d.Entry)
		names[kernelKey(name)] = true
	}
	return names
}

// Prunable returns the bytes of kernels in the boot directory that makeRoom may
// drop before a new deployment comes; 0 on a sysroot that is not booted.
func (s *Sysroot) Prunable() (int64, error) {
	if s.booted == nil || s.boot == nil {
		return 0, nil
	}
	fresh := &Deployment{Entry: &bls.Entry{}}
	stay := order.With(s.list, fresh, s.always(fresh, Retention{Merge: s.MergeFor()}))[1:]
	return s.kernelsBut(kernelNames(stay))
}

// kernelsBut returns the bytes of the kernels in /boot beside those named.
func (s *Sysroot) kernelsBut(keep map[string]bool) (int64, error) {
	var gain int64
	own := kernelNames(s.list)
	err := s.eachKernel(func(dir, name string) error {
		// On a loader's file system there may be another system's.
		if keep[name] || s.onLoader() && !own[name] {
			return nil
		}
		if st, err := s.boot.Lstat(path.Join(dir, name)); err != nil || !st.IsDir() {
			if err == nil {
				gain += st.Size()
			}
			return err
		}
		d, err := dirfd.Open(s.boot, path.Join(dir, name))
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Walk(func(_ *dirfd.Dir, _, _ string, st *unix.Stat_t) error {
			gain += st.Blocks * 512
			return nil
		})
	})
	return gain, err
}
