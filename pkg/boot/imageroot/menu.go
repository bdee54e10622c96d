package imageroot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/uki"
)

// Where a loader reads a file system of its own (systemd-boot: the EFI system
// partition), that is the boot directory, as with bootc: entries in
// loader/entries, kernels in EFI/Linux/bootc_composefs-DIGEST. It is FAT, and
// knows no exchange of directories that a power cut leaves whole: there the
// loader's Commit takes the place of the exchange.

// onLoader reports whether the boot directory is the loader's file system.
func (s *Sysroot) onLoader() bool { return s.loader.Root() != nil }

// owns reports whether an entry is of this sysroot: another one on the same
// partition has state directories of its own.
func (s *Sysroot) owns(_ string, e *bls.Entry) bool {
	digest, _, _, ok := imageOf(e)
	if !ok {
		return false
	}
	_, err := s.root.Stat(path.Join(deployDir, digest))
	return err == nil
}

func (s *Sysroot) loaderMenu(items []loader.Item, list []*Deployment) loader.Menu {
	m := loader.Menu{
		Owns: s.owns, Order: entryOrder, Items: items, KernelDir: espKernels,
		OwnKernel: isKernelName,
	}
	if len(list) > 0 {
		m.SortKey = sortKeyPrefix + idOf(list[0].Entry)
	}
	return m
}

// lineID names an entry for as long as it exists.
func (d *Deployment) lineID() string {
	if d.Type == TypeUKI {
		if sum := d.localUKI(); sum != "" {
			return d.Digest + "." + sum + uki.Suffix
		}
		return d.Digest + uki.Suffix
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %s", d.VerityOptional, d.Kargs()))
	return d.Digest + "." + hex.EncodeToString(sum[:4])
}

// items makes the lines of a list.
func (s *Sysroot) items(images *images, list []*Deployment) []loader.Item {
	var items []loader.Item
	for i, d := range list {
		item := loader.Item{ID: d.lineID(), Name: position{i, len(list)}.base(list[0]), Entry: d.Entry}
		item.Count(i, len(list), func() uint64 { return s.tries(images, d) }, d.again)
		item.Good = d.good
		if name, ok := kernelOf(d.Entry); ok {
			item.Files = func() ([]loader.File, error) {
				k, err := images.kernelOf(d)
				if err != nil {
					return nil, err
				}
				return k.files(name), nil
			}
		}
		items = append(items, item)
	}
	return items
}

// tries returns how often a deployment that the menu does not have, or that is to
// be tried again, is tried.
func (s *Sysroot) tries(images *images, d *Deployment) uint64 {
	image, err := images.get(d.Digest)
	if err != nil || !slices.ContainsFunc(s.loader.BlessedBy(), func(name string) bool {
		if _, err := fs.Stat(image, name); err == nil {
			return true
		}
		_, err := s.root.Lstat(path.Join(d.Dir(), name))
		return err == nil
	}) {
		return 0
	}
	return s.opts.Tries
}

// Bless has the loader not count the booted deployment any more: a boot of it was
// good. It is for loaders that leave that to kedge.
func (s *Sysroot) Bless(ctx context.Context) error {
	if err := s.requireLock("bless the boot"); err != nil {
		return err
	}
	d, err := s.requireBooted("bless a boot")
	if err != nil {
		return err
	}
	d.good = true
	return s.settleMenu(ctx)
}

// placeKernels puts the kernels of a list into the boot directory.
func (s *Sysroot) placeKernels(ctx context.Context, images *images, list []*Deployment) error {
	if s.onLoader() {
		return s.loader.Prepare(ctx, s.items(images, list))
	}
	for _, d := range list {
		if err := s.installKernel(ctx, images, d); err != nil {
			return fmt.Errorf("deployment %s: %w", d.Name(), err)
		}
	}
	return nil
}

// RestoreKernel puts the kernel of a deployment back where files of it are missing.
func (s *Sysroot) RestoreKernel(ctx context.Context, d *Deployment) error {
	if err := s.requireLock("restore a kernel"); err != nil {
		return err
	}
	if err := s.placeKernels(ctx, s.newImages(ctx), []*Deployment{d}); err != nil {
		return err
	}
	return s.syncfs(s.boot)
}

// commitMenu brings the loader's menu to a list. It is the commit point where the
// boot directory is the loader's.
func (s *Sysroot) commitMenu(images *images, list []*Deployment) error {
	// It ends with a menu that is whole, also where the operation is interrupted.
	ctx := context.WithoutCancel(images.ctx)
	if err := s.loader.Commit(ctx, s.loaderMenu(s.items(images, list), list)); err != nil {
		return fmt.Errorf("bring the menu of %s up to date: %w", s.loader.Name(), err)
	}
	return nil
}

// settleMenu finishes what a writer that died began.
func (s *Sysroot) settleMenu(ctx context.Context) error {
	list := slices.DeleteFunc(s.Deployments(), func(d *Deployment) bool { return d.Staged })
	if len(list) == 0 {
		return nil
	}
	return s.commitMenu(s.newImages(ctx), list)
}

// updateLoader brings the loader's program up to date from the default's image.
func (s *Sysroot) updateLoader(ctx context.Context) {
	d := s.first(func(d *Deployment) bool { return !d.Staged })
	if d == nil {
		return
	}
	loader.Refresh(s.loader, s.log, func() error {
		image, err := s.newImages(ctx).get(d.Digest)
		if err == nil {
			_, err = s.loader.Update(image)
		}
		return err
	})
}

// sweepKernels removes the kernels that nothing boots and keep does not name.
func (s *Sysroot) sweepKernels(ctx context.Context, keep func(name string) bool) error {
	if s.onLoader() {
		m := s.loaderMenu(nil, nil)
		err := s.loader.Sweep(ctx, m, keep)
		m.KernelDir = ukiDir
		err = errors.Join(err, s.loader.Sweep(ctx, m, keep))
		m.KernelDir, m.OwnKernel = localDir, ownSum
		return errors.Join(err, s.loader.Sweep(ctx, m, keep))
	}
	return s.removeKernels(keep)
}
