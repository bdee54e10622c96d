package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
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
	img, err := grown(base, filepath.Join(b.work, "large"))
	if err != nil {
		return err
	}
	if err := b.registry.push("large", img); err != nil {
		return err
	}
	programs, err := b.coldPrograms(img, "", "large")
	if err != nil {
		return err
	}
	return b.compare(ctx, name, 1, programs[:3])
}

// grown writes the layer of the large image into a file, and returns the image.
func grown(base v1.Image, file string) (v1.Image, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	blob, raw := sha256.New(), sha256.New()
	size := &counter{}
	z, err := zstd.NewWriter(io.MultiWriter(f, blob, size), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(growTar(base, io.MultiWriter(z, raw)), z.Close(), f.Close()); err != nil {
		return nil, err
	}
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
	return mutate.AppendLayers(img, &fileLayer{file, sum(blob), sum(raw), size.n})
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

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// fileLayer is a zstd layer in a file.
type fileLayer struct {
	file           string
	digest, diffID v1.Hash
	size           int64
}

func (l *fileLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.file) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return types.OCILayerZStd, nil }
