package lab

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// A program that was started while a disk was mounted has the mount in its own
// namespace.
func TestDiskIsFreeAfterWith(t *testing.T) {
	NeedRoot(t)
	Need(t, "mkfs.ext4", "mount", "umount", "losetup", "unshare", "sleep")
	disk, err := NewDisk(t.Context(), filepath.Join(t.TempDir(), "disk.img"), "ext4", "test", 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	other := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "bash", "-c", "echo; exec sleep 1")
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = disk.With(t.Context(), func(string) error {
		if err := other.Start(); err != nil {
			return err
		}
		_, err := out.Read(make([]byte, 1)) // it is in its namespace
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	loops, err := Command(t.Context(), "losetup", "--associated", disk.Path)
	if err != nil || loops != "" {
		t.Errorf("after With, the disk is in use: %s %v", loops, err)
	}
	if err := other.Wait(); err != nil {
		t.Error(err)
	}
}
