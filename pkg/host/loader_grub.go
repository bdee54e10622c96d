package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"

	"github.com/kedge-os/kedge/internal/blockdev"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/grub"
	"github.com/kedge-os/kedge/pkg/fault"
)

// bootDirs are where the boot directory is, the first that there is.
func (c Config) bootDirs() []string {
	if c.onMachine() {
		return []string{filepath.Join(c.Machine, "boot"), filepath.Join(c.Machine, "sysroot/boot")}
	}
	return []string{filepath.Join(c.Sysroot, "boot")}
}

// newGRUB returns the loader of a boot directory; it takes the EFI system
// partition, which may be nil.
func (c Config) newGRUB(boot, esp *os.Root, entries bool, place *grub.Place) (loader.Loader, error) {
	o := grub.Options{Logger: c.Log, NoSync: c.NoSync, ESP: esp, Arch: runtime.GOARCH, Entries: entries, Place: place}
	if !c.onMachine() {
		var err error
		if o.Host, err = os.OpenRoot(c.Machine); err != nil {
			return nil, err
		}
	}
	return grub.New(boot, o), nil
}

// findGRUB opens GRUB as it was installed: with a menu that is generated, or one
// that reads boot entries. On its partition are the program, which a writer brings
// up to date, and what it counts.
func (c Config) findGRUB() (loader.Loader, error) {
	for _, dir := range c.bootDirs() {
		boot, err := os.OpenRoot(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		generated := grub.InUse(boot)
		if !generated && !grub.ReadsEntries(boot) {
			_ = boot.Close()
			continue
		}
		esp, err := c.openESP(c.Write || !c.onMachine())
		if err != nil {
			c.Log.Debug("GRUB's program is left as it is", "reason", err)
		}
		return c.newGRUB(boot, esp, !generated, nil)
	}
	return loader.None{As: loader.NameGRUB}, nil
}

// installGRUB puts the program of an image, whose root is given, on the EFI system
// partition and opens the loader. Without a partition the program is somebody
// else's to install, as it is where the firmware is no EFI.
func (h *Host) installGRUB(ctx context.Context, root string) (loader.Loader, error) {
	entries, err := h.hasOne(root, grub.EntriesSources)
	if err != nil {
		return nil, err
	}
	dir := h.cfg.bootDirs()[0]
	boot, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	esp, err := h.cfg.openESP(true)
	if fault.KindOf(err) == fault.NotFound {
		h.cfg.Log.Warn("GRUB's program is not installed", "reason", err)
		if !entries {
			return h.cfg.newGRUB(boot, nil, false, nil)
		}
		return nil, boot.Close()
	}
	if err != nil {
		return nil, errors.Join(err, boot.Close())
	}
	l, err := h.placeGRUB(ctx, boot, esp, entries, root, dir)
	if err != nil {
		_, _ = boot.Close(), esp.Close()
	}
	return l, err
}

func (h *Host) placeGRUB(ctx context.Context, boot, esp *os.Root, entries bool, root, dir string) (loader.Loader, error) {
	place, err := placeOf(dir)
	if err != nil {
		return nil, err
	}
	l, err := h.cfg.newGRUB(boot, esp, entries, place)
	if err != nil {
		return nil, err
	}
	image, err := h.imageFiles(ctx, root)
	if err == nil {
		_, err = l.Update(image)
	}
	if fault.KindOf(err) == fault.NotFound {
		err = fault.New(fault.Conflict, "put GRUB and shim into the image (Debian: grub-efi-amd64-signed, shim-signed), or unmount the partition and install GRUB yourself", "%w", err)
	}
	return l, err
}

// placeOf says how GRUB finds a boot directory.
func placeOf(dir string) (*grub.Place, error) {
	uuid, place, err := func() (string, blockdev.Place, error) {
		place, err := blockdev.Find(dir)
		if err != nil {
			return "", place, err
		}
		device, err := os.Open(place.Device)
		if err != nil {
			return "", place, err
		}
		defer device.Close()
		uuid, err := blockdev.UUID(device)
		return uuid, place, err
	}()
	if err != nil {
		return nil, fault.New(fault.Conflict, "put it on ext4, xfs or btrfs", "how GRUB finds the boot directory %s: %w", dir, err)
	}
	return &grub.Place{UUID: uuid, Path: place.Path}, nil
}
