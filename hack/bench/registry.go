package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kedge-os/kedge/e2e/smallimage"
)

// registry is a registry on the loopback interface that serves from disk.
type registry struct {
	dir     string // of blobs, named as in an OCI layout
	address string
	config  string // a registries.conf that allows plain HTTP to it
	server  *http.Server
}

func serve(dir string) (*registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{dir: dir, address: l.Addr().String(), config: filepath.Join(dir, "registries.conf")}
	r.server = &http.Server{Handler: ggcr.New(ggcr.WithBlobHandler(ggcr.NewDiskBlobHandler(dir)), ggcr.Logger(log.New(io.Discard, "", 0)))}
	go func() { _ = r.server.Serve(l) }()
	return r, os.WriteFile(r.config, []byte(fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r.address)), 0o644)
}

// env makes the programs that are measured talk to the registry.
func (r *registry) env() string { return "CONTAINERS_REGISTRIES_CONF=" + r.config }

func (r *registry) close() { _ = r.server.Close() }

func (r *registry) image(tag string) string { return r.address + "/os:" + tag }

// link makes the blobs of a layout known without a copy of them.
func (r *registry) link(layout string) error {
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := r.linkBlob(b, filepath.Base(b)); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) linkBlob(file, hex string) error {
	dir := filepath.Join(r.dir, "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(file, filepath.Join(dir, hex)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func (r *registry) push(tag string, img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if l, ok := l.(*fileLayer); ok {
			if err := r.linkBlob(l.file, l.Blob.Hex); err != nil {
				return err
			}
		}
	}
	ref, err := name.ParseReference(r.image(tag), name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, img)
}

// pull returns an image that was pushed before.
func (r *registry) pull(tag string) (v1.Image, error) {
	ref, err := name.ParseReference(r.image(tag), name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref)
}

// fromLayout finds the image with a tag in an OCI layout.
func fromLayout(dir, tag string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range manifest.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == tag {
			return index.Image(d.Digest)
		}
	}
	return nil, fmt.Errorf("%s has no image tagged %s", dir, tag)
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// derive adds a gzip layer to an image.
func derive(base v1.Image, layer func() ([]byte, error)) (v1.Image, error) {
	gzipped, err := layer()
	if err != nil {
		return nil, err
	}
	added, err := smallimage.NewLayer(gzipped, nil)
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, added)
}
