package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
)

// TestDamagedSysroot takes parts of a sysroot away. Each is told as damage, with
// what to do, and none as a bug.
func TestDamagedSysroot(t *testing.T) { onBoth(t, testDamagedSysroot) }

func testDamagedSysroot(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	id := w.install(ref).ID
	w.push("stable", 2)
	parts := map[string][]string{
		"ostree": {"ostree/repo/config", "ostree/repo/objects", "ostree/repo/tmp"},
		// On ostree the directory above it is immutable.
		"composefs": {"composefs/meta.json", "composefs/images", "state/deploy/" + id + "/etc"},
	}[w.backend]
	for _, part := range parts {
		part = filepath.Join(w.dir, part)
		away := w.dir + ".away"
		must(t, os.Rename(part, away))
		h, err := Open(context.Background(), w.config())
		if err == nil {
			_, err = h.Upgrade(context.Background(), UpgradeOptions{})
			h.Close()
		}
		wantKind(t, err, fault.Corrupt, "")
		if err != nil && fault.HintOf(err) == "" {
			t.Errorf("without %s: the error has no hint: %v", part, err)
		}
		_ = os.RemoveAll(part)
		must(t, os.Rename(away, part))
	}
	if w.open(); w.status().Status.OtherDeployments[0].Image == nil {
		t.Error("with everything back the image is not known")
	}
}
