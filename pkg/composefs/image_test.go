package composefs

import (
	"bytes"
	"testing"
)

func writeImageOf(t testing.TB, tree *Tree, o ImageOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := WriteImage(&b, tree, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dumpOf(t testing.TB, tree *Tree) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteDump(&b, tree); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestImageRoundTrip reads random images and writes them again: the tree loses
// nothing that is in the image.
func TestImageRoundTrip(t *testing.T) {
	for seed := range uint64(400) {
		for _, o := range []ImageOptions{V0, V1} {
			var b bytes.Buffer
			in := randomTree(seed)
			_ = in.Walk(func(_ string, e Dirent) error {
				if !e.Inode.IsRegular() {
					e.Inode.Size = 0 // a size that an image does not keep
				}
				return nil
			})
			if _, err := WriteImage(&b, in, o); err != nil {
				continue // too many xattrs
			}
			tree, info, err := ReadImage(b.Bytes())
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				continue
			}
			if info.Version != o.MinVersion {
				t.Errorf("seed %d: the image has version %d, want %d", seed, info.Version, o.MinVersion)
			}
			if again := writeImageOf(t, tree, o); !bytes.Equal(again, b.Bytes()) {
				t.Errorf("seed %d: version %d: read and written again, %s", seed, o.MinVersion, firstDifference(again, b.Bytes()))
			}
		}
	}
}
