package layering

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Initramfs says that the initramfs is made anew on this host.
type Initramfs struct {
	Args []string `json:"args,omitempty"` // for dracut, after kedge's own
}

// The most that dracut is given.
const (
	maxDracutArgs  = 256
	maxDracutBytes = 16 << 10
)

// Check says what is wrong with the arguments, as a fault.Usage. dracut itself
// refuses those that it does not know, when it runs.
func (i *Initramfs) Check() error {
	bytes := 0
	for _, a := range i.Args {
		bytes += len(a)
		switch {
		case a == "" || strings.ContainsFunc(a, unicode.IsControl):
			return fault.New(fault.Usage, "give one argument of dracut each time, such as --arg=--add-drivers --arg=nvme", "%q is no argument for dracut", a)
		case a == "-H" || strings.HasPrefix(a, "--hostonly"):
			return fault.New(fault.Usage, "name what this machine needs: --arg=--add-drivers --arg=nvme",
				"%s: the initramfs is made in a sandbox, where dracut sees nothing of this machine", a)
		}
	}
	if len(i.Args) > maxDracutArgs || bytes > maxDracutBytes {
		return fault.New(fault.Usage, "put a configuration for dracut into the image", "%d arguments of %d bytes for dracut are too many", len(i.Args), bytes)
	}
	return nil
}

// initramfs makes the initramfs of a kernel, with the dracut modules that the
// image's own has.
func (k *kernelFixer) initramfs(ctx context.Context, before []string, version string) error {
	// dracut links equal files of one second to each other: when a clock ticks
	// meanwhile, the same request would come to another initramfs.
	argv := []string{"dracut", "--force", "--no-hostonly", "--reproducible", "--nohardlink", "--tmpdir", boxTools, "--kver", version}
	for _, old := range before {
		modules, err := k.modulesOf(ctx, old)
		if err != nil {
			return err
		}
		if len(modules) > 0 {
			argv = append(argv, "--add", strings.Join(modules, " "))
		}
	}
	if k.want != nil {
		argv = append(argv, k.want.Args...)
	}
	// The image's own must not pass for what dracut was to make.
	name := path.Join(modulesDir, version, "initramfs.img")
	if err := k.merged.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// On the disk: unpacked, an initramfs can be more than a small machine's memory.
	scratch := k.s.path("dracut")
	if err := errors.Join(os.RemoveAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
		return err
	}
	b := *k.box
	b.binds = append(slices.Clone(b.binds), bind{from: scratch, to: boxTools, writable: true})
	if err := k.withoutTimes(&b); err != nil {
		return err
	}
	if err := k.tool(ctx, &b, append(argv, "/"+name)...); err != nil {
		return err
	}
	if !notEmpty(k.merged, name) {
		return fault.New(fault.Conflict, "leave out what names another file or ends dracut", "dracut made no /%s with these arguments: %q", name, argv[1:])
	}
	return nil
}

// withoutTimes has dracut in a box give every file the time that all files of an
// ostree repository have: the same image on the other backend is to come to the
// same initramfs. What is newer than dracut's functions gets the time of those, or
// from SOURCE_DATE_EPOCH where dracut knows of that.
func (k *kernelFixer) withoutTimes(b *box) error {
	const functions = "usr/lib/dracut/dracut-functions.sh"
	session, err := os.OpenRoot(k.s.dir)
	if err != nil {
		return err
	}
	defer session.Close()
	err = copyBetween(k.merged, functions, session, path.Base(functions))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = session.Chtimes(path.Base(functions), time.Time{}, time.Unix(0, 0))
	}
	b.binds = append(b.binds, bind{from: k.s.path(path.Base(functions)), to: "/" + functions})
	b.env = append(b.env, "SOURCE_DATE_EPOCH=0")
	return err
}

// modulesOf lists the dracut modules of a kernel's initramfs in the base which
// the root still has.
func (k *kernelFixer) modulesOf(ctx context.Context, version string) ([]string, error) {
	name := path.Join(modulesDir, version, "initramfs.img")
	tools, err := os.OpenRoot(k.s.dir)
	if err != nil {
		return nil, err
	}
	defer tools.Close()
	err = copyBetween(k.base, name, tools, "initramfs.img")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := *k.box
	b.binds = append(slices.Clone(b.binds), bind{from: k.s.path("initramfs.img"), to: path.Join(boxTools, "initramfs.img")})
	out, err := b.run(ctx, command{argv: []string{"lsinitrd", "--mod", path.Join(boxTools, "initramfs.img")}})
	if err != nil || out.code != 0 {
		return nil, err
	}
	dirs, err := fs.Glob(k.merged.FS(), "usr/lib/dracut/modules.d/[0-9]*")
	if err != nil {
		return nil, err
	}
	var modules []string
	for line := range strings.Lines(out.stdout) {
		// "dracut modules:" stands above them.
		module := strings.TrimSpace(line)
		there := func(dir string) bool { return strings.TrimLeft(path.Base(dir), "0123456789") == module }
		if module != "" && slices.ContainsFunc(dirs, there) {
			modules = append(modules, module)
		}
	}
	return modules, nil
}
