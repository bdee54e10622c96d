package interop_test

import (
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
)

// BenchmarkImport imports the base image into a new repository.
func BenchmarkImport(b *testing.B) {
	image := lab.BaseImage(b) + ":" + lab.TagZstd20
	for b.Loop() {
		benchImport(b, openRepo(b, b.TempDir(), true), image, composefs.ImportOptions{})
	}
}

// BenchmarkImportPresent imports an image of which every layer is there.
func BenchmarkImportPresent(b *testing.B) {
	image := lab.BaseImage(b) + ":" + lab.TagZstd20
	r, state := openRepo(b, b.TempDir(), true), openRoot(b, b.TempDir())
	benchImport(b, r, image, composefs.ImportOptions{State: state})
	for b.Loop() {
		benchImport(b, r, image, composefs.ImportOptions{State: state})
	}
}

// BenchmarkFsck reads the base image's repository.
func BenchmarkFsck(b *testing.B) {
	r := openRepo(b, b.TempDir(), true)
	benchImport(b, r, lab.BaseImage(b)+":"+lab.TagZstd20, composefs.ImportOptions{})
	for b.Loop() {
		b.SetBytes(fsck(b, r).Bytes)
	}
}

func benchImport(b *testing.B, r *composefs.Repo, image string, o composefs.ImportOptions) {
	im := newImport(b, r, o)
	importImage(b, im, image, composefs.Container{Tags: []string{"t"}})
	if err := im.Close(); err != nil {
		b.Fatal(err)
	}
}
