package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// Disk is a raw disk image that holds one file system and no partition table:
// what a kernel booted directly finds as root=LABEL=…
type Disk struct {
	Path string
}

// NewDisk makes a sparse image of size bytes at path with a file system of the
// kind fs (ext4, xfs, btrfs), labelled label.
func NewDisk(ctx context.Context, path, fs, label string, size int64) (*Disk, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	args := []string{"-q", "-L", label, path}
	if fs == "btrfs" {
		args = []string{"-q", "-f", "-L", label, path}
	}
	if _, err := Command(ctx, "mkfs."+fs, args...); err != nil {
		return nil, err
	}
	return &Disk{Path: path}, nil
}

// With mounts the disk in a directory of its own, calls fn with it, and
// unmounts. The guest must not run meanwhile.
func (d *Disk) With(ctx context.Context, fn func(root string) error) (err error) {
	dir, err := os.MkdirTemp("", "kedge-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if _, err := Command(ctx, "mount", "-o", "loop", d.Path, dir); err != nil {
		return err
	}
	defer func() {
		// A cancelled test must not leave its mounts behind.
		_, uerr := Command(context.WithoutCancel(ctx), "umount", dir)
		err = errors.Join(err, uerr)
	}()
	return fn(dir)
}

// bootFiles copies kernel and initrd of the disk's default entry to dir and
// returns the entry with the copies' paths, as a boot loader loads them.
func (d *Disk) bootFiles(ctx context.Context, dir string) (BootEntry, error) {
	var e BootEntry
	err := d.With(ctx, func(root string) error {
		boot := filepath.Join(root, "boot")
		var err error
		if e, err = DefaultEntry(boot); err != nil {
			return err
		}
		if e.Linux, err = copyBootFile(boot, e.Linux, filepath.Join(dir, "vmlinuz")); err != nil {
			return err
		}
		if e.Initrd != "" {
			e.Initrd, err = copyBootFile(boot, e.Initrd, filepath.Join(dir, "initrd"))
		}
		return err
	})
	return e, err
}

// copyBootFile copies path, which an entry names, to dst. With /boot on the
// root file system an entry's path may start with /boot or not (bootprefix).
func copyBootFile(boot, path, dst string) (string, error) {
	b, err := os.ReadFile(filepath.Join(boot, path))
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(filepath.Dir(boot), path))
	}
	if err != nil {
		return "", err
	}
	return dst, os.WriteFile(dst, b, 0o600)
}
