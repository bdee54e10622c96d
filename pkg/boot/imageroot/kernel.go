package imageroot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/selinux"
)

const (
	// kernelPrefix begins the names of kernel directories and of unified images.
	kernelPrefix = "bootc_composefs-"
	// espKernels holds the kernel directories where the boot directory is an EFI
	// system partition.
	espKernels = "EFI/Linux"
	modulesDir = "usr/lib/modules"
	vmlinuz    = "vmlinuz"
	initrd     = "initrd"
)

// kernel is what an image boots: a kernel with its initrd, or both in one file.
type kernel struct {
	// digest returns the sha256 of kernel and initrd one after the other, hex.
	digest func() (string, error)
	// files are what the boot directory gets for it: below a directory of that
	// name, or a unified kernel image under just that name.
	files   func(name string) []loader.File
	unified bool
	cmdline karg.Args // of a unified kernel image
	local   string    // its sum, where it was made here
}

// findKernel finds the kernel of an image, in usr/lib/modules/VERSION. None, or
// one without its initramfs, is a Conflict, and so are two.
func findKernel(image *source.Image) (*kernel, error) {
	modules := image.Lookup(modulesDir)
	if modules == nil || !modules.IsDir() {
		return nil, noKernel()
	}
	version := ""
	var linux *fstree.Inode
	for _, e := range modules.Entries() {
		n := image.Lookup(path.Join(modulesDir, e.Name, vmlinuz))
		if n == nil || !n.IsRegular() {
			continue
		}
		if linux != nil {
			return nil, fault.New(fault.Conflict, "an image must hold one kernel: remove the other directory in /usr/lib/modules",
				"the image has two kernels, %s and %s", version, e.Name)
		}
		version, linux = e.Name, n
	}
	if linux == nil {
		return nil, noKernel()
	}
	ramdisk := image.Lookup(path.Join(modulesDir, version, "initramfs.img"))
	if ramdisk == nil || !ramdisk.IsRegular() {
		return nil, fault.New(fault.Conflict, "the image needs /usr/lib/modules/"+version+"/initramfs.img", "the image has no initramfs")
	}
	k := &kernel{files: func(dir string) []loader.File {
		file := func(name string, n *fstree.Inode) loader.File {
			return loader.File{Path: path.Join(dir, name), Size: n.Size, Open: func() (io.ReadCloser, error) { return image.OpenInode(n) }}
		}
		return []loader.File{file(vmlinuz, linux), file(initrd, ramdisk)}
	}}
	k.digest = func() (string, error) {
		h := sha256.New()
		for _, f := range k.files("") {
			if err := copyFile(h, f); err != nil {
				return "", fmt.Errorf("checksum the kernel: %w", err)
			}
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	return k, nil
}

func noKernel() error {
	return fault.New(fault.Conflict, "the image needs /usr/lib/modules/VERSION/vmlinuz and initramfs.img, or a unified kernel image in /"+uki.Dir, "the image has no kernel")
}

func copyFile(w io.Writer, f loader.File) error {
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	written, err := io.Copy(w, r)
	if err == nil && written != f.Size {
		err = fault.New(fault.Corrupt, "kedge fsck finds damaged objects", "%d of %d bytes could be read", written, f.Size)
	}
	return err
}

// bootPrefix is what stands before paths in entries: boot loaders know the
// file system, not where it is mounted.
func (s *Sysroot) bootPrefix() (string, error) {
	boot, err := s.bootDir()
	if err != nil || s.onLoader() {
		return "/", err
	}
	same, err := bootdir.SameFilesystem(s.root, boot)
	if err != nil || !same {
		return "/", err
	}
	return "/boot/", nil
}

// kernelDirs is where new kernels go, beneath the boot directory: where those
// of the list are.
func (s *Sysroot) kernelDirs() string {
	if s.onLoader() {
		return espKernels
	}
	for _, d := range s.list {
		if linux, ok := d.Entry.Get("linux"); ok && path.Dir(path.Dir(linux)) == "/"+espKernels {
			return espKernels
		}
	}
	return "."
}

// kernelOf returns the directory beneath the boot directory that holds the kernel
// of an entry, or the unified kernel image there; false for one that bootc or
// kedge did not lay out.
func kernelOf(e *bls.Entry) (name string, ok bool) {
	if name, ok := ukiOf(e); ok {
		return name, isUKI(name)
	}
	linux, ok := e.Get("linux")
	name = path.Dir(bootdir.Beneath(linux))
	return name, ok && path.Base(linux) == vmlinuz && strings.HasPrefix(path.Base(name), kernelPrefix)
}

// isKernelName reports whether a name is one that bootc and kedge give to
// directories of kernels and to unified kernel images.
func isKernelName(name string) bool {
	digest, ok := strings.CutPrefix(strings.TrimSuffix(name, uki.Suffix), kernelPrefix)
	return ok && digestForm.MatchString(digest)
}

// nameKernel names the kernel's files in the entry of a new deployment: in the
// directory of one that has the same kernel, else in one of its own.
func (s *Sysroot) nameKernel(d *Deployment, k *kernel) error {
	prefix, err := s.bootPrefix()
	if err != nil {
		return err
	}
	if k.unified {
		d.Entry.Set(ukiKeys[0], prefix+ukiPath(d, k))
		return nil
	}
	dir := path.Join(s.kernelDirs(), kernelPrefix+d.Digest)
	for _, o := range s.list {
		if shared, ok := kernelOf(o.Entry); ok && o.Type == TypeBLS && o.BootDigest() == d.BootDigest() {
			dir = shared
			break
		}
	}
	d.Entry.Set("linux", prefix+path.Join(dir, vmlinuz))
	d.Entry.SetInitrds([]string{prefix + path.Join(dir, initrd)})
	return nil
}

// kernelOf returns what a deployment of the list boots.
func (i *images) kernelOf(d *Deployment) (*kernel, error) {
	if sum := d.localUKI(); sum != "" {
		return i.findLocal(sum)
	}
	if d.Type == TypeUKI {
		return i.findUKI(d.Digest)
	}
	image, err := i.get(d.Digest)
	if err != nil {
		return nil, err
	}
	return findKernel(image)
}

// missingKernel returns the kernel of a deployment if it is not in the boot
// directory, with the name for it; nil where it is, or is not kedge's to make.
func (s *Sysroot) missingKernel(images *images, d *Deployment) (*kernel, string, error) {
	name, ok := kernelOf(d.Entry)
	if !ok {
		return nil, "", nil
	}
	there := func(name string) bool { _, err := s.boot.Lstat(name); return err == nil }
	if d.Type == TypeUKI && there(name) || there(path.Join(name, vmlinuz)) && there(path.Join(name, initrd)) {
		return nil, "", nil
	}
	k, err := images.kernelOf(d)
	return k, name, err
}

// kernelTmp is where a kernel is put together, beside its directory.
const kernelTmp = ".kedge-kernel.tmp"

// installKernel puts the kernel of a deployment into the boot directory, unless
// it is there. Its directory, or file, appears there whole or not at all, and its data is
// durable before it does, so one that is there is never read; bootc, which reads
// all of them, finds none without its initrd. It works on a FAT file system too,
// which has neither links nor attributes.
func (s *Sysroot) installKernel(ctx context.Context, images *images, d *Deployment) (err error) {
	k, name, err := s.missingKernel(images, d)
	if k == nil || err != nil {
		return err
	}
	image, err := images.get(d.Digest)
	if err != nil {
		return err
	}
	if err := s.checkBootSpace(k); err != nil {
		return err
	}
	lab, err := selinux.Load(image)
	if err != nil {
		return err
	}
	tmp := path.Join(path.Dir(name), kernelTmp)
	defer func() {
		if err != nil {
			_ = s.boot.RemoveAll(tmp)
			err = fmt.Errorf("install the kernel: %w", err)
		}
	}()
	if err := s.boot.RemoveAll(tmp); err != nil {
		return err
	}
	for _, f := range k.files(tmp) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.writeKernel(f); err != nil {
			return err
		}
		if lab != nil {
			as := "/boot/" + name + strings.TrimPrefix(f.Path, tmp)
			if err := s.labelBoot(path.Dir(f.Path), path.Base(f.Path), as, lab); err != nil {
				return err
			}
		}
	}
	// What is there of it lacks one of the two.
	if err := s.boot.RemoveAll(name); err != nil {
		return err
	}
	return s.boot.Rename(tmp, name)
}

func (s *Sysroot) writeKernel(from loader.File) error {
	if err := s.boot.MkdirAll(path.Dir(from.Path), 0o755); err != nil {
		return err
	}
	f, err := s.boot.OpenFile(from.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err = copyFile(f, from); err == nil && !s.opts.NoSync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// labelBoot gives a kernel the label that readers of /boot may read.
func (s *Sysroot) labelBoot(dir, name, as string, lab *selinux.Policy) error {
	label, ok := lab.Label(as, 0o100644)
	if !ok {
		return nil
	}
	d, err := dirfd.Open(s.boot, dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.SetXattr(name, dirfd.Xattr{Name: dirfd.SELinux, Value: label + "\x00"})
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// checkBootSpace refuses to begin what would fill the boot file system.
func (s *Sysroot) checkBootSpace(k *kernel) error {
	block, free, err := bootdir.Space(s.boot)
	if err != nil {
		return err
	}
	if need := k.bytes(block); !bootdir.Fits(need, free) {
		return bootdir.NoSpace(need, free)
	}
	return nil
}

// bytes is what installing the kernel adds, in blocks of size block.
func (k *kernel) bytes(block int64) int64 {
	var need int64
	for _, f := range k.files("") {
		need += (f.Size + block - 1) / block * block
	}
	return need
}
