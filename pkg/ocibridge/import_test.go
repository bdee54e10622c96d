package ocibridge_test

import (
	"archive/tar"
	"io"
	"log"
	"sync"
	"testing"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

var zeroTime time.Time

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

func mustImport(t testing.TB, ref string, opt ocibridge.Options, store ocibridge.Store) *ocibridge.Image {
	t.Helper()
	img, err := importRef(t, ref, opt, store)
	if err != nil {
		t.Fatalf("importing %s: %v", ref, err)
	}
	return img
}

func importRef(t testing.TB, ref string, opt ocibridge.Options, store ocibridge.Store) (*ocibridge.Image, error) {
	t.Helper()
	r, err := ocibridge.ParseReference(ref, "")
	if err != nil {
		return nil, err
	}
	src, err := ocibridge.Open(t.Context(), r, opt)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	return src.Import(t.Context(), store)
}

func TestImportFromRegistry(t *testing.T) {
	base := tarOf(t, map[string]string{"usr/bin/sh": "#!", "etc/old": "old"},
		tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "usr/bin/sh", Mode: 0o755},
		tar.Header{Name: "etc/old", Mode: 0o644})
	derived := tarOf(t, map[string]string{"etc/new": "new"},
		tar.Header{Name: "etc/.wh.old"},
		tar.Header{Name: "etc/new", Mode: 0o644})
	for name, pack := range map[string]func([]byte) blob{"gzip": gzipLayer, "zstd": zstdLayer, "plain": plainLayer} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			ref := reg.push("os/base:1", imageSpec{layers: []blob{pack(base), pack(derived)}})
			store := storetest.NewMem()
			img := mustImport(t, ref, options(t, reg.host), store)
			if img.Tree.Lookup("etc/old") != nil {
				t.Error("etc/old is still there after its whiteout")
			}
			if n := img.Tree.Lookup("etc/new"); n == nil || n.Content != sha("new") {
				t.Errorf("etc/new is %+v", n)
			}
			if n := img.Tree.Lookup("usr/bin/sh"); n == nil || n.Mode&0o7777 != 0o755 {
				t.Errorf("usr/bin/sh is %+v", n)
			}
			before := len(reg.requests)
			again := mustImport(t, ref, options(t, reg.host), store)
			if got := len(reg.requests) - before; got != 1 {
				t.Errorf("the second import asked for %d blobs, want the config alone", got)
			}
			if again.Layers[0].Fetched || !img.Layers[0].Fetched {
				t.Error("Fetched must tell the first import from the second")
			}
		})
	}
}

func TestMemStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() ocibridge.Store {
		m := storetest.NewMem()
		return func() ocibridge.Store { return m }
	})
}

// counter adds up what Progress is told.
type counter struct {
	mu     sync.Mutex
	layers []ocibridge.LayerProgress
	bytes  map[int]int64
	done   map[int]bool
}

func (c *counter) Layers(l []ocibridge.LayerProgress) { c.layers = l }

func (c *counter) Bytes(layer int, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes[layer] += n
}

func (c *counter) Done(layer int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[layer] = true
}

func TestProgress(t *testing.T) {
	reg := newRegistry(t)
	shared, own := noisyLayer(t, 1<<20), noisyLayer(t, 2<<20)
	store := storetest.NewMem()
	mustImport(t, reg.push("os/base:1", imageSpec{layers: []blob{shared}}), options(t, reg.host), store)
	c := &counter{bytes: make(map[int]int64), done: make(map[int]bool)}
	opt := options(t, reg.host)
	opt.Progress = c
	mustImport(t, reg.push("os/base:2", imageSpec{layers: []blob{shared, own, own}}), opt, store)
	if len(c.layers) != 3 || !c.layers[0].Cached || c.layers[1].Cached || !c.layers[2].Cached {
		t.Errorf("layers %+v; want the first (in the store) and the last (twice in the image) cached", c.layers)
	}
	if len(c.bytes) != 1 || c.bytes[1] != int64(len(own.data)) || len(c.done) != 1 || !c.done[1] {
		t.Errorf("bytes %v, done %v; want those of the second layer", c.bytes, c.done)
	}
}

// TestNotAnImage asks for what registries hold beside images.
func TestNotAnImage(t *testing.T) {
	for name, manifest := range map[string]struct{ mediaType, data string }{
		"schema 1": {"application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"name":"x","tag":"1","architecture":"amd64","fsLayers":[],"history":[]}`},
		"artifact": {"application/vnd.oci.image.manifest.v1+json", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + someDigest + `","size":0},"layers":[]}`},
		"digest":   {"application/vnd.oci.image.manifest.v1+json", `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:../../x","size":0},"layers":[]}`},
		"config":   {"application/vnd.oci.image.manifest.v1+json", `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + someDigest + `","size":99999999},"layers":[]}`},
	} {
		reg := newRegistry(t)
		reg.putManifest("os/base:1", []byte(manifest.data), manifest.mediaType)
		_, err := importRef(t, reg.host+"/os/base:1", options(t, reg.host), storetest.NewMem())
		if k := fault.KindOf(err); k != fault.Conflict && k != fault.Corrupt {
			t.Errorf("%s: %v (%v), want conflict or corrupt", name, err, k)
		}
	}
}
