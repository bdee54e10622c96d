package composefs

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestPublish has two imports publish objects into the same directories, on file
// systems that list directories in different ways.
func TestPublish(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			root, err := os.OpenRoot(lab.Mounted(t, kind, 320<<20))
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			r, err := CreateRepo(root, "composefs", CreateOptions{AllowMissingVerity: true})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for first := range uint32(2) {
				publishObjects(t, r, first)
			}
		})
	}
}

// publishObjects stages and publishes objects of its own, several of each
// directory.
func publishObjects(t *testing.T, r *Repo, first uint32) {
	t.Helper()
	const objects = 1000
	im, err := r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.sink.to == &r.objects {
		t.Fatal("objects are not staged")
	}
	var all []Digest
	for n := range uint32(objects) {
		d, err := im.sink.add(binary.LittleEndian.AppendUint32(nil, first*objects+n))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	if err := im.stage.publish(im.sink.damage); err != nil {
		t.Fatal(err)
	}
	missing := 0
	for _, d := range all {
		if _, err := r.readObject(d, 4); err != nil {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("import %d: %d of %d published objects are missing", first, missing, objects)
	}
}
