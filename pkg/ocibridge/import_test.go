package ocibridge_test

import (
	"archive/tar"
	"io"
	"log"
	"testing"
	"time"

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
