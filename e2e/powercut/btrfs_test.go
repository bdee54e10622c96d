package powercut

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// What is known of btrfs's superblock here (struct btrfs_super_block of Linux's
// uapi/linux/btrfs_tree.h): offsets in bytes, numbers little-endian.
const (
	btrfsMagic        = "_BHRfS_M"
	btrfsSize         = 4096
	btrfsID           = 0x20
	btrfsMagicAt      = 0x40
	btrfsIncompatible = 0xbc
	btrfsChecksumType = 0xc4 // 0 is CRC-32C, of all that follows the checksum's 32 bytes
	btrfsMetadataID   = 0x23b

	btrfsHasMetadataID = 1 << 10
)

// btrfsSupers are where a disk of less than 256 GB has its superblocks.
var btrfsSupers = []int64{64 << 10, 64 << 20}

// newBtrfsID gives the file system of an image an ID of its own. Linux knows disks
// of btrfs by that: of two copies that are mounted or looked at side by side it
// may take one for the other. The ID that every block of the tree carries stays, as
// the superblock's metadata_uuid; nothing else is touched.
func newBtrfsID(image string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	for _, at := range btrfsSupers {
		err = errors.Join(err, setBtrfsID(f, at, id))
	}
	return errors.Join(err, f.Close())
}

func setBtrfsID(f *os.File, at int64, id []byte) error {
	super := make([]byte, btrfsSize)
	if _, err := f.ReadAt(super, at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if string(super[btrfsMagicAt:][:len(btrfsMagic)]) != btrfsMagic || binary.LittleEndian.Uint16(super[btrfsChecksumType:]) != 0 ||
		btrfsChecksum(super) != binary.LittleEndian.Uint32(super) {
		return fmt.Errorf("%s has no whole superblock of btrfs at %d", f.Name(), at)
	}
	if flags := binary.LittleEndian.Uint64(super[btrfsIncompatible:]); flags&btrfsHasMetadataID == 0 {
		binary.LittleEndian.PutUint64(super[btrfsIncompatible:], flags|btrfsHasMetadataID)
		copy(super[btrfsMetadataID:], super[btrfsID:][:len(id)])
	}
	copy(super[btrfsID:], id)
	binary.LittleEndian.PutUint32(super, btrfsChecksum(super))
	_, err := f.WriteAt(super, at)
	return err
}

func btrfsChecksum(super []byte) uint32 {
	return crc32.Checksum(super[32:], crc32.MakeTable(crc32.Castagnoli))
}
