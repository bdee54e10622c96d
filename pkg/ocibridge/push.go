package ocibridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/blobinfocache/memory"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Upload is an image on this machine of which some blobs are in a registry only.
type Upload struct {
	Manifest []byte
	Config   v1.Descriptor
	Layers   []v1.Descriptor
	// Local opens a blob that is on this machine, and says how long it is. Another
	// one is fs.ErrNotExist.
	Local func(d digest.Digest) (io.ReadCloser, int64, error)
	// Origin names an image that has the other blobs.
	Origin Reference
}

// Push puts an image into a registry, byte for byte. Blobs of the origin that
// are in the same registry are mounted there; of another they are streamed. The
// commit point is the manifest, which comes last.
func Push(ctx context.Context, to Reference, u Upload, opt Options) error {
	if to.Transport != Registry || to.Digest() != "" {
		return fault.New(fault.Usage, "name a tag of a registry, such as registry.example/os:mine", "%s cannot be pushed to", to)
	}
	opt = opt.withDefaults()
	return classify(push(ctx, to, u, opt), "pushing "+to.String())
}

func push(ctx context.Context, to Reference, u Upload, opt Options) (err error) {
	iref, err := to.imageReference()
	if err != nil {
		return err
	}
	dest, err := iref.NewImageDestination(ctx, opt.system(to))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dest.Close()) }()
	p := &pusher{dest: dest, upload: u, known: memory.New(), origin: &originSource{ref: u.Origin, opt: opt}}
	defer p.origin.close()
	if err := p.locate(); err != nil {
		return err
	}
	for _, l := range append(u.Layers, u.Config) {
		if err := p.blob(ctx, l, l.Digest == u.Config.Digest); err != nil {
			return fmt.Errorf("blob %s: %w", l.Digest, err)
		}
	}
	if err := dest.PutManifest(ctx, u.Manifest, nil); err != nil {
		return err
	}
	return dest.Commit(ctx, nil)
}

type pusher struct {
	dest   types.ImageDestination
	upload Upload
	known  types.BlobInfoCache
	origin *originSource
}

// locate tells the registry's client in which repository the layers are, in the
// terms of go.podman.io/image (docker/cache.go).
func (p *pusher) locate() error {
	if p.upload.Origin.Transport != Registry {
		return nil
	}
	named, err := p.upload.Origin.named()
	if err != nil {
		return err
	}
	scope := types.BICTransportScope{Opaque: reference.Domain(named)}
	for _, l := range p.upload.Layers {
		p.known.RecordKnownLocation(docker.Transport, scope, l.Digest, types.BICLocationReference{Opaque: named.Name()})
	}
	return nil
}

func (p *pusher) blob(ctx context.Context, d v1.Descriptor, isConfig bool) error {
	info := types.BlobInfo{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
	there, _, err := p.dest.TryReusingBlob(ctx, info, p.known, false)
	if err != nil || there {
		return err
	}
	r, _, err := p.upload.Local(d.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		r, err = p.origin.blob(ctx, info)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := p.dest.PutBlob(ctx, r, info, p.known, isConfig)
	if err == nil && got.Digest != d.Digest {
		return fault.New(fault.Untrusted, "", "what came has the digest %s", got.Digest)
	}
	return err
}

// originSource opens an image for its blobs, when the first is asked for.
type originSource struct {
	ref Reference
	opt Options

	mu  sync.Mutex
	src types.ImageSource
}

func (o *originSource) blob(ctx context.Context, info types.BlobInfo) (io.ReadCloser, error) {
	src, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	r, _, err := src.GetBlob(ctx, info, none.NoCache)
	return r, err
}

func (o *originSource) open(ctx context.Context) (types.ImageSource, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.src != nil {
		return o.src, nil
	}
	iref, err := o.ref.imageReference()
	if err != nil {
		return nil, err
	}
	if o.src, err = iref.NewImageSource(ctx, o.opt.system(o.ref)); err != nil {
		o.src = nil
		return nil, fmt.Errorf("open %s, which has the layer: %w", o.ref, err)
	}
	return o.src, nil
}

func (o *originSource) close() {
	if o.src != nil {
		_ = o.src.Close() // nothing was written
	}
}

// withOrigin is an image of which some blobs are elsewhere.
type withOrigin struct {
	types.ImageSource
	origin *originSource
}

// GetBlob implements types.ImageSource.
func (w withOrigin) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	r, n, err := w.ImageSource.GetBlob(ctx, info, cache)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, n, err
	}
	r, err = w.origin.blob(ctx, info)
	return r, -1, err
}

// Close implements types.ImageSource.
func (w withOrigin) Close() error {
	w.origin.close()
	return w.ImageSource.Close()
}
