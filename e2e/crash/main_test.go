package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
)

// scratch is the size of the disk in bytes. A sysroot has 10 MB; the rest is for
// a Go that builds kedge.
const scratch = 2 << 30

// TestMain puts the sysroots on an ext4 file system in memory where there is
// room for one: hundreds of runs that sync a disk would wait for it, and a kill
// loses nothing that is in the page cache.
func TestMain(m *testing.M) {
	remove, err := memoryDisk()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sysroots are on the disk:", err)
	}
	code := m.Run()
	if err := remove(); err != nil {
		fmt.Fprintln(os.Stderr, "cleaning up:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// memoryDisk makes the file system and the temporary directory of this process
// on it.
func memoryDisk() (remove func() error, err error) {
	nothing := func() error { return nil }
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil {
		return nothing, err
	}
	if os.Geteuid() != 0 || st.Bavail*uint64(st.Bsize) < scratch {
		return nothing, fmt.Errorf("%s has no room for %d bytes, or this is not root", shm, scratch)
	}
	dir, err := os.MkdirTemp("", "kedge-crash-")
	if err != nil {
		return nothing, err
	}
	// Without its name the image goes with the mount.
	image := filepath.Join(shm, filepath.Base(dir)+".img")
	ctx := context.Background()
	_, err = lab.NewDisk(ctx, image, "ext4", "crash", scratch)
	if err == nil {
		_, err = lab.Command(ctx, "mount", "-o", "loop", image, dir)
	}
	err = errors.Join(err, os.Remove(image))
	if err != nil {
		return nothing, errors.Join(err, os.Remove(dir))
	}
	remove = func() error {
		_, err := lab.Command(ctx, "umount", dir)
		return errors.Join(err, os.Remove(dir))
	}
	return remove, os.Setenv("TMPDIR", dir)
}
