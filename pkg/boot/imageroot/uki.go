package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

// A unified kernel image is signed with the command line that it has: the
// argument composefs= that names the image, and all others. So its deployment
// has these and no others, and its boot entry, bootc's with the key "efi", has no
// options. It stands in ukiDir under the digest of the image that it boots. What
// needs others has a unified kernel image that was made here; see uki_local.go.
const ukiDir = espKernels + "/bootc"

// ukiKeys are the keys of entries that name a unified kernel image; the first is
// understood by every version of systemd-boot.
var ukiKeys = []string{"efi", "uki"}

// UKIFile is a unified kernel image that a repository has.
type UKIFile interface {
	io.ReadCloser
	io.ReaderAt
	Stat() (fs.FileInfo, error)
}

func decodeUKI(f UKIFile) (*uki.Image, int64, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	u, err := uki.Decode(f, st.Size())
	return u, st.Size(), err
}

// findUKI returns the unified kernel image that came with an image; NotFound where
// none did.
func (i *images) findUKI(digest string) (*kernel, error) {
	return unifiedKernel(func() (UKIFile, error) { return i.openUKI(digest) })
}

func unifiedKernel(open func() (UKIFile, error)) (*kernel, error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	u, size, err := decodeUKI(f)
	if err != nil {
		return nil, err
	}
	return &kernel{
		unified: true, cmdline: u.Cmdline,
		digest: func() (string, error) {
			f, err := open()
			if err != nil {
				return "", err
			}
			defer f.Close()
			u, _, err := decodeUKI(f)
			if err != nil {
				return "", err
			}
			return u.BootDigest()
		},
		files: func(name string) []loader.File {
			return []loader.File{{Path: name, Size: size, Open: func() (io.ReadCloser, error) { return open() }}}
		},
	}, nil
}

func (i *images) openUKI(digest string) (UKIFile, error) {
	f, err := i.repo.UKI(i.ctx, digest)
	if f == nil && err == nil {
		err = fault.New(fault.NotFound, "kedge fsck --repair fetches it", "the unified kernel image of %.12s is not here", digest)
	}
	return f, err
}

// BootsUKI reports whether a deployment of the image would boot the unified
// kernel image that came with it.
func (s *Sysroot) BootsUKI(ctx context.Context, digest string) (bool, error) {
	images := s.newImages(ctx)
	k, err := s.chooseKernel(images, digest)
	return err == nil && k.unified, err
}

// chooseKernel returns what a new deployment of an image boots. systemd-boot gets
// the unified kernel image of one that has a separate kernel too; other loaders
// the separate one, and GRUB has nothing else that it could start.
func (s *Sysroot) chooseKernel(images *images, digest string) (*kernel, error) {
	image, err := images.get(digest)
	if err != nil {
		return nil, err
	}
	u, err := images.findUKI(digest)
	if fault.KindOf(err) == fault.NotFound {
		return findKernel(image)
	}
	if err != nil || s.loader.Name() == loader.NameSystemdBoot {
		return u, err
	}
	k, err := findKernel(image)
	switch {
	case fault.KindOf(err) != fault.Conflict:
		return k, err
	case s.loader.Name() == loader.NameGRUB:
		return nil, fault.New(fault.Conflict, "install with --bootloader systemd-boot", "the image has a unified kernel image alone, which GRUB is not made to start")
	}
	return u, nil
}

// seal makes a deployment one of a unified kernel image and returns that: its
// image's, or where it is to have other arguments or its image has other files, one
// that is made here. What another image's had went with that.
func (s *Sysroot) seal(d *Deployment, k *kernel, images *images, r DeployRequest) (*kernel, error) {
	named, optional, ok := ImageOf(k.cmdline)
	switch {
	case !ok:
		return nil, fault.New(fault.Conflict, "rebuild it with composefs=DIGEST; kedge container digest tells the digest",
			"the command line of the unified kernel image names no image")
	case named != r.Digest && !r.Derived:
		return nil, fault.New(fault.Untrusted, "rebuild the image: its unified kernel image belongs to another tree",
			"the unified kernel image boots %.12s, and the image is %.12s", named, r.Digest)
	case r.VerityOptional && !optional:
		return nil, fault.New(fault.Conflict, "use a file system that has fs-verity (ext4 made with -O verity, btrfs)",
			"the unified kernel image demands fs-verity, which the file system does not have")
	}
	d.Type, d.cmdline, d.VerityOptional = TypeUKI, k.cmdline, optional
	wanted, err := s.sealedKargs(d, images, r)
	if err != nil {
		return nil, err
	}
	differs := difference(wanted, d.Kargs())
	if differs != "" || named != r.Digest {
		return s.local(d, named, wanted, differs, images, r)
	}
	// Two have one name: nothing that boots is written over.
	old := s.first(func(o *Deployment) bool {
		return !o.Staged && o.Type == TypeUKI && o.localUKI() == "" && o.sameState(d)
	})
	if old == nil {
		return k, nil
	}
	if err := s.CheckKernel(images.ctx, old); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOtherUKI, err)
	}
	return k, nil
}

