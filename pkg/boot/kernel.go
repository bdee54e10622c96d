package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
)

// modulesDir holds a directory per kernel version with what is booted.
const modulesDir = "usr/lib/modules"

// kernelFile is a file of the tree's kernel directory and its name in /boot.
type kernelFile struct {
	src, dst string
	size     int64
}

// Kernel is what a tree boots: the files, found in usr/lib/modules/VERSION or
// in one of libostree's older places, and their checksum.
type Kernel struct {
	Version  string
	Bootcsum string

	dir        string // beneath the deployment
	kernel     kernelFile
	initramfs  *kernelFile
	devicetree *kernelFile
	dtbDir     bool // all of dtb/ instead of one device tree
	dtbSize    int64
	hmac       *kernelFile
	aboot      *kernelFile
}

// files returns every single file to install, the kernel first.
func (k *Kernel) files() []kernelFile {
	list := []kernelFile{k.kernel}
	for _, f := range []*kernelFile{k.initramfs, k.devicetree, k.hmac, k.aboot} {
		if f != nil {
			list = append(list, *f)
		}
	}
	return list
}

// FindKernel finds the kernel of a tree and computes its bootcsum: the sha256
// of kernel, initramfs and device tree one after the other (the HMAC file and
// an Android boot image are left out). None is a Conflict, and so are two,
// since libostree would take the one that the directory lists first.
func FindKernel(root *os.Root) (*Kernel, error) {
	k, err := locateKernel(root)
	if err != nil || k.Bootcsum != "" {
		return k, err
	}
	return k, k.checksum(root)
}

// locateKernel is FindKernel without the checksum, for trees whose kernel is
// installed already.
func locateKernel(root *os.Root) (*Kernel, error) {
	k, err := modulesKernel(root)
	if err != nil {
		return nil, err
	}
	if k == nil || k.initramfs == nil {
		old, err := legacyKernel(root)
		if err != nil {
			return nil, err
		}
		if old != nil && (k == nil || old.initramfs != nil) {
			return old, nil
		}
	}
	if k == nil {
		return nil, fault.New(fault.Conflict, "the image needs /usr/lib/modules/VERSION/vmlinuz and initramfs.img", "the image has no kernel")
	}
	return k, nil
}

func modulesKernel(root *os.Root) (*Kernel, error) {
	versions, err := dirfd.ReadNames(root, modulesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the kernel: %w", err)
	}
	found := ""
	for _, v := range versions {
		st, err := root.Stat(path.Join(modulesDir, v, "vmlinuz"))
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		if found != "" {
			return nil, fault.New(fault.Conflict, "an image must hold one kernel: remove the other directory in /usr/lib/modules",
				"the image has two kernels, %s and %s", found, v)
		}
		found = v
	}
	if found == "" {
		return nil, nil
	}
	return readKernel(root, found)
}

// readKernel describes usr/lib/modules/VERSION.
func readKernel(root *os.Root, version string) (*Kernel, error) {
	k := &Kernel{Version: version, dir: path.Join(modulesDir, version)}
	find := func(src, dst string) (*kernelFile, error) {
		st, err := root.Stat(path.Join(k.dir, src))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return &kernelFile{src: src, dst: dst, size: st.Size()}, nil
	}
	kernel, err := find("vmlinuz", "vmlinuz-"+version)
	if err != nil {
		return nil, err
	}
	k.kernel = *kernel
	for _, name := range []string{"initramfs.img", "initramfs"} {
		if k.initramfs == nil {
			if k.initramfs, err = find(name, "initramfs-"+version+".img"); err != nil {
				return nil, err
			}
		}
	}
	if k.devicetree, err = find("devicetree", "devicetree-"+version); err != nil {
		return nil, err
	}
	if k.hmac, err = find(".vmlinuz.hmac", ".vmlinuz-"+version+".hmac"); err != nil {
		return nil, err
	}
	if k.aboot, err = find("aboot.img", "aboot-"+version+".img"); err != nil {
		return nil, err
	}
	st, err := root.Stat(path.Join(k.dir, "dtb"))
	k.dtbDir = k.devicetree == nil && err == nil && st.IsDir()
	return k, nil
}

func (k *Kernel) checksum(root *os.Root) error {
	h := sha256.New()
	for _, f := range []*kernelFile{&k.kernel, k.initramfs, k.devicetree} {
		if f == nil {
			continue
		}
		if err := hashFile(h, root, path.Join(k.dir, f.src)); err != nil {
			return fmt.Errorf("checksum the kernel: %w", err)
		}
	}
	if k.dtbDir {
		if err := k.hashTree(h, root, path.Join(k.dir, "dtb")); err != nil {
			return fmt.Errorf("checksum the device trees: %w", err)
		}
	}
	k.Bootcsum = hex.EncodeToString(h.Sum(nil))
	return nil
}

// hashTree adds the contents of every file below a directory, a subdirectory
// where its name sorts among the files. What a symlink leads to counts as its
// content, a broken one as nothing.
func (k *Kernel) hashTree(h hash.Hash, root *os.Root, name string) error {
	dir, err := dirfd.Open(root, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Walk(func(_ *dirfd.Dir, _, below string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		k.dtbSize += st.Size
		err := hashFile(h, root, path.Join(name, below))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

func hashFile(h hash.Hash, root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(h, f)
	return err
}

// legacyDirs are where trees kept their kernel before usr/lib/modules, with
// the bootcsum at the end of each name.
var legacyDirs = []string{"usr/lib/ostree-boot", "boot"}

// legacyKernel reads the first of legacyDirs that is there; nil without a
// kernel in it.
func legacyKernel(root *os.Root) (*Kernel, error) {
	for _, dir := range legacyDirs {
		names, err := dirfd.ReadNames(root, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for the kernel: %w", err)
		}
		return readLegacy(root, dir, names)
	}
	return nil, nil
}

func readLegacy(root *os.Root, dir string, names []string) (*Kernel, error) {
	k := &Kernel{dir: dir}
	for _, name := range names {
		base, sum, ok := cutChecksum(name)
		if !ok {
			continue
		}
		st, err := root.Stat(path.Join(dir, name))
		if err != nil {
			return nil, err
		}
		f := &kernelFile{src: name, dst: base, size: st.Size()}
		switch {
		case strings.HasPrefix(base, "vmlinuz"):
			k.kernel, k.Version = *f, strings.TrimPrefix(base, "vmlinuz-")
		case strings.HasPrefix(base, "initramfs"):
			k.initramfs = f
		case strings.HasPrefix(base, "devicetree"):
			k.devicetree = f
		default:
			continue
		}
		if k.Bootcsum != "" && k.Bootcsum != sum {
			return nil, fault.New(fault.Corrupt, "the image has to be repaired", "kernel, initramfs and device tree in %s have different checksums in their names", dir)
		}
		k.Bootcsum = sum
	}
	if k.kernel.src == "" {
		return nil, nil
	}
	return k, nil
}

// cutChecksum splits "vmlinuz-5.1-CHECKSUM".
func cutChecksum(name string) (base, sum string, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 || !checksumForm.MatchString(name[i+1:]) {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}
