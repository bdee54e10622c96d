// Package lockfile waits for the lock of a sysroot and says who holds it. How
// the lock is taken is its sysroot's.
package lockfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
)

// poll is how often a held lock is tried again; the kernel can wait for one,
// but not until a context ends.
const poll = 50 * time.Millisecond

// Wait calls try until it returns the locked file or ctx ends; a ctx that has
// no deadline is tried once. nil without an error stands for a lock that
// somebody else holds.
func Wait(ctx context.Context, try func() (*os.File, error)) (*os.File, error) {
	_, wait := ctx.Deadline()
	for {
		f, err := try()
		if f != nil || err != nil {
			return f, err
		}
		if wait {
			select {
			case <-ctx.Done():
			case <-time.After(poll):
				continue
			}
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, ctx.Err()
		}
		return nil, nil
	}
}

// Busy is the error of a sysroot whose lock, the file name beneath root,
// another process holds.
func Busy(root *os.Root, name string) error {
	const hint = "wait until it has finished, and run the command again"
	if pid, program := holder(root, name); pid != 0 {
		return fault.New(fault.Busy, hint, "lock the sysroot: process %d (%s) is changing it", pid, program)
	}
	return fault.New(fault.Busy, hint, "lock the sysroot: another process is changing it")
}

// holder finds the process that holds the lock. The kernel does not tell for
// every kind of lock, so the processes' open files are looked through; 0 where
// it is not to be seen.
func holder(root *os.Root, name string) (pid int, program string) {
	there, err := root.Stat(name)
	if err != nil {
		return 0, ""
	}
	const proc = "/proc"
	processes, err := os.ReadDir(proc)
	if err != nil {
		return 0, ""
	}
	for _, p := range processes {
		n, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, p.Name())
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			st, err := os.Stat(filepath.Join(dir, "fd", fd.Name()))
			if err != nil || !os.SameFile(st, there) {
				continue
			}
			info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
			if err == nil && strings.Contains(string(info), "lock:") {
				comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
				return n, strings.TrimSpace(string(comm))
			}
		}
	}
	return 0, ""
}
