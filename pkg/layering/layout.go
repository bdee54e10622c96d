package layering

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Layout is kedge's own OCI image layout: a directory that has the manifest,
// the config and the one new layer of each derived image. The base's layers
// stand in the manifest and are not here, since the store has what is in them.
type Layout struct{ Root *os.Root }

// Derived is an image in a Layout.
type Derived struct {
	Name           string // the reference's name in the index, "NAME:TAG"
	ManifestDigest string // "sha256:…"
}

// Add makes the image that has layer on top of base, copies the layer's
// file into the layout and names the image. The same base, request, lock and layer
// give the same digest. The commit point is the renaming of index.json.
func (l Layout) Add(name string, base BaseImage, req Request, lock *Lock, layer *Layer) (*Derived, error) {
	m, err := derive(base, req, lock, layer)
	if err != nil {
		return nil, err
	}
	if err := l.create(); err != nil {
		return nil, err
	}
	if err := l.takeLayer(layer); err != nil {
		return nil, err
	}
	for _, b := range [][]byte{m.config, m.manifest} {
		if err := atomicfile.Write(l.Root, blobName(digest.FromBytes(b)), b, 0o644); err != nil {
			return nil, err
		}
	}
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	d := digest.FromBytes(m.manifest)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Annotations[v1.AnnotationRefName] == name })
	index.Manifests = append(index.Manifests, v1.Descriptor{
		MediaType: v1.MediaTypeImageManifest, Digest: d, Size: int64(len(m.manifest)),
		Annotations: map[string]string{v1.AnnotationRefName: name},
	})
	return &Derived{Name: name, ManifestDigest: d.String()}, l.writeIndex(index)
}

// Keep removes all images but the named ones, and the blobs that only those
// had. The index is written first, so that what it names is always there.
func (l Layout) Keep(names []string) error {
	index, err := l.index()
	if err != nil {
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool { return !slices.Contains(names, d.Annotations[v1.AnnotationRefName]) })
	used := make(map[string]bool)
	for _, d := range index.Manifests {
		data, err := l.Root.ReadFile(blobName(d.Digest))
		if err != nil {
			return err
		}
		var m v1.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return fault.New(fault.Corrupt, "remove the packages and add them again", "read the local image %s: %w", d.Digest, err)
		}
		used[d.Digest.Encoded()], used[m.Config.Digest.Encoded()] = true, true
		for _, layer := range m.Layers {
			used[layer.Digest.Encoded()] = true
		}
	}
	if err := l.writeIndex(index); err != nil {
		return err
	}
	blobs := path.Join(v1.ImageBlobsDir, "sha256")
	dir, err := l.Root.Open(blobs)
	if err != nil {
		return err
	}
	defer dir.Close()
	have, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range have {
		if used[name] {
			continue
		}
		if err := l.Root.Remove(path.Join(blobs, name)); err != nil {
			return err
		}
	}
	return nil
}

func blobName(d digest.Digest) string {
	return path.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (l Layout) create() error {
	if err := l.Root.MkdirAll(path.Join(v1.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return err
	}
	marker, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return atomicfile.Write(l.Root, v1.ImageLayoutFile, marker, 0o644)
}

// takeLayer copies a layer's file into the layout; a reflink where the file
// system has them.
func (l Layout) takeLayer(layer *Layer) error {
	in, err := os.Open(layer.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	name := blobName(digest.Digest(layer.DiffID))
	tmp := name + ".tmp"
	out, err := l.Root.Create(tmp)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, l.Root.Remove(tmp))
	}
	if err := errors.Join(out.Sync(), out.Close()); err != nil {
		return errors.Join(err, l.Root.Remove(tmp))
	}
	return l.Root.Rename(tmp, name)
}

func (l Layout) index() (*v1.Index, error) {
	index := &v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	b, err := l.Root.ReadFile(v1.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, index); err != nil {
		return nil, fault.New(fault.Corrupt, "remove the packages and add them again", "read the index of local images: %w", err)
	}
	return index, nil
}

func (l Layout) writeIndex(index *v1.Index) error {
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return atomicfile.Write(l.Root, v1.ImageIndexFile, b, 0o644)
}
