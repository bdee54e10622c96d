package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// InstallOptions are what Install can be told.
type InstallOptions struct {
	Dir              string // the root of the host to be
	Image            string
	Transport        string // of an Image without one; "" is registry
	TargetImage      string // what upgrades follow; "" is Image
	EnforceSigpolicy bool
	Stateroot        string
	Kargs            []string
	// Bootloader is one of "systemd-boot", "grub", "none" and "auto", which "" is
	// too: systemd-boot where an EFI system partition is mounted below Dir and the
	// image has the program.
	Bootloader string
	// Backend is "ostree", "composefs" or AutoBackend, which "" is too.
	Backend string
	// AllowMissingVerity makes do with a file system without fs-verity where the
	// backend wants it, and records that.
	AllowMissingVerity bool
}

// defaultStateroot is bootc's name for the only one there is.
const defaultStateroot = "default"

func (o InstallOptions) check() error {
	if err := checkBootloader(o.Bootloader); err != nil {
		return err
	}
	if err := boot.CheckStateroot(o.Stateroot); err != nil {
		return err
	}
	return checkKargs(o.Kargs)
}

// Install makes the directory cfg.Sysroot a sysroot that boots an image. A
// sysroot that has deployments already is a Conflict; what an interrupted
// installation left is continued. The commit point is boot.Write's.
func Install(ctx context.Context, cfg Config, o InstallOptions) (*v1.Result, error) {
	r, err := install(ctx, cfg.withDefaults(), o)
	return r, wrap("install", err)
}

func install(ctx context.Context, cfg Config, o InstallOptions) (*v1.Result, error) {
	if o.Stateroot == "" {
		o.Stateroot = defaultStateroot
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	fetch, err := reference(o.Image, o.Transport, o.EnforceSigpolicy)
	if err != nil {
		return nil, err
	}
	follow := fetch
	if o.TargetImage != "" {
		if follow, err = reference(o.TargetImage, "", o.EnforceSigpolicy); err != nil {
			return nil, err
		}
	}
	b, err := o.backend(cfg)
	if err != nil {
		return nil, err
	}
	if err := checkTarget(cfg.Sysroot, b); err != nil {
		return nil, err
	}
	// The partition is there, FAT and writable before anything is done.
	l, certain, err := chooseLoader(cfg, o.Bootloader)
	if err != nil {
		return nil, err
	}
	if l != nil {
		defer l.Close()
	}
	// Nothing is written before the image is known to exist, to be allowed, and
	// to fit.
	src, err := ocibridge.Open(ctx, fetch, cfg.Images)
	if err != nil {
		return nil, err
	}
	defer cfg.closeQuietly(src)
	if b == nil {
		if b, o.Backend, err = backendFor(src.Labels); err != nil {
			return nil, err
		}
	}
	settle := func(h *Host, root string) error { return h.settleLoader(ctx, l, certain, o.Bootloader, root) }
	r, err := installOn(ctx, cfg, b, src, follow, o, settle)
	if !errors.Is(err, errForComposefs) {
		return r, err
	}
	cfg.Progress.Step(v1.TaskImporting, "Beginning anew: "+err.Error())
	if err := discardOSTree(cfg); err != nil {
		return nil, err
	}
	return installOn(ctx, cfg, composefsBackend, src, follow, o, settle)
}

// installOn installs on a backend. errForComposefs where the image is to choose
// it, and is made for the other one.
func installOn(ctx context.Context, cfg Config, b *backend, src *ocibridge.Source, follow ocibridge.Reference, o InstallOptions, settle func(h *Host, root string) error) (*v1.Result, error) {
	if err := removeDiscarded(cfg); err != nil {
		return nil, err
	}
	if err := b.initialise(cfg, o); err != nil {
		return nil, err
	}
	h, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.install(ctx, src, follow, o, settle)
}

func (h *Host) install(ctx context.Context, src *ocibridge.Source, follow ocibridge.Reference, o InstallOptions, settle func(h *Host, root string) error) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	info, err := sourceInfo(src)
	if err != nil {
		return nil, err
	}
	if d := list.current(); h.store.Interrupted() && len(list) == 1 && isAt(d, follow, info.digest) {
		// The commit point was behind the installation that was interrupted.
		h.changed(ctx, "install", nil, d)
		return result("install", d), h.store.Settle(ctx)
	}
	if len(list) > 0 || h.Booted() {
		return nil, fault.New(fault.Conflict, "kedge switch moves an installed host to another image", "%s has deployments already", h.cfg.Sysroot)
	}
	if err := h.store.CheckVerity(nil, o.AllowMissingVerity); err != nil {
		return nil, err
	}
	if err := checkSpace(h.space(nil, info)); err != nil {
		return nil, err
	}
	root, err := h.store.Import(ctx, src, follow, "")
	if o.auto() && errors.Is(err, errOnlyUnified) {
		return nil, errForComposefs
	}
	if err != nil {
		return nil, err
	}
	if o.auto() && h.backend == ostreeBackend {
		other, err := h.forComposefs(ctx, root)
		if err != nil {
			return nil, err
		}
		if other {
			return nil, errForComposefs
		}
	}
	if err := settle(h, root); err != nil {
		return nil, err
	}
	h.cfg.Progress.Step(v1.TaskStaging, "Deploying the image")
	if err := h.store.InitStateroot(o.Stateroot); err != nil {
		return nil, err
	}
	r := deployRequest{
		root: root, ref: &follow, stateroot: o.Stateroot, kargs: karg.Args{}.Append(o.Kargs...), allowMissingVerity: o.AllowMissingVerity,
	}
	res, err := h.deploy(ctx, "install", list, r)
	if err != nil {
		return nil, err
	}
	res.Warnings = append(res.Warnings, h.kernelWarnings(ctx, root)...)
	if args, err := h.ShowKargs(ctx); err == nil && len(karg.Args(args).Values("root")) == 0 {
		res.Warnings = append(res.Warnings, "there is no kernel argument root=: the initramfs has to find the root file system by itself (--karg root=LABEL=…)")
	}
	return res, nil
}

