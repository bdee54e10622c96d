package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
)

// TestLayersOfAnotherProgram takes kedge's own indexes of the layers away, as
// bootc leaves a repository: no layer is fetched again, and the root is the same.
func TestLayersOfAnotherProgram(t *testing.T) {
	w := newWorldOf(t, "composefs")
	ref, _ := w.push("1", 1, smallimage.File("usr/share/more", 0, "more\n"))
	first := w.install(ref)
	layers, err := filepath.Glob(w.dir + "/state/kedge/layers/*")
	must(t, err)
	if len(layers) != 2 {
		t.Fatalf("there are the layer indexes %q, want two", layers)
	}
	must(t, os.RemoveAll(w.dir+"/state/kedge/layers"))
	// Another name for the same image, in a registry without its blobs.
	img := image(t, 1, smallimage.File("usr/share/more", 0, "more\n"))
	layout := t.TempDir()
	smallimage.Layout(t, layout, map[string]ociv1.Image{"x": img})
	blobs, err := img.Layers()
	must(t, err)
	for _, l := range blobs {
		d, err := l.Digest()
		must(t, err)
		must(t, os.Remove(filepath.Join(layout, "blobs/sha256", d.Hex)))
	}
	r := w.switchTo("oci:" + layout + ":x")
	if !r.Changed || w.path(r.ID, "") != w.path(first.ID, "") {
		t.Errorf("switch = %+v, want another entry of %s", r, first.ID)
	}
	w.agree()
}

// TestEntriesOfOthers: whatever lies among the boot entries, the host is driven, and
// it stays there.
func TestEntriesOfOthers(t *testing.T) { onBoth(t, testEntriesOfOthers) }

func testEntriesOfOthers(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	dir := filepath.Join(w.dir, "boot/loader/entries")
	for name, target := range map[string]string{"ostree-7.conf": "/etc/passwd", "out.conf": "../../../../../etc/passwd", "nowhere.conf": "nowhere", "round.conf": "round.conf"} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	must(t, os.Mkdir(filepath.Join(dir, "directory.conf"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo.conf"), 0o644))
	w.write(filepath.Join(dir, "large.conf"), strings.Repeat("#\n", 1<<20))
	w.write(filepath.Join(dir, "other.conf"), "title Other\nlinux /vmlinuz\noptions root=/dev/sda1\n")
	if s := w.status(); len(s.Status.OtherDeployments) != 1 || len(s.Status.Kedge.Warnings) == 0 {
		t.Errorf("status among such entries: %d deployments, warnings %q", len(s.Status.OtherDeployments), s.Status.Kedge.Warnings)
	}
	w.push("stable", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(context.Background()) })
	for _, name := range []string{"out.conf", "nowhere.conf", "round.conf", "directory.conf", "large.conf", "other.conf"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("an entry of others is gone: %v", err)
		}
	}
}
