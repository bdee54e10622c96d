package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// archiveOf makes an oci-archive of an OCI layout as tar(1) would; change sees
// each file and may keep it out or change it.
func archiveOf(t testing.TB, layout string, change func(name string, data []byte) ([]byte, bool)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir(layout, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, _ := filepath.Rel(layout, p)
		data, err := os.ReadFile(p)
		keep := true
		if change != nil {
			data, keep = change(name, data)
		}
		if err != nil || !keep {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: "./" + name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOCIArchive(t *testing.T) {
	image := writeLayout(t, imageSpec{layers: []blob{noisyLayer(t, 1<<20), smallLayer(t, "b"), smallLayer(t, "c")}})
	layout, tag, _ := strings.Cut(strings.TrimPrefix(image, "oci:"), ":")
	whole := archiveOf(t, layout, nil)
	without := func(part string) []byte {
		return archiveOf(t, layout, func(name string, data []byte) ([]byte, bool) { return data, !strings.Contains(name, part) })
	}
	edited := func(old, with string) []byte {
		return archiveOf(t, layout, func(_ string, data []byte) ([]byte, bool) {
			return bytes.ReplaceAll(data, []byte(old), []byte(with)), true
		})
	}
	many := func() []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := range 70_000 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg}); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		return b.Bytes()
	}
	for _, tt := range []struct {
		name, image string
		data        []byte
		kind        fault.Kind
		says        string
	}{
		{"the only image", "", whole, 0, ""},
		{"by name", ":" + tag, whole, 0, ""},
		{"another name", ":nosuch", whole, fault.NotFound, "nosuch"},
		{"no index", "", without("index.json"), fault.Corrupt, "index.json"},
		{"no blobs", "", without("blobs"), fault.Corrupt, "lacks the blob"},
		{"torn", "", whole[:len(whole)*2/3], fault.Corrupt, "whole tar"},
		{"empty", "", nil, fault.Corrupt, "index.json"},
		{"not a tar", "", bytes.Repeat([]byte("text "), 1000), fault.Corrupt, "whole tar"},
		{"a manifest with another digest", "", edited("containers.bootc", "containers.bo0tc"), fault.Untrusted, "digest"},
		{"many entries", "", many(), fault.Corrupt, "entries"},
		{"a large index", "", archiveOf(t, layout, func(name string, data []byte) ([]byte, bool) {
			if name == "index.json" {
				data = append(data, bytes.Repeat([]byte(" "), 5<<20)...)
			}
			return data, true
		}), fault.Corrupt, "limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.tar")
			if err := os.WriteFile(file, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			opt := options(t)
			t.Setenv("TMPDIR", "/nonexistent") // nothing is unpacked
			img, err := importRef(t, "oci-archive:"+file+tt.image, opt, storetest.NewMem())
			if got := fault.KindOf(err); got != tt.kind || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("%v (%v), want %v, speaking of %q", err, got, tt.kind, tt.says)
			}
			if err == nil && (img.Tree.Lookup("usr/lib/big") == nil || img.Tree.Lookup("c") == nil) {
				t.Error("files of the image are missing")
			}
		})
	}
}

// TestOCIArchiveOfPrograms imports what skopeo writes, plain and compressed.
func TestOCIArchiveOfPrograms(t *testing.T) {
	lab.Need(t, "skopeo")
	image := writeLayout(t, imageSpec{layers: oddLayers(t)})
	want := treeLines(mustImport(t, image, options(t), storetest.NewMem()).Tree)
	file := filepath.Join(t.TempDir(), "a.tar")
	for _, name := range []string{"one", "two"} {
		if _, err := lab.Command(t.Context(), "skopeo", "--insecure-policy", "copy", image, "oci-archive:"+file+":"+name); err != nil {
			t.Fatal(err)
		}
		wantSameTree(t, treeLines(mustImport(t, "oci-archive:"+file+":"+name, options(t), storetest.NewMem()).Tree), want)
		if err := os.Rename(file, file+"."+name); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file + ".one")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".gz", b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	wantSameTree(t, treeLines(mustImport(t, "oci-archive:"+file+".gz", options(t), storetest.NewMem()).Tree), want)
}
