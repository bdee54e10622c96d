package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// sampleIndexes returns encoded indexes of real layers of every role.
func sampleIndexes(t testing.TB) [][]byte {
	t.Helper()
	store := storetest.NewMem()
	layer := tarOf(t, map[string]string{"usr/bin/a": "a"},
		tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "usr/bin/a", Mode: 0o755, Uid: 7, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "\x00y"}},
		tar.Header{Name: "usr/bin/b", Typeflag: tar.TypeLink, Linkname: "usr/bin/a"},
		tar.Header{Name: "usr/bin/c", Typeflag: tar.TypeSymlink, Linkname: "a"},
		tar.Header{Name: "dev/x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "usr/.wh.gone"}, tar.Header{Name: "usr/lib/.wh..wh..opq"})
	var out [][]byte
	for _, img := range []*ocibridge.Image{
		mustImport(t, writeLayout(t, imageSpec{layers: []blob{gzipLayer(layer)}}), options(t), store),
		mustImport(t, "oci:testdata/chunked/oci:chunked", options(t), store),
	} {
		for _, l := range img.Layers {
			data, err := store.LayerIndex(l.DiffID)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, data)
		}
	}
	return out
}

var compareIndexes = cmp.Options{
	cmpopts.IgnoreUnexported(fstree.Inode{}), cmpopts.EquateEmpty(),
	cmp.Transformer("entries", func(l *fstree.Layer) []fstree.Entry {
		if l == nil {
			return nil
		}
		return slices.Collect(l.All())
	}),
	cmp.Comparer(func(a, b *fstree.Xattrs) bool { return cmp.Equal(a.All(), b.All(), cmpopts.EquateEmpty()) }),
}

func TestIndexRoundTrip(t *testing.T) {
	for _, data := range sampleIndexes(t) {
		x, err := ocibridge.DecodeIndex(data)
		if err != nil {
			t.Fatal(err)
		}
		again := ocibridge.EncodeIndex(x)
		if !bytes.Equal(again, data) {
			t.Errorf("an index of role %s is encoded differently after decoding", x.Role)
		}
		y, err := ocibridge.DecodeIndex(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(x, y, compareIndexes); diff != "" {
			t.Errorf("the index changed:\n%s", diff)
		}
		for _, i := range []int{0, 11, len(data) / 2, len(data) - 1} {
			bad := bytes.Clone(data)
			bad[i] ^= 1
			if _, err := ocibridge.DecodeIndex(bad); fault.KindOf(err) != fault.Corrupt {
				t.Errorf("a changed byte at %d of %d: %v, want corrupt", i, len(data), err)
			}
		}
		if _, err := ocibridge.DecodeIndex(data[:len(data)/2]); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("half an index: %v, want corrupt", err)
		}
	}
}

// TestDamagedIndex: a store's damaged index makes the layer be fetched again.
func TestDamagedIndex(t *testing.T) {
	ref := writeLayout(t, imageSpec{layers: []blob{gzipLayer(tarOf(t, nil, tar.Header{Name: "a"}))}})
	store := storetest.NewMem()
	img := mustImport(t, ref, options(t), store)
	w, err := store.Begin(img.Layers[0].DiffID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit([]byte("not an index")); err != nil {
		t.Fatal(err)
	}
	if img = mustImport(t, ref, options(t), store); !img.Layers[0].Fetched || img.Tree.Lookup("a") == nil {
		t.Error("the layer was not fetched again")
	}
}

func FuzzDecodeIndex(f *testing.F) {
	for _, data := range sampleIndexes(f) {
		f.Add(data[:len(data)-32])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		data := append(bytes.Clone(body), shaBytes(body)...)
		x, err := ocibridge.DecodeIndex(data)
		if err != nil {
			return
		}
		y, err := ocibridge.DecodeIndex(ocibridge.EncodeIndex(x))
		if err != nil {
			t.Fatalf("an index that was read cannot be read again: %v", err)
		}
		if diff := cmp.Diff(x, y, compareIndexes); diff != "" {
			t.Errorf("the index changed:\n%s", diff)
		}
		if x.Layer != nil {
			fstree.New().Apply(x.Layer) // must not panic
		}
	})
}

func shaBytes(b []byte) []byte { s := sha(string(b)); return s[:] }
