package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// growth is how many times as large the large image's files are: 3 GB.
const growth = 5

// large imports an image with the base image's files, each of five times the
// size, to see that memory does not depend on sizes.
func (b *bench) large(ctx context.Context) error {
	const name = "cold, 3 GB, same files, 1 zstd layer"
	if !b.wanted(name) {
		return nil
	}
	base, err := b.registry.pull("base20")
	if err != nil {
		return err
	}
	layer, err := b.fixture(ctx, "large", func(w io.Writer) error { return growTar(base, w) })
	if err != nil {
		return err
	}
	img, err := only(base, layer)
	if err != nil {
		return err
	}
	if err := b.registry.push("large", img); err != nil {
		return err
	}
	programs, err := b.coldPrograms(ctx, img, "", "large")
	if err != nil {
		return err
	}
	return b.compare(ctx, name, 1, programs[:3])
}

// only returns an image like base with one layer.
func only(base v1.Image, layer v1.Layer) (v1.Image, error) {
	config, err := base.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs, config.History = nil, nil
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

// smallest is what a file has at least that grows: configuration, which the
// import reads, is smaller.
const smallest = 4096

// growTar writes an image's tree with five times as much in each file of some
// size below /usr: what is in it, and noise that is the same in every run.
func growTar(base v1.Image, w io.Writer) error {
	r := mutate.Extract(base)
	defer r.Close()
	in, out := tar.NewReader(r), tar.NewWriter(w)
	noise := rand.NewChaCha8([32]byte{})
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		more := int64(0)
		if h.Typeflag == tar.TypeReg && h.Size >= smallest && strings.HasPrefix(strings.TrimPrefix(h.Name, "/"), "usr/") {
			more = (growth - 1) * h.Size
		}
		h.Size += more
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, io.MultiReader(in, io.LimitReader(noise, more))); err != nil {
			return err
		}
	}
}
