package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// limit writes each file of the image with the given digest, in a layout given
// as DIR@DIGEST, into a directory, hashing what an import has to hash. Two
// layers run at once.
func limit(image, dir string) error {
	layoutDir, digest, _ := strings.Cut(image, "@")
	h, err := v1.NewHash(digest)
	if err != nil {
		return err
	}
	img, err := layout.Path(layoutDir).Image(h)
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(2)
	for i, l := range layers {
		g.Go(func() error {
			d, err := l.Digest()
			if err != nil {
				return err
			}
			return unpack(filepath.Join(layoutDir, "blobs", d.Algorithm, d.Hex), filepath.Join(dir, fmt.Sprint(i)))
		})
	}
	return g.Wait()
}

// unpack decompresses and hashes in one goroutine, and parses, hashes and
// writes the files in another.
func unpack(blob, dir string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	compressed, raw := sha256.New(), sha256.New()
	z, err := decompress(bufio.NewReaderSize(io.TeeReader(f, compressed), 1<<20))
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.CopyBuffer(io.MultiWriter(w, raw), z, make([]byte, 1<<20))
		return errors.Join(err, w.CloseWithError(err))
	})
	g.Go(func() error {
		err := writeFiles(tar.NewReader(bufio.NewReaderSize(r, 1<<20)), dir)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		return errors.Join(err, r.CloseWithError(err))
	})
	return g.Wait()
}

func writeFiles(t *tar.Reader, dir string) error {
	buf := make([]byte, 1<<20)
	for n := 0; ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		sub := filepath.Join(dir, fmt.Sprintf("%02x", n%256))
		if n < 256 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				return err
			}
		}
		f, err := os.Create(filepath.Join(sub, fmt.Sprint(n)))
		n++
		if err != nil {
			return err
		}
		content := sha256.New()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, content)}, t, buf)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// decompress tells gzip from zstd by the first bytes.
func decompress(r *bufio.Reader) (io.Reader, error) {
	magic, err := r.Peek(4)
	if err != nil {
		return nil, err
	}
	if magic[0] == 0x1f && magic[1] == 0x8b {
		return gzip.NewReader(r)
	}
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
}