// sealedKargs returns the arguments that a deployment with a unified kernel image,
// whose arguments it has so far, is to have.
func (s *Sysroot) sealedKargs(d *Deployment, images *images, r DeployRequest) (karg.Args, error) {
	if r.ExactKargs {
		return r.Kargs, nil
	}
	brings, err := s.imageKargs(images, d.Digest)
	if err != nil {
		return nil, err
	}
	fresh := d.Kargs().AppendMissing(brings...)
	wanted := r.Kargs
	if wanted == nil && r.Merge != nil && (r.Merge.Type == TypeBLS || r.Merge.localUKI() != "") {
		wanted = r.Merge.Kargs()
	}
	switch {
	case wanted == nil:
		return fresh, nil
	case r.Merge != nil && r.Merge.Type == TypeUKI:
		old, err := s.kargsOf(images, r.Merge)
		return wanted.Rebase(old, fresh), err
	case r.Merge != nil:
		old, err := s.imageKargs(images, r.Merge.Digest)
		if err != nil {
			return nil, err
		}
		wanted = wanted.Rebase(old, nil)
	}
	// What the machine says of its root, or of its console, is right for it.
	own := wanted
	for _, arg := range fresh {
		overrides := func(o string) bool { return karg.Key(o) == karg.Key(arg) && !fresh.Contains(o) }
		if !slices.ContainsFunc(own, overrides) {
			wanted = wanted.AppendMissing(arg)
		}
	}
	return wanted, nil
}

// difference says how the arguments that a unified kernel image has are not those
// that are wanted; "" where they are.
func difference(wanted, has karg.Args) string {
	for _, arg := range wanted {
		if !has.Contains(arg) {
			return "has no " + arg
		}
	}
	for _, arg := range has {
		if !wanted.Contains(arg) {
			return "has " + arg
		}
	}
	return ""
}

// ErrOtherUKI is what a unified kernel image is answered with that boots a root
// which is deployed with another one.
var ErrOtherUKI = fault.New(fault.Conflict, "build the image with a difference in its files too, such as BUILD_ID in /usr/lib/os-release",
	"the image has the very files of a deployment that is there, and another unified kernel image for them")

// readUKI reads the arguments of a deployment's unified kernel image in the boot
// directory.
func (s *Sysroot) readUKI(d *Deployment) error {
	name, ok := kernelOf(d.Entry)
	if !ok {
		return fault.New(fault.Corrupt, "", "the entry names no unified kernel image of its own")
	}
	if st, err := s.boot.Stat(name); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, fault.New(fault.Corrupt, "", "%s is not a file", name))
	}
	f, err := s.boot.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	u, _, err := decodeUKI(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	named, optional, ok := ImageOf(u.Cmdline)
	if !ok || named != d.Digest {
		return fault.New(fault.Corrupt, "run kedge fsck", "%s boots another image (%.12s)", name, named)
	}
	d.cmdline, d.VerityOptional = u.Cmdline, optional
	return nil
}

// CheckKernel compares the unified kernel image of a deployment, byte by byte,
// with the one that came with its image; or the sum of one that was made here with
// the sum that it had. Of other deployments it looks for what their entry names.
func (s *Sysroot) CheckKernel(ctx context.Context, d *Deployment) error {
	if d.Type != TypeUKI {
		return bootdir.CheckEntry(s.boot, d.Entry)
	}
	if err := s.readUKI(d); err != nil {
		return err
	}
	if d.localUKI() != "" {
		return s.checkLocal(d)
	}
	f, err := s.opts.Repo.UKI(ctx, d.Digest)
	if f == nil || err != nil {
		return err
	}
	defer f.Close()
	name, _ := kernelOf(d.Entry)
	have, err := s.boot.Open(name)
	if err != nil {
		return err
	}
	defer have.Close()
	same, err := loader.SameBytes(f, have)
	if err == nil && !same {
		err = fault.New(fault.Corrupt, "", "%s is not what came with the image", name)
	}
	return err
}

// ukiOf returns the unified kernel image that an entry names, beneath the boot
// directory.
func ukiOf(e *bls.Entry) (name string, found bool) {
	for _, key := range ukiKeys {
		if v, ok := e.Get(key); ok {
			return bootdir.Beneath(v), true
		}
	}
	return "", false
}
