package host

import (
	"os"
	"path/filepath"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"

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
