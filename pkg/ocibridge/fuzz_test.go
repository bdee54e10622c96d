package ocibridge

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

type hashOnly struct{}

func (hashOnly) Put(_ string, _ *fstree.Inode, r io.Reader) (d fstree.Digest, err error) {
	h := sha256.New()
	_, err = io.Copy(h, r)
	h.Sum(d[:0])
	return d, err
}

var fuzzLimits = Limits{Entries: 10_000, FileBytes: 1 << 20, Bytes: 4 << 20}.withDefaults()

// fixtureTars returns the tars of the fixtures' layers.
func fixtureTars(f *testing.F) [][]byte {
	files, err := filepath.Glob("testdata/chunked/oci/blobs/sha256/*")
	if err != nil {
		f.Fatal(err)
	}
	var out [][]byte
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if z, err := gzip.NewReader(bytes.NewReader(data)); err == nil {
			if plain, err := io.ReadAll(z); err == nil {
				out = append(out, plain)
			}
		}
	}
	if len(out) == 0 {
		f.Fatal("testdata/chunked has no gzip layers")
	}
	return out
}

func FuzzDecodeLayer(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "usr/", Typeflag: tar.TypeDir},
		{Name: "usr/a", Size: 3},
		{Name: "usr/b", Typeflag: tar.TypeLink, Linkname: "usr/a"},
		{Name: "usr/.wh.c"},
		{Name: "usr/.wh..wh..opq"},
		{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "usr"},
		{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.x": "\x00"}},
	} {
		w.WriteHeader(&h)
		w.Write([]byte("abc")[:h.Size])
	}
	w.Close()
	f.Add(b.Bytes())
	f.Add(fixtureTars(f)[0])
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := decodeLayer(context.Background(), bytes.NewReader(data), hashOnly{}, &budget{Limits: fuzzLimits})
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("%v is %v, want corrupt", err, fault.KindOf(err))
			}
			return
		}
		for e := range l.All() {
			if clean, why := cleanRelative(e.Path); why != "" || clean != e.Path {
				t.Errorf("the path %q is not clean: %s", e.Path, why)
			}
		}
		fstree.New().Apply(l)
		x := &Index{Layer: l}
		if _, err := DecodeIndex(EncodeIndex(x)); err != nil {
			t.Errorf("the layer's index cannot be read: %v", err)
		}
	})
}

func FuzzDecodeObjects(f *testing.F) {
	for _, data := range fixtureTars(f) {
		f.Add(data, true)
		f.Add(data, false)
	}
	f.Fuzz(func(t *testing.T, data []byte, commit bool) {
		role := OSTreeChunk
		if commit {
			role = OSTreeCommit
		}
		o, err := decodeObjects(context.Background(), bytes.NewReader(data), hashOnly{}, &budget{Limits: fuzzLimits}, role)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Corrupt && k != fault.Untrusted {
				t.Errorf("%v is %v, want corrupt or untrusted", err, k)
			}
			return
		}
		if _, err := DecodeIndex(EncodeIndex(&Index{Role: role, Objects: o})); err != nil {
			t.Errorf("the layer's index cannot be read: %v", err)
		}
		if commit {
			commitTree([]*ObjectLayer{o}, fuzzLimits)
		}
	})
}
