package layering

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
)

// modulesDir has a directory for each kernel, with its image and its initramfs:
// the place where bootable containers have them.
const modulesDir = "usr/lib/modules"

// bootUpper is the session's directory that a transaction sees as /boot.
const bootUpper = "boot"

// kernelFixer makes a root whose kernel changed one that boots: a kernel in its
// place, its lists of modules, an initramfs, and no other kernel.
type kernelFixer struct {
	s      *Session
	box    *box
	base   *os.Root
	merged *os.Root
	cs     changes
	want   *Initramfs
}

// run does what there is to do and reports whether it changed the root.
func (k *kernelFixer) run(ctx context.Context) (bool, error) {
	touched := make(map[string]bool)
	for name, c := range k.cs {
		if rest, ok := strings.CutPrefix(name, modulesDir+"/"); ok && !c.same {
			version, _, _ := strings.Cut(rest, "/")
			touched[version] = true
		}
	}
	if len(touched) == 0 && k.want == nil {
		return false, nil
	}
	if err := k.fromBoot(); err != nil {
		return false, err
	}
	kernels, err := kernelsOf(k.merged)
	if err != nil {
		return false, err
	}
	before, err := kernelsOf(k.base)
	if err != nil {
		return false, err
	}
	switch {
	case len(kernels) == 0 && len(before) == 0 && k.want == nil:
		return false, nil // modules for nobody
	case len(kernels) == 0 && len(before) == 0:
		return false, fault.New(fault.Conflict, "take an image that boots", "the image has no kernel that an initramfs could be made for")
	case len(kernels) == 0:
		return false, fault.New(fault.Conflict, "add a kernel in the same request", "there is no kernel in the image: %q went, and none came", before)
	case len(kernels) > 1:
		return false, k.tooMany(ctx, before, kernels)
	}
	version := kernels[0]
	for _, old := range before {
		// What nobody's package has: an initramfs, lists of modules.
		if old != version {
			if err := k.merged.RemoveAll(path.Join(modulesDir, old)); err != nil {
				return false, err
			}
		}
	}
	if err := k.tool(ctx, k.box, "depmod", "-a", version); err != nil {
		return false, err
	}
	if _, ok := k.cs[path.Join(modulesDir, version, "vmlinuz")]; ok || !slices.Contains(before, version) || k.want != nil {
		return true, k.initramfs(ctx, before, version)
	}
	return true, nil
}

// kernelsOf lists the kernels of a root.
func kernelsOf(root *os.Root) ([]string, error) {
	names, err := dirfd.ReadNames(root, modulesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(n string) bool { return !notEmpty(root, path.Join(modulesDir, n, "vmlinuz")) }), nil
}

// fromBoot moves the kernels that packages put into /boot, as Debian's do, to
// their place.
func (k *kernelFixer) fromBoot() error {
	boot, err := os.OpenRoot(k.s.path(bootUpper))
	if err != nil {
		return err
	}
	defer boot.Close()
	names, err := fs.Glob(boot.FS(), "vmlinuz-*")
	if err != nil {
		return err
	}
	for _, name := range names {
		to := path.Join(modulesDir, strings.TrimPrefix(name, "vmlinuz-"))
		st, err := boot.Lstat(name)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		if _, err := k.merged.Stat(to); err != nil {
			continue // of no kernel that is there
		}
		if err := copyBetween(boot, name, k.merged, path.Join(to, "vmlinuz")); err != nil {
			return err
		}
	}
	return nil
}

func copyBetween(from *os.Root, name string, root *os.Root, to string) error {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// tooMany refuses a kernel beside the one of the base, and names the package to
// remove.
func (k *kernelFixer) tooMany(ctx context.Context, before, kernels []string) error {
	hint := "remove the packages of the base's kernel in the same request"
	for _, old := range before {
		owner, err := k.s.engine.owner(ctx, k.box, "/"+path.Join(modulesDir, old, "modules.builtin"))
		if err != nil {
			return err
		}
		if owner != "" {
			hint = "remove the package " + owner + " of the base in the same request"
		}
	}
	return fault.New(fault.Conflict, hint, "an image has one kernel, and with these packages there are %s", strings.Join(kernels, " and "))
}

// tool runs a program of the image that a kernel needs.
func (k *kernelFixer) tool(ctx context.Context, b *box, argv ...string) error {
	there := func(dir string) bool {
		_, err := k.merged.Lstat(path.Join(dir, argv[0]))
		return err == nil
	}
	if !slices.ContainsFunc([]string{"usr/bin", "usr/sbin", "bin", "sbin"}, there) {
		return fault.New(fault.Conflict, "add "+argv[0]+" to the image, or make the change in the image itself", "the kernel or its initramfs is to change, and the image has no %s", argv[0])
	}
	out, err := b.run(ctx, command{argv: argv, together: true})
	if err != nil || out.code == 0 {
		return err
	}
	return fault.New(fault.Conflict, "make the change in the image itself, or leave the arguments out that it does not take", "%s ended with status %d:\n%s", argv[0], out.code, lastLines(out.tail, 20))
}
