package composefs

import (
	"bytes"
	"os"
	"testing"
)

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestReadV2 reads images of version 2 that composefs-rs 0.9.4 wrote from the
// dumps beside them.
func TestReadV2(t *testing.T) {
	for _, tc := range []struct{ image, dump string }{
		{"rs/root.v2.erofs", "trees/root.dump"},
		{"rs/sha256.v2.erofs", "rs/sha256.dump"},
		{"rs/sha512.v2.erofs", "rs/sha512.dump"},
	} {
		want, err := ReadDump(bytes.NewReader(readTestdata(t, tc.dump)))
		if err != nil {
			t.Fatal(err)
		}
		got, info, err := ReadImage(readTestdata(t, tc.image))
		if err != nil {
			t.Errorf("%s: %v", tc.image, err)
			continue
		}
		if info.Version != 2 {
			t.Errorf("%s has version %d, want 2", tc.image, info.Version)
		}
		err = Diff(want, got, func(c Change) error {
			t.Errorf("%s: %s differs in %v", tc.image, c.Path, c.Fields)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	const digest = "086b702a519b57d6ef5aea6f8b3f2be24355cd1fb835cd80fb4e3d388b24d5a5"
	if d := digestOf(SHA256, readTestdata(t, "rs/root.v2.erofs")).String(); d != digest {
		t.Errorf("the empty tree of version 2 has digest %s, want %s", d, digest)
	}
}

// TestSHA512 compares with an image that composefs-rs 0.9.4 wrote, as
// mkcomposefs knows sha256 only.
func TestSHA512(t *testing.T) {
	tree, err := ReadDump(bytes.NewReader(readTestdata(t, "rs/sha512.dump")))
	if err != nil {
		t.Fatal(err)
	}
	want := readTestdata(t, "rs/sha512.v1.erofs")
	var got bytes.Buffer
	o := V1
	o.Algorithm = SHA512
	info, err := WriteImage(&got, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Error(firstDifference(got.Bytes(), want))
	}
	if info.Digest != digestOf(SHA512, want) {
		t.Errorf("the image's digest is %s, want its fs-verity digest by sha512", info.Digest)
	}
}
