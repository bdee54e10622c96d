package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestAutoBackend installs images without saying where their roots are to be
// kept.
func TestAutoBackend(t *testing.T) {
	ostree := smallimage.File("usr/lib/ostree/ostree-prepare-root", 0o755, "x")
	kedge := smallimage.File("usr/lib/kedge/kedge-initramfs", 0o755, "x")
	bootc := smallimage.File("usr/lib/bootc/initramfs-setup", 0o755, "x")
	began := func(b *backend) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			must(t, b.initialise(w.config(), InstallOptions{Stateroot: defaultStateroot, AllowMissingVerity: true}))
		}
	}
	for _, c := range []struct {
		name   string
		files  []smallimage.Entry
		label  string
		before func(*testing.T, *world)
		want   string
	}{
		{name: "neither", want: "ostree"},
		{name: "ostree's", files: []smallimage.Entry{ostree}, want: "ostree"},
		{name: "kedge's", files: []smallimage.Entry{kedge}, want: "composefs"},
		{name: "bootc's alone", files: []smallimage.Entry{bootc}, want: "composefs"},
		{name: "both, as bootc's images have", files: []smallimage.Entry{ostree, bootc}, want: "ostree"},
		{name: "label for composefs", files: []smallimage.Entry{ostree, bootc}, label: "composefs", want: "composefs"},
		{name: "label for ostree", files: []smallimage.Entry{kedge}, label: "ostree", want: "ostree"},
		{name: "begun on the wrong one", files: []smallimage.Entry{kedge}, before: began(ostreeBackend), want: "composefs"},
		{name: "begun on another", files: []smallimage.Entry{ostree}, before: began(composefsBackend), want: "composefs"},
		{name: "killed while beginning anew", files: []smallimage.Entry{kedge}, want: "composefs", before: func(t *testing.T, w *world) {
			began(ostreeBackend)(t, w)
			must(t, discardOSTree(w.config()))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorldOf(t, AutoBackend)
			ref, digest := w.pushImage("auto", labelled(t, image(t, 1, c.files...), c.label))
			if c.before != nil {
				c.before(t, w)
			}
			if r := w.install(ref); r.Image == nil || r.Image.ImageDigest != digest {
				t.Errorf("the result of the installation = %+v, want one of %s", r, digest)
			}
			h := w.open()
			if h.backend.name != c.want {
				t.Errorf("the sysroot is one of the %s backend, want %s", h.backend.name, c.want)
			}
			if check, _, err := h.store.Fsck(context.Background()); err != nil || len(check.Problems) > 0 {
				t.Errorf("fsck = %+v, %v, want no problem", check, err)
			}
			other := map[string]string{"ostree": composefsDir, "composefs": "ostree"}[c.want]
			for _, name := range []string{other, discardedDir} {
				if _, err := os.Lstat(filepath.Join(w.dir, name)); err == nil {
					t.Errorf("%s is left in the sysroot", name)
				}
			}
		})
	}
}

func TestUnknownBackendLabel(t *testing.T) {
	w := newWorldOf(t, AutoBackend)
	ref, _ := w.pushImage("bad", labelled(t, image(t, 1), "btrfs"))
	_, err := Install(context.Background(), w.config(), w.options(ref))
	wantKind(t, err, fault.Conflict, `"btrfs"`)
	if entries, err := os.ReadDir(w.dir); err != nil || len(entries) > 0 {
		t.Errorf("the refused installation left %v, %v", entries, err)
	}
	o := w.options(ref)
	o.Backend = "ostree"
	if _, err := Install(context.Background(), w.config(), o); err != nil {
		t.Errorf("with --backend the label still matters: %v", err)
	}
}

// labelled gives an image a label for a backend; "" for none.
func labelled(t *testing.T, img ociv1.Image, backend string) ociv1.Image {
	t.Helper()
	if backend == "" {
		return img
	}
	c, err := img.ConfigFile()
	must(t, err)
	c = c.DeepCopy()
	c.Config.Labels[BackendLabel] = backend
	img, err = mutate.ConfigFile(img, c)
	must(t, err)
	return img
}