// checkTarget refuses a directory in which something lives that is neither a
// sysroot of the backend (nil: of any) nor a file system's own.
func checkTarget(dir string, b *backend) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "make the directory, or mount the root file system there", "%s does not exist", dir)
	}
	if err != nil {
		return fault.New(fault.KindOf(err), "", "read %s: %w", dir, err)
	}
	own := []string{"lost+found", "boot", "efi", discardedDir}
	sysroot := false
	for _, o := range backends {
		if b == nil || b == o {
			own = append(own, o.own...)
			_, err := os.Stat(filepath.Join(dir, o.dir))
			sysroot = sysroot || err == nil
		}
	}
	for _, e := range entries {
		if !slices.Contains(own, e.Name()) {
			return fault.New(fault.Conflict, "use an empty directory or a file system that was just made",
				"%s is not empty: it has %s", dir, e.Name())
		}
	}
	boot := filepath.Join(dir, "boot")
	var st unix.Statfs_t
	if unix.Statfs(boot, &st) == nil && st.Type == unix.MSDOS_SUPER_MAGIC {
		return fault.New(fault.Conflict, "mount the EFI system partition at boot/efi, and nothing or a file system with symlinks at boot",
			"%s is a FAT file system, which cannot hold the symlink boot/loader", boot)
	}
	entries, err = os.ReadDir(boot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if sysroot {
			break
		}
		if strings.HasPrefix(e.Name(), "vmlinuz") || strings.HasPrefix(e.Name(), "initr") {
			return fault.New(fault.Conflict, "use a /boot file system that was just made", "%s has another system's kernel %s", boot, e.Name())
		}
	}
	return err
}
