package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/blockdev"
	"github.com/kedge-os/kedge/internal/mountns"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/esp"
	"github.com/kedge-os/kedge/pkg/boot/loader/sdboot"
	"github.com/kedge-os/kedge/pkg/fault"
)

// bootloaders are the values of InstallOptions.Bootloader.
var bootloaders = []string{loader.NameAuto, loader.NameSystemdBoot, loader.NameGRUB, loader.NameNone}

func checkBootloader(name string) error {
	if name == "" || slices.Contains(bootloaders, name) {
		return nil
	}
	return fault.New(fault.Usage, "use --bootloader "+strings.Join(bootloaders, ", "), "boot loader %q: there is no such one", name)
}

// onMachine reports whether the sysroot is the one that the machine is booted
// from, by its name.
func (c Config) onMachine() bool {
	return same(c.Sysroot, c.Machine) || same(c.Sysroot, filepath.Join(c.Machine, "sysroot"))
}

// firmware reads what the running machine's firmware tells; nothing for a
// sysroot that it is not booted from.
func (c Config) firmware() loader.Firmware {
	machine, err := os.OpenRoot(c.Machine)
	if err != nil || !c.onMachine() {
		return loader.Firmware{}
	}
	defer machine.Close()
	return loader.ReadFirmware(machine)
}

// findLoader finds what the boot loader of a sysroot reads: the one that was
// recorded at its installation, or, on a host that another program installed, the
// one that is there. dir is the backend's own; truth says that the loader's menu,
// where it has one, is the only one.
func findLoader(cfg Config, dir, stateDir string, truth bool) (loader.Loader, loader.Record, error) {
	root, err := os.OpenRoot(physical(cfg, dir))
	if err != nil {
		return nil, loader.Record{}, err
	}
	defer root.Close()
	rec, err := loader.ReadRecord(root, stateDir)
	if err != nil {
		return nil, rec, err
	}
	name := rec.Bootloader
	if name == "" {
		name = probeLoader(cfg, truth)
	}
	switch name {
	case loader.NameSystemdBoot:
	case loader.NameGRUB:
		l, err := cfg.findGRUB()
		return l, rec, err
	default:
		return loader.None{As: name}, rec, nil
	}
	l, err := cfg.openSystemdBoot(rec.Extended)
	if err != nil && !truth {
		// What boots is in /boot too; whoever only looks needs no more.
		return loader.Lost{As: name, Err: err}, rec, nil
	}
	return l, rec, err
}

// probeLoader tells which boot loader a host has that kedge did not install. On
// the ostree backend that reads /boot, whatever it is: nobody but kedge mirrors
// it. bootc's composefs backend has its entries on the EFI system partition with
// systemd-boot, else in /boot.
func probeLoader(cfg Config, truth bool) string {
	if truth {
		if cfg.firmware().SystemdBoot() {
			return loader.NameSystemdBoot
		}
		_, err := os.Stat(filepath.Join(cfg.Sysroot, "boot/loader/entries"))
		if !cfg.onMachine() && errors.Is(err, os.ErrNotExist) && cfg.hasSystemdBoot() {
			return loader.NameSystemdBoot
		}
	}
	return loader.NameNone
}

func (c Config) hasSystemdBoot() bool {
	root, err := c.openESP(false)
	if err != nil {
		return false
	}
	defer root.Close()
	return sdboot.Installed(root, runtime.GOARCH)
}

func (c Config) openESP(write bool) (*os.Root, error) { return esp.Open(c.espOptions(write)) }

func (c Config) espOptions(write bool) esp.Options {
	o := esp.Options{Dir: c.Sysroot, Write: write, AnyFilesystem: c.AnyESP}
	if c.onMachine() {
		o.Dir, o.Firmware = c.Machine, c.firmware()
	}
	o.Machine, o.Disk = c.Machine, c.searched()
	// Nobody else's mounts are changed.
	private, err := mountns.Private()
	o.Remount = write && private && err == nil
	return o
}

// hasExtended reports whether the disk has an extended boot loader partition that
// systemd-boot reads.
func (c Config) hasExtended() (bool, error) {
	root, err := esp.OpenExtended(c.espOptions(true))
	if root == nil || err != nil {
		return false, err
	}
	return true, root.Close()
}

// searched is the directory whose disks have the boot partitions of the sysroot,
// "" for none: a file system that is mounted for it, and not on a disk that the
// machine itself runs from.
func (c Config) searched() string {
	if c.onMachine() {
		// The root of the machine itself may be an overlay, which is on no disk.
		physical := filepath.Join(c.Machine, "sysroot")
		if _, err := os.Stat(physical); err == nil {
			return physical
		}
		return c.Sysroot
	}
	disks := func(dir string) ([]string, error) {
		place, err := blockdev.Find(dir)
		if err == nil && place.Path != "/" {
			err = fault.New(fault.NotFound, "", "%s is not mounted", dir)
		}
		if err != nil {
			return nil, err
		}
		return blockdev.Disks(c.Machine, place.Device)
	}
	theirs, err := disks(c.Sysroot)
	if err != nil {
		return ""
	}
	own, _ := disks(c.Machine)
	if slices.ContainsFunc(theirs, func(d string) bool { return slices.Contains(own, d) }) {
		return ""
	}
	return c.Sysroot
}

// canBless reports whether systemd-bless-boot finds the boot entry of the running
// machine: it does not look further than where partitions are mounted.
func (c Config) canBless() bool {
	return !c.firmware().SystemdBoot() || esp.Blessable(c.espOptions(false))
}

