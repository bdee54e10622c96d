package host

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// TestRepairKernels takes kernels out of /boot.
func TestRepairKernels(t *testing.T) { onBoth(t, testRepairKernels) }

func testRepairKernels(t *testing.T, w *world) {
	ctx := context.Background()
	ref, _ := w.push("1", 1)
	w.install(ref)
	w.push("1", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	var gone []string
	must(t, filepath.WalkDir(filepath.Join(w.dir, "boot"), func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && (strings.HasPrefix(e.Name(), "vmlinuz") || strings.HasPrefix(e.Name(), "init")) {
			gone = append(gone, name)
			err = os.Remove(name)
		}
		return err
	}))
	c, err := w.open().Fsck(ctx, FsckOptions{})
	must(t, err)
	if !c.Repairable || len(gone) != 4 || len(c.Problems) != 2 || !strings.Contains(strings.Join(c.Problems, " "), "init") {
		t.Fatalf("without %q fsck finds %q, want one problem of each deployment", gone, c.Problems)
	}
	c, err = w.open().Fsck(ctx, FsckOptions{Repair: true})
	must(t, err)
	if len(c.Problems) > 0 || len(c.Repaired) != 2 {
		t.Errorf("fsck --repair = %+v, want both kernels back", c)
	}
	for _, name := range gone {
		if st, err := os.Stat(name); err != nil || st.Size() == 0 {
			t.Errorf("%s is not back: %v", name, err)
		}
	}
	// What only an administrator can put right is not promised to be repaired.
	w.write(filepath.Join(w.dir, "boot/loader/entries/ostree-9.conf"), "options composefs=?"+strings.Repeat("0", 128)+"\n")
	c, err = w.open().Fsck(ctx, FsckOptions{})
	must(t, err)
	if c.Repairable || len(c.Problems) != 1 {
		t.Errorf("fsck with an entry that leads nowhere = %+v, want a problem without a repair", c)
	}
}
