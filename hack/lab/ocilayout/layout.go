package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI image layout on disk.
type layout struct {
	dir   string
	index v1.Index
}

func openLayout(dir string) (*layout, error) {
	l := &layout{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, v1.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return nil, err
	}
	marker, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, v1.ImageLayoutFile), marker, 0o644); err != nil {
		return nil, err
	}
	l.index = v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	b, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	return l, json.Unmarshal(b, &l.index)
}

func (l *layout) blobPath(d digest.Digest) string {
	return filepath.Join(l.dir, v1.ImageBlobsDir, "sha256", d.Encoded())
}

// putBlob stores what write produces and returns its descriptor without a media type.
func (l *layout) putBlob(write func(io.Writer) error) (v1.Descriptor, error) {
	tmp, err := os.CreateTemp(l.dir, ".blob-")
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	h := sha256.New()
	if err := write(io.MultiWriter(tmp, h)); err != nil {
		return v1.Descriptor{}, err
	}
	size, err := tmp.Seek(0, io.SeekCurrent)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := digest.NewDigest(digest.SHA256, h)
	if err := tmp.Chmod(0o644); err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{Digest: d, Size: size}, os.Rename(tmp.Name(), l.blobPath(d))
}

func (l *layout) putJSON(mediaType string, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc, err := l.putBlob(func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(b))
		return err
	})
	desc.MediaType = mediaType
	return desc, err
}

func (l *layout) readJSON(d digest.Digest, v any) error {
	b, err := os.ReadFile(l.blobPath(d))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// image is a manifest and its configuration being made.
type image struct {
	layout   *layout
	manifest v1.Manifest
	config   v1.Image
}

// image starts from the image tagged from, or from nothing when from is empty.
func (l *layout) image(from string) (*image, error) {
	img := &image{layout: l}
	if from == "" {
		img.manifest = v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
		img.config = v1.Image{
			Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
			RootFS:   v1.RootFS{Type: "layers"},
			Config:   v1.ImageConfig{Cmd: []string{"/sbin/init"}},
		}
		return img, nil
	}
	for _, d := range l.index.Manifests {
		if d.Annotations[v1.AnnotationRefName] != from {
			continue
		}
		if err := l.readJSON(d.Digest, &img.manifest); err != nil {
			return nil, err
		}
		return img, l.readJSON(img.manifest.Config.Digest, &img.config)
	}
	return nil, fmt.Errorf("no image tagged %q in %s", from, l.dir)
}

func (img *image) addLayer(files []file, compression string) error {
	diffID := sha256.New()
	mediaType := v1.MediaTypeImageLayer
	desc, err := img.layout.putBlob(func(w io.Writer) error {
		var c io.WriteCloser
		var err error
		switch compression {
		case "gzip":
			mediaType = v1.MediaTypeImageLayerGzip
			c, err = gzip.NewWriterLevel(w, gzip.DefaultCompression)
		case "zstd":
			mediaType = v1.MediaTypeImageLayerZstd
			c, err = zstd.NewWriter(w)
		case "none":
			return writeTar(io.MultiWriter(w, diffID), files)
		default:
			return fmt.Errorf("unknown compression %q", compression)
		}
		if err != nil {
			return err
		}
		return errors.Join(writeTar(io.MultiWriter(c, diffID), files), c.Close())
	})
	if err != nil {
		return err
	}
	desc.MediaType = mediaType
	img.manifest.Layers = append(img.manifest.Layers, desc)
	img.config.RootFS.DiffIDs = append(img.config.RootFS.DiffIDs, digest.NewDigest(digest.SHA256, diffID))
	return nil
}

// write stores configuration and manifest and points tag at them; the layout's
// index, replaced last, is what makes the image visible.
func (img *image) write(tag string, add map[string]string) error {
	created := time.Now().UTC().Truncate(time.Second)
	img.config.Created = &created
	if img.config.Config.Labels == nil {
		img.config.Config.Labels = map[string]string{}
	}
	maps.Copy(img.config.Config.Labels, add)
	// History must match the layers one to one, or tools refuse the image.
	img.config.History = make([]v1.History, len(img.manifest.Layers))
	for i := range img.config.History {
		img.config.History[i] = v1.History{Created: &created, CreatedBy: "kedge lab"}
	}
	var err error
	if img.manifest.Config, err = img.layout.putJSON(v1.MediaTypeImageConfig, img.config); err != nil {
		return err
	}
	desc, err := img.layout.putJSON(v1.MediaTypeImageManifest, img.manifest)
	if err != nil {
		return err
	}
	desc.Annotations = map[string]string{v1.AnnotationRefName: tag}
	l := img.layout
	l.index.Manifests = slices.DeleteFunc(l.index.Manifests, func(d v1.Descriptor) bool {
		return d.Annotations[v1.AnnotationRefName] == tag
	})
	l.index.Manifests = append(l.index.Manifests, desc)
	b, err := json.Marshal(l.index)
	if err != nil {
		return err
	}
	tmp := filepath.Join(l.dir, ".index.json")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(l.dir, v1.ImageIndexFile))
}
