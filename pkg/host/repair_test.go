package host

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
)

// TestRepairOSTree damages files and metadata of two deployments' commits; a
// repair brings the repository and the deployments' own files back.
func TestRepairOSTree(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	big := strings.Repeat("big\n", 1000)
	ref, _ := w.push("1", 1, smallimage.File("usr/bin/big", 0o755, big), smallimage.File("usr/share/other", 0, "other\n"))
	w.install(ref)
	_, _ = w.push("1", 2, smallimage.File("usr/bin/big", 0o755, big), smallimage.File("usr/share/other", 0, "another\n"))
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	list, err := w.open().store.Deployments()
	must(t, err)
	whole := w.snapshot()

	// A file of both, a file of the older one alone, a directory's listing, and
	// one that is gone.
	deploy := func(d *deployment, name string) string {
		return filepath.Join(w.dir, "ostree/deploy/default/deploy", strings.TrimPrefix(d.id, "default/"), name)
	}
	must(t, os.WriteFile(deploy(list[0], "usr/bin/big"), bytes.Repeat([]byte("bad\n"), 1000), 0))
	must(t, os.WriteFile(deploy(list[1], "usr/share/other"), []byte("OTHER\n"), 0))
	trees, err := filepath.Glob(w.dir + "/ostree/repo/objects/*/*.dirtree")
	must(t, err)
	must(t, os.Truncate(trees[len(trees)/2], 3))
	must(t, os.Remove(trees[len(trees)/3]))

	before, err := w.open().Fsck(ctx, FsckOptions{})
	must(t, err)
	if len(before.Problems) < 4 {
		t.Fatalf("fsck finds %q, want four problems at least", before.Problems)
	}
	// The tag has moved on from the older one's digest.
	after, err := w.open().Fsck(ctx, FsckOptions{Repair: true})
	must(t, err)
	if len(after.Problems) > 0 || !slices.Equal(after.Repaired, before.Problems) {
		t.Errorf("fsck --repair = %+v, want all of %q repaired", after, before.Problems)
	}
	for _, d := range list {
		data, err := os.ReadFile(deploy(d, "usr/bin/big"))
		must(t, err)
		if string(data) != big {
			t.Errorf("deployment %s: /usr/bin/big is still damaged", d.id)
		}
	}
	if data, err := os.ReadFile(deploy(list[1], "usr/share/other")); err != nil || string(data) != "other\n" {
		t.Errorf("/usr/share/other = %q, %v", data, err)
	}
	if got := w.snapshot(); got != whole {
		t.Errorf("the repair changed what boots:\n%s\nbefore:\n%s", got, whole)
	}
	w.agree()
	again, err := w.open().Fsck(ctx, FsckOptions{Repair: true})
	must(t, err)
	if len(again.Problems)+len(again.Repaired) > 0 {
		t.Errorf("fsck --repair of a sound repository = %+v", again)
	}
}
