package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
)

// TestRepairComposefs damages each kind of object of two deployments; a repair
// brings them back, and fetches only the layers that it needs.
func TestRepairComposefs(t *testing.T) {
	ctx := context.Background()
	w := newWorldOf(t, "composefs")
	more := smallimage.File("usr/share/more", 0, strings.Repeat("more\n", 100))
	ref, _ := w.push("1", 1, more)
	first := w.install(ref)
	w.push("1", 2, more)
	second := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	whole := w.snapshot()
	object := func(link string) string {
		target, err := filepath.EvalSymlinks(filepath.Join(w.dir, "composefs", link))
		must(t, err)
		return target
	}
	replace := func(name string, change func([]byte) []byte) {
		data, err := os.ReadFile(name)
		must(t, err)
		must(t, os.Remove(name)) // it may be sealed
		must(t, os.WriteFile(name, change(data), 0o644))
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for _, c := range []struct {
		name   string
		damage func()
	}{
		{"a file", func() { w.damageLargest() }},
		{"the image that boots", func() { replace(object("images/"+second.ID), flip) }},
		{"the image of the one before, gone", func() { must(t, os.Remove(object("images/"+first.ID))) }},
		{"a manifest's stream", func() { replace(object("streams/oci-manifest-"+second.Image.ImageDigest), flip) }},
		{"a layer's stream", func() {
			layers, err := filepath.Glob(w.dir + "/composefs/streams/oci-layer-*")
			must(t, err)
			replace(object("streams/"+filepath.Base(layers[0])), func(b []byte) []byte { return b[:len(b)/2] })
		}},
		{"every layer's index", func() { must(t, os.RemoveAll(w.dir+"/state/kedge/layers")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.damage()
			before, err := w.open().Fsck(ctx, FsckOptions{})
			must(t, err)
			if c.name != "every layer's index" && len(before.Problems) == 0 {
				t.Error("fsck finds nothing")
			}
			after, err := w.open().Fsck(ctx, FsckOptions{Repair: true})
			must(t, err)
			if len(after.Problems) > 0 || !slices.Equal(after.Repaired, before.Problems) {
				t.Errorf("fsck --repair = %+v, want all of %q repaired", after, before.Problems)
			}
			if got := w.snapshot(); got != whole {
				t.Errorf("the repair changed what boots:\n%s\nbefore:\n%s", got, whole)
			}
		})
	}
	w.damageLargest()
	w.write(w.conf+"/policy.json", `{"default":[{"type":"reject"}]}`)
	after, err := w.open().Fsck(ctx, FsckOptions{Repair: true})
	must(t, err)
	if len(after.Problems) == 0 || len(after.Repaired) > 0 {
		t.Errorf("fsck --repair of an image that the policy refuses = %+v, want the problems left", after)
	}
}
