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
	"github.com/kedge-os/kedge/pkg/boot/source"
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

// kernel is what an image boots.
type kernel struct {
	version         string
	vmlinuz, initrd *fstree.Inode
	digest          string // sha256 of vmlinuz and initrd one after the other
}

// findKernel finds the kernel of an image, in usr/lib/modules/VERSION. None, or
// one without its initramfs, is a Conflict, and so are two.
func findKernel(image *source.Image) (*kernel, error) {
	k := &kernel{}
	modules := image.Lookup(modulesDir)
	if modules == nil || !modules.IsDir() {
		return nil, noKernel()
	}
	for _, e := range modules.Entries() {
		n := image.Lookup(path.Join(modulesDir, e.Name, vmlinuz))
		if n == nil || !n.IsRegular() {
			continue
		}
		if k.vmlinuz != nil {
			return nil, fault.New(fault.Conflict, "an image must hold one kernel: remove the other directory in /usr/lib/modules",
				"the image has two kernels, %s and %s", k.version, e.Name)
		}
		k.version, k.vmlinuz = e.Name, n
	}
	if k.vmlinuz == nil {
		return nil, noKernel()
	}
	k.initrd = image.Lookup(path.Join(modulesDir, k.version, "initramfs.img"))
	if k.initrd == nil || !k.initrd.IsRegular() {
		return nil, fault.New(fault.Conflict, "the image needs /usr/lib/modules/"+k.version+"/initramfs.img", "the image has no initramfs")
	}
	return k, nil
}

func noKernel() error {
	return fault.New(fault.Conflict, "the image needs /usr/lib/modules/VERSION/vmlinuz and initramfs.img", "the image has no kernel")
}

// checksum computes the kernel's digest.
func (k *kernel) checksum(image *source.Image) error {
	h := sha256.New()
	for _, n := range []*fstree.Inode{k.vmlinuz, k.initrd} {
		if err := copyInode(h, image, n); err != nil {
			return fmt.Errorf("checksum the kernel: %w", err)
		}
	}
	k.digest = hex.EncodeToString(h.Sum(nil))
	return nil
}

func copyInode(w io.Writer, image *source.Image, n *fstree.Inode) error {
	r, err := image.OpenInode(n)
	if err != nil {
		return err
	}
	defer r.Close()
	written, err := io.Copy(w, r)
	if err == nil && written != n.Size {
		err = fault.New(fault.Corrupt, "kedge fsck finds damaged objects", "%d of %d bytes could be read", written, n.Size)
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

// kernelDirOf returns the directory beneath the boot directory that holds the
// kernel of an entry; false for one that bootc or kedge did not lay out.
func kernelDirOf(e *bls.Entry) (dir string, ok bool) {
	linux, ok := e.Get("linux")
	dir = strings.TrimPrefix(path.Dir(path.Clean("/"+linux)), "/boot/")
	dir = strings.TrimPrefix(dir, "/")
	return dir, ok && path.Base(linux) == vmlinuz && strings.HasPrefix(path.Base(dir), kernelPrefix)
}

// nameKernel names the kernel's files in the entry of a new deployment: in the
// directory of one that has the same kernel, else in one of its own.
func (s *Sysroot) nameKernel(d *Deployment, k *kernel) error {
	prefix, err := s.bootPrefix()
	if err != nil {
		return err
	}
	dir := path.Join(s.kernelDirs(), kernelPrefix+d.Digest)
	for _, o := range s.list {
		if shared, ok := kernelDirOf(o.Entry); ok && o.BootDigest() == k.digest {
			dir = shared
			break
		}
	}
	d.Entry.Set("linux", prefix+path.Join(dir, vmlinuz))
	d.Entry.SetInitrds([]string{prefix + path.Join(dir, initrd)})
	return nil
}

// missingKernel returns the kernel of a deployment if it is not in the boot
// directory, with the directory for it; nil where it is, or is not kedge's to
// make.
func (s *Sysroot) missingKernel(images *images, d *Deployment) (*kernel, string, error) {
	dir, ok := kernelDirOf(d.Entry)
	if !ok {
		return nil, "", nil
	}
	there := func(name string) bool { _, err := s.boot.Lstat(path.Join(dir, name)); return err == nil }
	if there(vmlinuz) && there(initrd) {
		return nil, "", nil
	}
	image, err := images.get(d.Digest)
	if err != nil {
		return nil, "", err
	}
	k, err := findKernel(image)
	return k, dir, err
}

// kernelTmp is where a kernel is put together, beside its directory.
const kernelTmp = ".kedge-kernel.tmp"

// installKernel puts the kernel of a deployment into the boot directory, unless
// it is there. Its directory appears there whole or not at all, and its data is
// durable before it does, so one that is there is never read; bootc, which reads
// all of them, finds none without its initrd. It works on a FAT file system too,
// which has neither links nor attributes.
func (s *Sysroot) installKernel(ctx context.Context, images *images, d *Deployment) (err error) {
	k, dir, err := s.missingKernel(images, d)
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
	tmp := path.Join(path.Dir(dir), kernelTmp)
	defer func() {
		if err != nil {
			_ = s.boot.RemoveAll(tmp)
			err = fmt.Errorf("install the kernel: %w", err)
		}
	}()
	if err := s.boot.RemoveAll(tmp); err != nil {
		return err
	}
	if err := s.boot.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	for name, n := range k.files() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.writeKernel(image, n, path.Join(tmp, name)); err != nil {
			return err
		}
		if lab != nil {
			if err := s.labelBoot(tmp, name, "/boot/"+path.Join(dir, name), lab); err != nil {
				return err
			}
		}
	}
	// What is there of it lacks one of the two.
	if err := s.boot.RemoveAll(dir); err != nil {
		return err
	}
	return s.boot.Rename(tmp, dir)
}

// files returns the kernel's files by their names in the boot directory.
func (k *kernel) files() map[string]*fstree.Inode {
	return map[string]*fstree.Inode{vmlinuz: k.vmlinuz, initrd: k.initrd}
}

func (s *Sysroot) writeKernel(image *source.Image, n *fstree.Inode, name string) error {
	f, err := s.boot.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err = copyInode(f, image, n); err == nil && !s.opts.NoSync {
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
	for _, n := range k.files() {
		need += (n.Size + block - 1) / block * block
	}
	return need
}
