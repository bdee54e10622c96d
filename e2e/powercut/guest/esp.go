package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/sdboot"
)

// partitions lives the changes of the boot menu on all disks at once. A disk is
// an EFI system partition: DEVICE:STYLE[:nosync].
func partitions(disks []string) error {
	errs := make([]error, len(disks))
	var all sync.WaitGroup
	for i, d := range disks {
		all.Go(func() {
			if err := partition(d); err != nil {
				errs[i] = fmt.Errorf("%s: %w", d, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func partition(disk string) error {
	fields := strings.Split(disk, ":")
	h := &host{device: fields[0]}
	if err := h.openMarks(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "esp-")
	if err != nil {
		return err
	}
	if err := syscall.Mount(h.device, dir, "vfat", 0, "umask=0077"); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	l := sdboot.New(root, sdboot.Options{Arch: "amd64", NoSync: len(fields) > 2})
	for _, c := range story.Changes {
		err := errors.Join(bootdir.Syncfs(root), h.writeMark(story.Begin+c.Name))
		if err == nil {
			err = change(l, fields[1], c)
		}
		if err == nil {
			time.Sleep(quiet)
			err = errors.Join(bootdir.Syncfs(root), h.writeMark(story.End+c.Name))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	l.Close()
	return unix.Unmount(dir, 0)
}

// change does what a sysroot does for a new menu.
func change(l loader.Loader, style string, c story.Change) error {
	s := story.Style(style)
	var items []loader.Item
	for _, id := range c.Items {
		items = append(items, story.Item(s, id))
	}
	m := s.Menu(items...)
	ctx := context.Background()
	for _, step := range []func() error{
		func() error { return l.Prepare(ctx, items) },
		func() error { return l.Commit(ctx, m) },
		func() error { return l.Sweep(ctx, m, nil) },
		func() error {
			_, err := l.Update(fstest.MapFS{"usr/lib/systemd/boot/efi/systemd-bootx64.efi": {Data: story.Program(c.Program)}})
			return err
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
