package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Disk is a raw disk image that holds one file system and no partition table:
// what a kernel booted directly finds as root=LABEL=… One that a firmware boots
// from has partitions (NewFirmwareDisk).
type Disk struct {
	Path string
	// RootStart is where the root file system begins, in bytes; 0: there are no
	// partitions.
	RootStart int64
	// Boot is the image of a file system of its own for /boot, a second disk of
	// the machine; "": /boot is a directory of the first.
	Boot string
}

// NewDisk makes a sparse image of size bytes at path with a file system of the
// kind fs (ext4, xfs, btrfs), labelled label. Options for mkfs may follow the
// kind: "ext4 -O verity".
func NewDisk(ctx context.Context, path, fs, label string, size int64) (*Disk, error) {
	return &Disk{Path: path}, makeImage(ctx, path, fs, label, size)
}

// AddBoot gives the disk a file system of its own for /boot, at path and
// labelled boot.
func (d *Disk) AddBoot(ctx context.Context, path, fs string, size int64) error {
	d.Boot = path
	return makeImage(ctx, path, fs, "boot", size)
}

func makeImage(ctx context.Context, path, fs, label string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	kind, options, _ := strings.Cut(fs, " ")
	args := append(strings.Fields(options), "-q", "-L", label, path)
	if kind == "btrfs" {
		args = append([]string{"-f"}, args...)
	}
	_, err = Command(ctx, "mkfs."+kind, args...)
	return err
}

// With mounts the disk in a directory of its own, /boot in it, calls fn with it,
// and unmounts. The guest must not run meanwhile.
func (d *Disk) With(ctx context.Context, fn func(root string) error) error {
	return withImage(ctx, d.Path, func(root string) error {
		if d.Boot == "" {
			return fn(root)
		}
		boot := filepath.Join(root, "boot")
		if err := os.MkdirAll(boot, 0o755); err != nil {
			return err
		}
		return withMount(ctx, d.Boot, boot, func() error { return fn(root) })
	})
}

// withImage mounts an image in a directory of its own while fn runs.
func withImage(ctx context.Context, image string, fn func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "kedge-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	return withMount(ctx, image, dir, func() error { return fn(dir) })
}

func withMount(ctx context.Context, image, dir string, fn func() error) (err error) {
	if _, err := Command(ctx, "mount", "-o", "loop", image, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(ctx, image, dir)) }()
	return fn()
}

// unmount unmounts an image and waits until nobody has it: a program that got a
// mount namespace of its own meanwhile keeps the file system until it ends, and
// would write to it while a machine runs from the image.
func unmount(ctx context.Context, image, dir string) error {
	// A cancelled test must not leave its mounts behind.
	ctx = context.WithoutCancel(ctx)
	if _, err := Command(ctx, "umount", dir); err != nil {
		return err
	}
	const patience = 10 * time.Minute
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		loops, err := Command(ctx, "losetup", "--associated", image)
		if err != nil || loops == "" {
			return err
		}
		if time.Since(began) > patience {
			return fmt.Errorf("%s is unmounted, but another mount namespace has it still:\n%s", image, loops)
		}
	}
}

// Mounted returns the directory of a new file system of the kind fs, which is
// mounted until the test ends.
func Mounted(t testing.TB, fs string, size int64) string {
	t.Helper()
	NeedRoot(t)
	kind, _, _ := strings.Cut(fs, " ")
	Need(t, "mkfs."+kind, "mount", "umount")
	disk, err := NewDisk(t.Context(), filepath.Join(t.TempDir(), "disk.img"), fs, "test", size)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := Command(t.Context(), "mount", "-o", "loop", disk.Path, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(t.Context(), disk.Path, dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// bootFiles copies kernel and initrd of a line of the disk's boot menu to dir and
// returns the entry with the copies' paths. As a boot loader does it, paths are
// looked up in the file system that holds the entries: that is /boot's own where
// it has one, else the root's, where a path starts with /boot or not
// (libostree's bootprefix). A disk with partitions has them on the EFI system
// partition.
func (d *Disk) bootFiles(ctx context.Context, dir string, line int) (e BootEntry, err error) {
	if d.RootStart != 0 {
		files, err := d.ESP(ctx, dir, true)
		if err != nil {
			return e, err
		}
		defer os.RemoveAll(files)
		return copyBootFiles(dir, files, files, line)
	}
	image, boot := d.Path, "boot"
	if d.Boot != "" {
		image, boot = d.Boot, "."
	}
	err = withImage(ctx, image, func(top string) error {
		e, err = copyBootFiles(dir, filepath.Join(top, boot), top, line)
		return err
	})
	return e, err
}

// copyBootFiles is bootFiles for entries in boot, which is in the file system top.
func copyBootFiles(dir, boot, top string, line int) (e BootEntry, err error) {
	entries, err := Entries(boot)
	if err != nil {
		return e, err
	}
	if line >= len(entries) {
		return e, fmt.Errorf("the boot menu has %d entries, want the one of index %d", len(entries), line)
	}
	e = entries[line]
	if e.Linux, err = copyBootFile(filepath.Join(dir, "vmlinuz"), e.Linux, boot, top); err != nil {
		return e, err
	}
	if e.Initrd != "" {
		e.Initrd, err = copyBootFile(filepath.Join(dir, "initrd"), e.Initrd, boot, top)
	}
	return e, err
}

// copyBootFile copies path, which lies in the first or the second directory, to
// dst.
func copyBootFile(dst, path, first, second string) (string, error) {
	b, err := os.ReadFile(filepath.Join(first, path))
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(second, path))
	}
	if err != nil {
		return "", err
	}
	return dst, os.WriteFile(dst, b, 0o600)
}
