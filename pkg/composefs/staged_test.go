package composefs

import (
	"os"
	"strings"
	"testing"
)

// TestTornObject has an import find what one that was killed left half-written:
// it is removed and written again, and what is whole stays.
func TestTornObject(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r, err := CreateRepo(root, "composefs", CreateOptions{AllowMissingVerity: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Sealed() {
		t.Skip("objects are sealed here before they have names")
	}
	begin := func() *Import {
		im, err := r.NewImport(t.Context(), ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	whole, torn := []byte(strings.Repeat("whole", 100)), []byte(strings.Repeat("torn", 100))
	im := begin()
	var digests []Digest
	for _, data := range [][]byte{[]byte("the first finds out about fs-verity"), whole, torn} {
		d, err := im.sink.add(data)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	path := root.Name() + "/composefs/" + im.stage.name + "/" + objectPath(digests[2])
	for _, err := range []error{im.Close(), os.Chmod(path, tornMode), os.Truncate(path, 7)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	im = begin()
	defer im.Close()
	if _, err := os.Stat(path); err == nil {
		t.Error("what was torn is still there")
	}
	if !im.sink.has(digests[1], int64(len(whole))) {
		t.Error("what was whole is gone")
	}
	if _, err := im.sink.add(torn); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{im.repo.sync(), im.stage.publish(im.sink.damage)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range [][]byte{whole, torn} {
		if got, err := r.readObject(digests[i+1], 1000); err != nil || string(got) != string(want) {
			t.Errorf("object %d is %.20q, %v", i+1, got, err)
		}
	}
}
