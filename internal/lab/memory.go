package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The main goroutine keeps the first thread of a process. One that is left in a
// mount namespace of its own lives as long as the process, and with it a copy of
// the disks that other tests had mounted.
func init() { runtime.LockOSThread() }

// inMemory is set for the processes that tests start, which may be the test
// program again.
const inMemory = "KEDGE_TESTS_IN_MEMORY"

// InMemory runs a package's tests with their temporary directories on an ext4
// file system of size bytes in memory, where there is room for one, and returns
// the exit status. What tests write many trees or sync a thousand times spends
// most of its time in a disk's file system: ext4 looks long for inodes that were
// not freed just now.
func InMemory(m *testing.M, size int64) int {
	if os.Getenv(inMemory) != "" {
		return m.Run()
	}
	remove, err := memoryDisk(size)
	if err != nil {
		fmt.Fprintln(os.Stderr, "temporary directories are on the disk:", err)
	}
	code := m.Run()
	if err := remove(); err != nil {
		fmt.Fprintln(os.Stderr, "cleaning up:", err)
		code = max(code, 1)
	}
	return code
}

// memoryDisk makes the file system and the temporary directory of this process
// on it.
func memoryDisk(size int64) (remove func() error, err error) {
	nothing := func() error { return nil }
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil {
		return nothing, err
	}
	if os.Geteuid() != 0 || int64(st.Bavail)*st.Bsize < size {
		return nothing, fmt.Errorf("%s has no room for %d bytes, or this is not root", shm, size)
	}
	removeDeadMemory()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", memoryPrefix, os.Getpid()))
	if err != nil {
		return nothing, err
	}
	// Without its name the image goes with the mount.
	image := filepath.Join(shm, filepath.Base(dir)+".img")
	ctx := context.Background()
	_, err = NewDisk(ctx, image, "ext4", "memory", size)
	if err == nil {
		// What is removed is memory again.
		_, err = Command(ctx, "mount", "-o", "loop,discard", image, dir)
	}
	err = errors.Join(err, os.Remove(image))
	if err != nil {
		return nothing, errors.Join(err, os.Remove(dir))
	}
	remove = func() error {
		_, err := Command(ctx, "umount", dir)
		return errors.Join(err, os.Remove(dir))
	}
	return remove, errors.Join(os.Setenv("TMPDIR", dir), os.Setenv(inMemory, dir))
}

// memoryPrefix begins the name of a file system in memory; the process that it
// belongs to follows.
const memoryPrefix = "kedge-memory-"

// removeDeadMemory gives back what killed processes left. What cannot be removed
// is in nobody's way.
func removeDeadMemory() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), memoryPrefix+"*"))
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), memoryPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			_ = os.Remove(dir)
		}
	}
}
