package blockdev

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Types of partitions (Discoverable Partitions Specification).
const (
	TypeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	TypeXBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
)

// Partition is an entry of a partition table.
type Partition struct {
	Number     int    // from 1
	Type, UUID string // lower case
	Device     string // "/dev/vda1"; ReadGPT does not know it
}

// maxEntries bounds a table; sfdisk and others make 128.
const maxEntries = 1024

// ReadGPT reads the GUID partition table of a disk (UEFI specification, chapter 5);
// none where it has no such table. One that is damaged is Corrupt: what its copy at
// the end of the disk says is for a partitioning program to judge.
func ReadGPT(disk io.ReaderAt) ([]Partition, error) {
	for _, sector := range []int64{512, 4096} {
		header := make([]byte, 92)
		if _, err := disk.ReadAt(header, sector); errors.Is(err, io.EOF) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read the partition table: %w", err)
		}
		if string(header[:8]) == "EFI PART" {
			return readEntries(disk, header, sector)
		}
	}
	return nil, nil
}

func readEntries(disk io.ReaderAt, header []byte, sector int64) (list []Partition, err error) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(header[at:]) }
	damaged := func(what string) error {
		return fault.New(fault.Corrupt, "repair it with sfdisk or gdisk", "the disk's partition table is damaged: %s", what)
	}
	sum := u32(16)
	clear(header[16:20])
	// Every program makes a header of this size; the rest of the sector is zero.
	if u32(12) != 92 || crc32.ChecksumIEEE(header) != sum {
		return nil, damaged("its header")
	}
	start, n, size := binary.LittleEndian.Uint64(header[72:]), u32(80), u32(84)
	if n > maxEntries || size < 128 || size > 4096 || start > 1<<40 {
		return nil, damaged("its size")
	}
	table := make([]byte, int(n*size))
	if _, err := disk.ReadAt(table, int64(start)*sector); err != nil {
		return nil, damaged(err.Error())
	}
	if crc32.ChecksumIEEE(table) != u32(88) {
		return nil, damaged("its entries")
	}
	for i := range int(n) {
		e := table[i*int(size):]
		if kind := guid(e); strings.Trim(kind, "0-") != "" {
			list = append(list, Partition{Number: i + 1, Type: kind, UUID: guid(e[16:])})
		}
	}
	return list, nil
}

// guid spells a GUID, whose first three parts are little-endian.
func guid(b []byte) string {
	le := []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]}
	h := hex.EncodeToString(le) + hex.EncodeToString(b[8:16])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
