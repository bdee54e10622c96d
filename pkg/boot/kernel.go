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
	versions, err := readNames(root, modulesDir)
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
		names, err := readNames(root, dir)
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

// missing returns the bytes that installing k would add to the boot
// directory dst, which may not exist, in blocks of size block.
func (k *Kernel) missing(boot *os.Root, dst string, block int64) int64 {
	var need int64
	for _, f := range k.files() {
		if _, err := boot.Lstat(path.Join(dst, f.dst)); err != nil {
			need += (f.size + block - 1) / block * block
		}
	}
	if _, err := boot.Lstat(path.Join(dst, "dtb")); k.dtbDir && err != nil {
		// Directories of many small files: half a block each is lost.
		need += k.dtbSize + k.dtbSize/4
	}
	return need
}

// install puts the kernel's files into boot/ostree/NAME, as hardlinks where
// the file system is the same. A file appears there whole or not at all, and
// its data is durable before it does, so one that is there is never read.
func (s *Sysroot) installKernel(k *Kernel, deployment *os.Root, d *Deployment, labels Labeler) error {
	boot, err := s.bootDir()
	if err != nil {
		return err
	}
	dst := path.Join("ostree", d.bootName())
	if err := s.checkBootSpace(k, deployment, boot, dst); err != nil {
		return err
	}
	if err := boot.MkdirAll(dst, 0o755); err != nil {
		return fmt.Errorf("install the kernel: %w", err)
	}
	from, err := dirfd.Open(deployment, k.dir)
	if err != nil {
		return fmt.Errorf("install the kernel: %w", err)
	}
	defer from.Close()
	to, err := dirfd.Open(boot, dst)
	if err != nil {
		return fmt.Errorf("install the kernel: %w", err)
	}
	defer to.Close()
	for _, f := range k.files() {
		if err := installFile(from, to, f, labels); err != nil {
			return fmt.Errorf("install the kernel: %w", err)
		}
	}
	if k.dtbDir {
		if err := copyTree(from, to, "dtb"); err != nil {
			return fmt.Errorf("install the device trees: %w", err)
		}
	}
	return nil
}

func installFile(from, to *dirfd.Dir, f kernelFile, labels Labeler) error {
	if there, err := to.Exists(f.dst); there || err != nil {
		return err
	}
	// A symlinked vmlinuz is installed as the file it leads to.
	st, err := from.Lstat(f.src)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fault.New(fault.Corrupt, "the image has to be repaired", "%s/%s is not a regular file", from.Path(), f.src)
	}
	err = unix.Linkat(from.Fd(), f.src, to.Fd(), f.dst, 0)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EPERM) {
		return &fs.PathError{Op: "link", Path: f.dst, Err: err}
	}
	meta := dirfd.Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Sync: true}
	if labels != nil {
		// In the tree it has a label for kernel modules or /usr; what reads /boot
		// is not allowed to read those.
		if l, ok := labels.Label("/boot/"+f.dst, unix.S_IFREG|0o644); ok {
			meta.Xattrs = []dirfd.Xattr{{Name: dirfd.SELinux, Value: l + "\x00"}}
		}
	}
	return to.CopyFile(from, f.src, f.dst, meta)
}

// copyTree copies a directory with everything in it.
func copyTree(from, to *dirfd.Dir, name string) error {
	if err := to.Mkdir(name); err != nil {
		return err
	}
	src, err := from.Sub(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Sub(name)
	if err != nil {
		return err
	}
	defer dst.Close()
	names, err := src.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := copyAny(src, dst, n); err != nil {
			return err
		}
	}
	st, err := src.Lstat(".")
	if err != nil {
		return err
	}
	return dst.SetMeta(".", st.Uid, st.Gid, st.Mode, nil)
}

// copyAny copies an entry, a directory with everything in it, without extended
// attributes; sockets, fifos and devices are left out.
func copyAny(src, dst *dirfd.Dir, name string) error {
	st, err := src.Lstat(name)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return copyTree(src, dst, name)
	case unix.S_IFREG:
		return dst.CopyFile(src, name, name, dirfd.Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Mtime: st.Mtim, Sync: true})
	case unix.S_IFLNK:
		return copySymlink(src, dst, name)
	}
	return nil
}

func copySymlink(src, dst *dirfd.Dir, name string) error {
	target, err := src.Readlink(name)
	if err != nil {
		return err
	}
	if err := dst.Remove(name); err != nil {
		return err
	}
	return dst.Symlink(target, name)
}

// spaceMargin is what is asked for beside the kernels: entries, directories.
const spaceMargin = 1 << 20

// checkBootSpace refuses to begin what would fill the boot file system.
func (s *Sysroot) checkBootSpace(k *Kernel, deployment, boot *os.Root, dst string) error {
	if same, err := sameFilesystem(deployment, boot); err != nil || same {
		return err
	}
	f, err := boot.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("ask for the free space of /boot: %w", err)
	}
	need, free := k.missing(boot, dst, st.Bsize), int64(st.Bavail)*st.Bsize
	if need == 0 || need+spaceMargin <= free {
		return nil
	}
	return fault.New(fault.NoSpace, "free space on /boot (kedge cleanup removes old deployments) and run the command again; nothing was changed",
		"install the kernel: %d bytes are needed on /boot and %d are free", need+spaceMargin, free)
}
