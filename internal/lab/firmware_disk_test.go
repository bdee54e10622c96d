package lab

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/blockdev"
)

// TestFirmwareDisk: the partitions are of the types by which they are looked for,
// and have the file systems.
func TestFirmwareDisk(t *testing.T) {
	Need(t, "sfdisk", "mkfs.vfat", "mkfs.ext4")
	disk, err := NewFirmwareDisk(t.Context(), filepath.Join(t.TempDir(), "disk.img"), "ext4 -O verity", 2<<30, true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(disk.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := blockdev.ReadGPT(f)
	if err != nil || len(table) != 3 || table[0].Type != blockdev.TypeESP || table[1].Type != blockdev.TypeXBOOTLDR {
		t.Fatalf("the disk has the partitions %+v, %v", table, err)
	}
	for _, at := range []int64{espStart, espStart + espSize} {
		if fat, err := blockdev.IsFAT(io.NewSectionReader(f, at, espSize)); !fat || err != nil {
			t.Errorf("at %d is no FAT file system: %v", at, err)
		}
	}
	if _, err := blockdev.UUID(io.NewSectionReader(f, disk.RootStart, 1<<20)); err != nil {
		t.Errorf("at %d is no root file system: %v", disk.RootStart, err)
	}
}
