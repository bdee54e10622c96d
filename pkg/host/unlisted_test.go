package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestBootNotMounted: without its boot entries a sysroot is not for any verb to
// change, least of all to clean up.
func TestBootNotMounted(t *testing.T) { onBoth(t, testBootNotMounted) }

func testBootNotMounted(t *testing.T, w *world) {
	ctx := context.Background()
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.push("stable", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	boot := filepath.Join(w.dir, "boot")
	must(t, os.Rename(boot, w.dir+".boot"))
	// Whatever a writer that died has left.
	state := map[string]string{"ostree": stateDir, "composefs": composefsState}[w.backend]
	w.write(filepath.Join(w.dir, state, unfinishedFile), "")
	for _, mounted := range []bool{false, true} {
		if mounted { // an empty directory
			must(t, os.MkdirAll(boot, 0o755))
		}
		for name, verb := range map[string]func(h *Host) error{
			"cleanup":  func(h *Host) error { _, err := h.Cleanup(ctx, CleanupOptions{}); return err },
			"switch":   func(h *Host) error { _, err := h.Switch(ctx, SwitchOptions{Image: ref}); return err },
			"upgrade":  func(h *Host) error { _, err := h.Upgrade(ctx, UpgradeOptions{}); return err },
			"rollback": func(h *Host) error { _, err := h.Rollback(ctx); return err },
			"pin":      func(h *Host) error { _, err := h.Pin(ctx, 0, true); return err },
			"repair":   func(h *Host) error { _, err := h.Fsck(ctx, FsckOptions{Repair: true}); return err },
		} {
			h := w.open()
			err := verb(h)
			h.Close()
			wantKind(t, err, fault.Conflict, "no boot entry leads to any")
			if !strings.Contains(fault.HintOf(err), "mount") {
				t.Errorf("%s: hint %q", name, fault.HintOf(err))
			}
		}
		_, err := Install(ctx, w.config(), w.options(ref))
		wantKind(t, err, fault.Conflict, "no boot entry leads to any")
		if s := w.status(); !strings.Contains(strings.Join(s.Status.Kedge.Warnings, " "), "no boot entry") {
			t.Errorf("status does not tell: %q", s.Status.Kedge.Warnings)
		}
	}
	must(t, os.RemoveAll(boot))
	must(t, os.Rename(w.dir+".boot", boot))
	must(t, os.Remove(filepath.Join(w.dir, state, unfinishedFile)))
	if r := w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) }); !r.Changed {
		t.Errorf("rollback with the boot directory back = %+v", r)
	}
	w.agree()
}