// openSystemdBoot opens the EFI system partition; with extended, kernels and
// entries are on the extended boot loader partition.
func (c Config) openSystemdBoot(extended bool) (loader.Loader, error) {
	write := c.Write || !c.onMachine()
	root, err := c.openESP(write)
	if err != nil {
		return nil, err
	}
	o := sdboot.Options{Logger: c.Log, Arch: runtime.GOARCH, NoSync: c.NoSync}
	if !extended {
		return sdboot.New(root, o), nil
	}
	o.Programs = root
	kernels, err := esp.OpenExtended(c.espOptions(write))
	if err == nil && kernels == nil {
		err = fault.New(fault.NotFound, "connect its disk", "the extended boot loader partition, which has the kernels, is not there")
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return sdboot.New(kernels, o), nil
}

// chooseLoader says which boot loader an installation gets, before anything is
// written. l is what it reads, nil for None, and is the caller's to close.
// certain is false where that depends on the image having the loader's program.
func chooseLoader(cfg Config, name string) (l loader.Loader, certain bool, err error) {
	if name == loader.NameNone {
		return nil, true, nil
	}
	if name == loader.NameGRUB {
		root, err := cfg.openESP(true)
		if err == nil {
			_ = root.Close()
		}
		if fault.KindOf(err) == fault.NotFound {
			err = nil
		}
		return nil, true, err
	}
	auto := name != loader.NameSystemdBoot
	if auto && !cfg.onMachine() && !esp.Mounted(cfg.Sysroot, cfg.AnyESP) {
		cfg.Log.Info("no boot loader is installed: no EFI system partition is mounted", "directory", cfg.Sysroot)
		return nil, true, nil
	}
	extended, err := cfg.hasExtended()
	if err == nil {
		l, err = cfg.openSystemdBoot(extended)
	}
	if auto {
		if err != nil {
			cfg.Log.Info("no boot loader is installed", "reason", err)
			return nil, true, nil
		}
		return l, false, nil
	}
	return l, true, err
}

// settleLoader records the boot loader of an installation whose image is root and
// gives it to the store, which has no deployment yet.
func (h *Host) settleLoader(ctx context.Context, l loader.Loader, certain bool, name, root string) error {
	if name == loader.NameGRUB {
		l, err := h.installGRUB(ctx, root)
		return h.recordLoader(name, l, err)
	}
	has, err := h.hasOne(root, sdboot.Sources(runtime.GOARCH))
	if err != nil {
		return err
	}
	if l != nil && !has {
		if certain {
			return fault.New(fault.Conflict, "put systemd-boot into the image, or use --bootloader none", "the image has no %s", sdboot.Sources(runtime.GOARCH)[1])
		}
		h.cfg.Log.Info("no boot loader is installed: the image has no systemd-boot")
		l = nil
	}
	name = loader.NameNone
	if l != nil {
		name = l.Name()
	}
	return h.recordLoader(name, l, nil)
}

func (h *Host) recordLoader(name string, l loader.Loader, err error) error {
	if err != nil {
		return err
	}
	rec := loader.NewRecord(name)
	if s, ok := l.(*sdboot.Loader); ok {
		rec.Extended = s.Extended()
	}
	// Of an installation that died here.
	if err := atomicfile.Sweep(h.root, h.store.StateDir()); err != nil {
		return err
	}
	if err := rec.Write(h.root, h.store.StateDir()); err != nil {
		return err
	}
	if l != nil {
		h.store.UseLoader(l, rec)
	}
	return nil
}

// hasOne reports whether a root has one of several paths.
func (h *Host) hasOne(root string, paths []string) (bool, error) {
	for _, p := range paths {
		if ok, err := h.store.Exists(root, p); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// bootloader is what status says of it.
func (h *Host) bootloader() *v1.Bootloader {
	b := &v1.Bootloader{Name: h.store.Loader().Name()}
	if !h.Booted() {
		return b
	}
	f := h.cfg.firmware()
	b.Info, b.SecureBoot = f.Info, f.SecureBoot
	return b
}

// UseLoader implements store.
func (s *ostreeStore) UseLoader(l loader.Loader, r loader.Record) { s.sysroot.UseLoader(l, r.Token) }

// Bless implements store.
func (s *ostreeStore) Bless(ctx context.Context) error { return s.sysroot.Bless(ctx) }

// Bless implements store.
func (s *composefsStore) Bless(ctx context.Context) error { return s.sysroot.Bless(ctx) }

// Loader implements store.
func (s *ostreeStore) Loader() loader.Loader { return s.sysroot.Loader() }

// UseLoader implements store.
func (s *composefsStore) UseLoader(l loader.Loader, _ loader.Record) { s.sysroot.UseLoader(l) }

// Loader implements store.
func (s *composefsStore) Loader() loader.Loader { return s.sysroot.Loader() }

// LoaderDirs implements store.
func (s *ostreeStore) LoaderDirs() []string { return []string{s.KernelDirs()} }

// Prunable implements store.
func (s *ostreeStore) Prunable() (boot, loader int64, err error) {
	return s.sysroot.Prunable()
}

// LoaderDirs implements store.
func (s *composefsStore) LoaderDirs() []string {
	return []string{"EFI/Linux/" + s.KernelDirs(), "EFI/Linux/bootc/" + s.KernelDirs(), "EFI/Linux/kedge/*/" + s.KernelDirs()}
}

// Prunable implements store.
func (s *composefsStore) Prunable() (boot, loader int64, err error) {
	n, err := s.sysroot.Prunable()
	if s.Loader().Root() != nil {
		return 0, n, err
	}
	return n, 0, err
}
