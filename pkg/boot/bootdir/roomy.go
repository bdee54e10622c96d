package bootdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
)

const (
	// room is the size of a directory of FAT that kedge adds names to, in bytes: 512
	// slots, of which the name of a kernel takes 13.
	room = 16 << 10
	// roomName begins the names that make a directory grow, of 255 letters each; they
	// take 21 slots of 32 bytes.
	roomName = "kedge-room-"
)

// MakeRoomy makes a directory and its parents. On FAT it makes it so large that it
// need not grow, and reports whether it grew.
//
// A directory that grows gets a cluster more. That its last cluster leads to the new
// one, and that the chain ends there, stands in two sectors of the allocation table
// as a rule. Where a power cut leaves the first alone, the chain leads to a free
// cluster, and a firmware takes the whole directory for empty (FatPhysicalDirSize of
// edk2): nothing boots. A directory never shrinks, so it grows while it is new.
// One that was there before grows once, and the caller flushes that by itself.
func MakeRoomy(root *os.Root, dir string) (grown bool, err error) {
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	// Those of one who died over it.
	if err := removeRoom(root, dir); err != nil {
		return false, err
	}
	size, err := roomOf(root, dir)
	if err != nil || size >= room {
		return false, err
	}
	defer func() {
		err = errors.Join(err, removeRoom(root, dir))
		if errors.Is(err, unix.ENOSPC) {
			err = fault.New(fault.NoSpace, "free space on the EFI system partition", "make room in %s: %w", dir, err)
		}
	}()
	for i := range room/(21*32) + 1 {
		name := fmt.Sprintf("%s%03d", roomName, i)
		f, err := root.OpenFile(path.Join(dir, name+strings.Repeat("-", 255-len(name))), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return true, err
		}
		if err := f.Close(); err != nil {
			return true, err
		}
	}
	return true, nil
}

// roomOf returns the size of a directory of FAT, in bytes; of any other it is enough.
func roomOf(root *os.Root, dir string) (int64, error) {
	f, err := root.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fsys); err != nil {
		return 0, os.NewSyscallError("fstatfs", err)
	}
	if fsys.Type != unix.MSDOS_SUPER_MAGIC {
		return room, nil
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// removeRoom removes the names that made a directory grow.
func removeRoom(root *os.Root, dir string) error {
	names, err := dirfd.ReadNames(root, dir)
	for _, name := range names {
		if strings.HasPrefix(name, roomName) {
			if rerr := root.Remove(path.Join(dir, name)); !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}
