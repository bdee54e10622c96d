// Command guest is what runs in the machine of the power-cut proof. For each disk
// it boots the root that the disk's default entry names, in a mount namespace,
// and changes it there with kedge as package story says; all disks at once.
//
//	guest machine IMAGES DEVICE:BACKEND:FILESYSTEM[:nosync]…
//
// Or it changes the boot menu on EFI system partitions:
//
//	guest esp DEVICE:STYLE[:nosync]…
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/kedge-os/kedge/e2e/powercut/story"
)

// images is where the disk with the images is mounted.
const images = "/media"

func main() {
	var err error
	switch verb, args := os.Args[1], os.Args[2:]; verb {
	case "machine":
		err = machine(args[0], args[1:])
	case "esp":
		err = partitions(args)
	case "boot":
		err = boot(args[0], args[1])
	case "nosync":
		err = nosync(args)
	default:
		err = fmt.Errorf("no such verb: %s", verb)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// machine lives the story on all disks, in a mount namespace of its own.
func machine(source string, disks []string) error {
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), os.MkdirAll(images, 0o755), syscall.Mount(source, images, "ext4", syscall.MS_RDONLY, "")); err != nil {
		return err
	}
	errs := make([]error, len(disks))
	var all sync.WaitGroup
	for i, d := range disks {
		all.Go(func() { errs[i] = boots(d) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func boots(disk string) error {
	for n := range story.Boots {
		cmd := exec.Command("/proc/self/exe", "boot", disk, strconv.Itoa(n))
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) {
			fmt.Printf("%s.%d: %s", disk, n, line)
		}
		if err != nil {
			return fmt.Errorf("%s, boot %d: %w", disk, n, err)
		}
	}
	return nil
}
