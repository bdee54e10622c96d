package setuproot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Options say where things are; the zero value is an initramfs.
type Options struct {
	Sysroot string // the mounted disk, and where the root goes: /sysroot
	Config  string // ConfigPath
	Cmdline string // a kernel command line; the kernel's own if empty
}

// Outcome tells what Run did.
type Outcome struct {
	Plan    *Plan // nil: the command line names no image, and nothing was done
	Already bool  // the image was the root already
	Sealed  bool  // the kernel checks the image, and every file that is read
}

// Run mounts the image that the kernel command line names as the root.
func Run(ctx context.Context, o Options) (*Outcome, error) {
	plan, err := o.plan()
	if err != nil || plan == nil {
		return &Outcome{}, err
	}
	out := &Outcome{Plan: plan}
	source, err := mountedAt(o.Sysroot)
	switch {
	case err != nil:
		return nil, err
	case source == plan.source():
		out.Already = true
		return out, nil
	case strings.HasPrefix(source, "composefs:"), strings.HasPrefix(source, "transient:composefs="):
		return nil, fault.New(fault.Conflict, "two programs set up the root; the initramfs must have one of them", "%s is %s already, which is not the image that the kernel argument names", o.Sysroot, source)
	}
	if err := keepRootDevice("/dev/gpt-auto-root", "/run/systemd/volatile-root"); err != nil {
		return nil, err
	}
	out.Sealed, err = setUp(ctx, o.Sysroot, plan)
	return out, err
}

func (o *Options) plan() (*Plan, error) {
	if o.Sysroot == "" {
		o.Sysroot = "/sysroot"
	}
	if o.Config == "" {
		o.Config = ConfigPath
	}
	if o.Cmdline == "" {
		b, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return nil, err
		}
		o.Cmdline = string(b)
	}
	var c Config
	text, err := os.ReadFile(o.Config)
	if err == nil {
		if c, err = ParseConfig(string(text)); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Config, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return NewPlan(o.Cmdline, c)
}

// setUp assembles the root in a workshop and moves it over sysroot.
func setUp(ctx context.Context, sysroot string, p *Plan) (sealed bool, err error) {
	disk, err := os.OpenFile(sysroot, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, err
	}
	defer disk.Close()
	image, sealed, err := openImage(ctx, disk, p)
	if err != nil {
		return false, err
	}
	defer image.Close()
	if p.AllowNoVerity {
		sealed = sealed && storeSealed(disk)
	}
	w, err := newWorkshop()
	if err != nil {
		return false, err
	}
	defer w.close()
	b := &builder{workshop: w, disk: disk, plan: p}
	root, err := b.root(image, sealed)
	if err != nil {
		return false, err
	}
	if err := b.fill(root); err != nil {
		return false, err
	}
	// The disk stays mounted beneath, where nobody sees it: there is no moment at
	// which /sysroot is no mount, for systemd to stumble over.
	if err := unix.Mount(root, sysroot, "", unix.MS_MOVE, ""); err != nil {
		return false, fmt.Errorf("move the new root to %s: %w", sysroot, err)
	}
	return sealed, nil
}

// builder assembles a root in its workshop.
type builder struct {
	*workshop
	disk  *os.File
	plan  *Plan
	image string // where the image is mounted, contents and all, without more on it
}

// root mounts the image, and over it a tmpfs if the root is transient, and
// returns the path of the result.
func (b *builder) root(image *os.File, sealed bool) (string, error) {
	erofs, err := b.mkdir("erofs")
	if err != nil {
		return "", err
	}
	if err := mountImage(image, erofs, b.plan.stacked()); err != nil {
		return "", err
	}
	objects, err := openBeneath(b.disk, "composefs/objects", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer objects.Close()
	if b.image, err = b.mkdir("image"); err != nil {
		return "", err
	}
	layers := overlay{source: imageSource(b.plan.Digest), lower: erofs, data: procPath(objects), verity: sealed}
	if err := layers.mount(b.image); err != nil {
		return "", err
	}
	if !b.plan.TransientRoot {
		return b.image, nil
	}
	root, err := b.mkdir("root")
	if err != nil {
		return "", err
	}
	return root, b.transient(b.plan.source(), b.image, "root", root)
}

// fill mounts into root what is not the image's: the disk, /etc and /var.
func (b *builder) fill(root string) error {
	top, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer top.Close()
	// An image without /sysroot boots; it is kedge that will not find its store.
	target, err := openTarget(top, "sysroot")
	if err == nil {
		err = bind(b.disk, target, true)
		_ = target.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.directory(top, "etc", b.plan.Etc); err != nil {
		return err
	}
	return b.directory(top, "var", b.plan.Var)
}

// openTarget opens a directory of the image to mount on it.
func openTarget(top *os.File, name string) (*os.File, error) {
	return openBeneath(top, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// directory mounts /etc or /var into the root.
func (b *builder) directory(top *os.File, name string, how MountType) error {
	if how == MountNone {
		return nil
	}
	target, err := openTarget(top, name)
	if err != nil {
		return fault.New(fault.Conflict, "the image has no such directory", "mount /%s: %w", name, err)
	}
	defer target.Close()
	if how == MountTransient {
		return b.transient("transient", filepath.Join(b.image, name), name, procPath(target))
	}
	// state/deploy/ID/var leads to the state that deployments share.
	state, err := openBeneath(b.disk, "state/deploy/"+b.plan.Digest.String()+"/"+name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "the deployment's state was removed", "mount /%s: %w", name, err)
	}
	if err != nil {
		return err
	}
	defer state.Close()
	if how == MountBind {
		return bind(state, target, false)
	}
	return b.kept(state, filepath.Join(b.image, name), procPath(target))
}

// transient mounts lower at target with its changes on a tmpfs.
func (b *builder) transient(source, lower, name, target string) error {
	upper, err := b.mkdir(name + "-upper")
	if err != nil {
		return err
	}
	work, err := b.mkdir(name + "-work")
	if err != nil {
		return err
	}
	return overlay{source: source, lower: lower, upper: upper, work: work}.mount(target)
}

// kept mounts lower at target with its changes in the directories upper and
// work of state, which are made at the first boot.
func (b *builder) kept(state *os.File, lower, target string) error {
	var paths [2]string
	for i, d := range []struct {
		name string
		perm uint32
	}{{"upper", 0o755}, {"work", 0o700}} {
		if err := unix.Mkdirat(int(state.Fd()), d.name, d.perm); err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "mkdir", Path: state.Name() + "/" + d.name, Err: err}
		}
		dir, err := openBeneath(state, d.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer dir.Close()
		paths[i] = procPath(dir)
	}
	return overlay{source: "overlay", lower: lower, upper: paths[0], work: paths[1]}.mount(target)
}

// mountedAt returns the source of what is mounted at dir, "" if nothing is.
func mountedAt(dir string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	source := ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// ID PARENT DEV ROOT MOUNT-POINT OPTIONS [TAG…] - TYPE SOURCE OPTIONS; of
		// several at one place the last is on top.
		where, what, _ := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(where), strings.Fields(what)
		if len(left) > 4 && len(right) > 1 && left[4] == dir {
			source = right[1]
		}
	}
	return source, lines.Err()
}

// keepRootDevice tells systemd which device an automatically found root is on,
// since behind an overlay it cannot (systemd issue 35017).
func keepRootDevice(device, link string) error {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil //nolint:nilerr // the usual case: root= names the device
	}
	err := os.Symlink(fmt.Sprintf("/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), link)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
