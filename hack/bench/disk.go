package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// disk is an ext4 file system that was just made, on a sparse file, for one
// run of one program. On one that is used again ext4 looks for inodes that
// nobody freed in the last minutes, and the more was removed after the runs
// before, the longer it looks.
type disk struct {
	image, loop string
}

// mountPoint is short: podman takes no paths of more than 50 characters.
const mountPoint = "/run/kedge-bench"

// diskSize leaves room for each program's worst case at 3 GB; blocks that
// nobody writes take no space.
const diskSize = 24 << 30

// newDisk makes and mounts a file system. Everything that ext4 puts off is
// done before: nothing writes in the background but what is measured.
func newDisk(work string) (d *disk, err error) {
	d = &disk{image: filepath.Join(work, "disk.img")}
	if err := os.MkdirAll(mountPoint, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make a disk: %w", err), d.remove())
		}
	}()
	f, err := os.Create(d.image)
	if err != nil {
		return d, err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return d, err
	}
	if _, err := output("mkfs.ext4", "-q", "-F", "-N", "600000", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.image); err != nil {
		return d, err
	}
	// Past the page cache, so that nothing is cached or written back twice.
	if d.loop, err = output("losetup", "--find", "--show", "--direct-io=on", d.image); err != nil {
		return d, err
	}
	_, err = output("mount", d.loop, mountPoint)
	return d, err
}

// remove unmounts and deletes what there is of a disk. A program that was ended
// may need a moment to let go of it.
func (d *disk) remove() error {
	// podman leaves its own directory mounted over itself.
	for unix.Unmount(filepath.Join(mountPoint, "store/root/overlay"), unix.MNT_DETACH) == nil {
	}
	err := unix.Unmount(mountPoint, 0)
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		err = unix.Unmount(mountPoint, 0)
	}
	var errs []error
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", mountPoint, err))
	}
	if d.loop != "" {
		_, err := output("losetup", "--detach", d.loop)
		errs = append(errs, err)
	}
	for _, name := range []string{d.image, mountPoint} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeOld removes the disk of a run that was killed.
func removeOld(work string) error {
	d := &disk{image: filepath.Join(work, "disk.img")}
	if _, err := os.Stat(d.image); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	loop, err := output("losetup", "--noheadings", "--output", "NAME", "--associated", d.image)
	if err != nil {
		return err
	}
	d.loop = loop
	return d.remove()
}

// output runs a command and returns what it printed.
func output(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
