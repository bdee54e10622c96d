package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
)

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
		if err := to.CopyTree(from, "dtb"); err != nil {
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
