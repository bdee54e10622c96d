package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// recipe is what makes the layers that are kept between runs: when it changes,
// or the base image does, they are made anew.
//
//go:embed fixture.go large.go many.go
var recipe embed.FS

const fixturePrefix = "bench-layers-"

// openFixtures finds, or makes, the directory of layers that are kept, and
// removes those of other recipes.
func (b *bench) openFixtures(base v1.Image) error {
	digest, err := base.Digest()
	if err != nil {
		return err
	}
	h := sha256.New()
	_, _ = io.WriteString(h, digest.Hex)
	err = fs.WalkDir(recipe, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := recipe.ReadFile(path)
		_, _ = h.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	name := fixturePrefix + hex.EncodeToString(h.Sum(nil))[:12]
	b.fixtures = filepath.Join(b.cache, name)
	entries, err := os.ReadDir(b.cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fixturePrefix) && e.Name() != name {
			if err := os.RemoveAll(filepath.Join(b.cache, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.MkdirAll(b.fixtures, 0o755)
}

// fixture returns the layer of a name whose tar write writes, made once.
func (b *bench) fixture(ctx context.Context, name string, write func(io.Writer) error) (v1.Layer, error) {
	about := filepath.Join(b.fixtures, name+".json")
	l := &fileLayer{file: filepath.Join(b.fixtures, name+".tar.zst")}
	data, err := os.ReadFile(about)
	if err == nil {
		return l, json.Unmarshal(data, &l.layerInfo)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.Create(l.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blob, raw := sha256.New(), sha256.New()
	out := &counter{w: io.MultiWriter(f, blob), ctx: ctx}
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(write(io.MultiWriter(z, raw)), z.Close(), f.Sync()); err != nil {
		return nil, err
	}
	l.layerInfo = layerInfo{sum(blob), sum(raw), out.n}
	if data, err = json.Marshal(l.layerInfo); err != nil {
		return nil, err
	}
	// Written last: a layer with it is whole.
	return l, errors.Join(os.WriteFile(about+".new", data, 0o644), os.Rename(about+".new", about))
}

type counter struct {
	w   io.Writer
	ctx context.Context
	n   int64
}

func (c *counter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// layerInfo is what an image says of a layer.
type layerInfo struct {
	Blob, Raw v1.Hash
	Length    int64
}

// fileLayer is a zstd layer in a file.
type fileLayer struct {
	file string
	layerInfo
}

func (l *fileLayer) Digest() (v1.Hash, error)             { return l.Blob, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.Raw, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.file) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (l *fileLayer) Size() (int64, error)                 { return l.Length, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return types.OCILayerZStd, nil }
