// Package blockdev tells what lies below a directory: its file system's UUID, the
// disks, and their partitions. It reads superblocks and partition tables, and
// never writes.
package blockdev

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Place is where a directory lies.
type Place struct {
	Device string // "/dev/vda2"
	Path   string // of the directory in the file system there
}

// Find returns where a directory lies; NotFound for a file system that is not on
// one block device.
func Find(dir string) (Place, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &st); err != nil {
		return Place{}, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	real, err := filepath.Abs(dir)
	if err == nil {
		real, err = filepath.EvalSymlinks(real)
	}
	if err != nil {
		return Place{}, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Place{}, err
	}
	for line := range strings.Lines(string(mounts)) {
		m, ok := parseMount(line)
		if !ok || m.id != st.Mnt_id {
			continue
		}
		device := m.source
		// btrfs has a device number of its own.
		if link, err := os.Readlink("/sys/dev/block/" + m.device); err == nil {
			device = "/dev/" + filepath.Base(link)
		}
		if !strings.HasPrefix(device, "/dev/") {
			break
		}
		below, err := filepath.Rel(m.point, real)
		if err != nil || !filepath.IsLocal(below) {
			break
		}
		return Place{device, filepath.Join(m.root, below)}, nil
	}
	return Place{}, fault.New(fault.NotFound, "", "%s is on no block device", dir)
}

type mount struct {
	id                          uint64
	device, root, point, source string
}

// parseMount reads a line of mountinfo (proc_pid_mountinfo(5)).
func parseMount(line string) (m mount, ok bool) {
	head, tail, ok := strings.Cut(line, " - ")
	f, t := strings.Fields(head), strings.Fields(tail)
	if !ok || len(f) < 6 || len(t) < 2 {
		return m, false
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	return mount{id, f[2], unescape(f[3]), unescape(f[4]), unescape(t[1])}, err == nil
}

// unescape undoes the kernel's spelling of names.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// IsFAT reports whether a device has a FAT file system: by its boot sector.
func IsFAT(device io.ReaderAt) (bool, error) {
	sector := make([]byte, 512)
	if _, err := device.ReadAt(sector, 0); errors.Is(err, io.EOF) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("read the boot sector: %w", err)
	}
	signed := sector[510] == 0x55 && sector[511] == 0xaa
	return signed && (string(sector[54:57]) == "FAT" || string(sector[82:85]) == "FAT"), nil
}

// UUID returns the UUID of an ext2, ext3, ext4, xfs or btrfs file system in lower
// case; NotFound for any other.
func UUID(device io.ReaderAt) (string, error) {
	// Offsets and magic numbers are those of the kernel's ext4.h, xfs_format.h and
	// btrfs_tree.h.
	for _, f := range []struct {
		magic   string
		at, off int64
	}{
		{"\x53\xef", 0x438, 0x468},
		{"XFSB", 0, 32},
		{"_BHRfS_M", 0x10040, 0x10020},
	} {
		magic, id := make([]byte, len(f.magic)), make([]byte, 16)
		_, err := device.ReadAt(magic, f.at)
		if errors.Is(err, io.EOF) || err == nil && string(magic) != f.magic {
			continue
		}
		if err == nil {
			_, err = device.ReadAt(id, f.off)
		}
		if err != nil {
			return "", fmt.Errorf("read the superblock: %w", err)
		}
		h := hex.EncodeToString(id)
		return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-"), nil
	}
	return "", fault.New(fault.NotFound, "", "it is no ext4, xfs or btrfs file system")
}
