package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestSymlinksOut gives a sysroot entrances that lead to another one.
func TestSymlinksOut(t *testing.T) { onBoth(t, testSymlinksOut) }

func testSymlinksOut(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	elsewhere := t.TempDir()
	boot := filepath.Join(w.dir, "boot")
	must(t, os.Symlink(elsewhere, boot))
	_, err := Install(context.Background(), w.config(), w.options(ref))
	wantKind(t, err, fault.Conflict, "leads out")
	must(t, os.Remove(boot))
	w.install(ref)
	must(t, os.Rename(boot, filepath.Join(w.dir, "real")))
	// A symlink that stays inside is as good as a directory.
	must(t, os.Symlink("real", boot))
	w.push("stable", 2)
	if r := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) }); !r.Changed {
		t.Errorf("upgrade with a boot that leads to another directory of the sysroot = %+v", r)
	}
	for _, name := range entrances {
		if name == "boot/efi" {
			must(t, os.Remove(boot))
			must(t, os.Rename(filepath.Join(w.dir, "real"), boot))
		}
		path := filepath.Join(w.dir, name)
		_ = os.Remove(path)
		must(t, os.Symlink(elsewhere, path))
		_, err := Open(context.Background(), w.config())
		wantKind(t, err, fault.Conflict, path)
		must(t, os.Remove(path))
		if name == "boot" {
			must(t, os.Symlink("real", boot))
		}
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("outside of the sysroot were written %v, %v", left, err)
	}
}
