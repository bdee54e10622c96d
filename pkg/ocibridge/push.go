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
	"go.podman.io/image/v5/manifest"
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
	// Before, if not nil, is told of the layers that are not where the image goes,
	// before anything is written there; its error ends Push.
	Before func(missing []digest.Digest) error
}

// Push puts an image into a registry or the containers-storage of this machine,
// byte for byte. Blobs of the origin that are in the same registry are mounted
// there; of another they are streamed. The commit point is the manifest, which
// comes last, or in a storage the image's record.
func Push(ctx context.Context, to Reference, u Upload, opt Options) error {
	if to.Transport != Registry && to.Transport != ContainersStorage || to.Digest() != "" {
		return fault.New(fault.Usage, "name a tag of a registry, such as registry.example/os:mine, or a name for containers-storage", "%s cannot be pushed to", to)
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
	p := &pusher{to: to, dest: dest, upload: u, opt: opt, origin: &originSource{ref: u.Origin, opt: opt}}
	defer p.origin.close()
	missing, err := p.missing(ctx)
	if err != nil {
		return err
	}
	for _, l := range append(missing, u.Config) {
		if err := p.blob(ctx, l, l.Digest == u.Config.Digest); err != nil {
			return fmt.Errorf("blob %s: %w", l.Digest, err)
		}
	}
	if err := dest.PutManifest(ctx, u.Manifest, nil); err != nil {
		return err
	}
	return dest.Commit(ctx, unparsed{iref, u.Manifest})
}

// unparsed is the image as a storage wants to see it when it commits.
type unparsed struct {
	ref      types.ImageReference
	manifest []byte
}

// Reference implements types.UnparsedImage.
func (u unparsed) Reference() types.ImageReference { return u.ref }

// Manifest implements types.UnparsedImage.
func (u unparsed) Manifest(context.Context) ([]byte, string, error) {
	return u.manifest, manifest.GuessMIMEType(u.manifest), nil
}

// Signatures implements types.UnparsedImage.
func (u unparsed) Signatures(context.Context) ([][]byte, error) { return nil, nil }

type pusher struct {
	to     Reference
	dest   types.ImageDestination
	upload Upload
	opt    Options
	origin *originSource
}

// missing returns the layers that have to be sent; others are mounted or there.
func (p *pusher) missing(ctx context.Context) (list []v1.Descriptor, err error) {
	var digests []digest.Digest
	mounter, unable := newMounter(ctx, p.opt.system(p.to), p.to, p.upload.Origin)
	if unable != nil {
		p.opt.Logger.Debug("no layer is mounted", "from", p.upload.Origin, "error", unable)
	}
	for _, l := range p.upload.Layers {
		there, _, err := p.dest.TryReusingBlob(ctx, blobInfo(l), none.NoCache, false)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", l.Digest, err)
		}
		if !there && mounter != nil {
			// What cannot be mounted is sent.
			if there, err = mounter.mount(ctx, l.Digest); err != nil {
				p.opt.Logger.Debug("the layer is not mounted", "layer", l.Digest, "error", err)
			}
		}
		if !there {
			list, digests = append(list, l), append(digests, l.Digest)
		}
	}
	if p.upload.Before != nil {
		err = p.upload.Before(digests)
	}
	return list, err
}

func blobInfo(d v1.Descriptor) types.BlobInfo {
	return types.BlobInfo{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
}

func (p *pusher) blob(ctx context.Context, d v1.Descriptor, isConfig bool) error {
	info := blobInfo(d)
	wrong := fault.New(fault.Corrupt, "kedge fsck says what else is damaged", "it is damaged on this machine")
	r, _, err := p.upload.Local(d.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		wrong = fault.New(fault.Untrusted, "pull the image again, or tell those who run the registry", "%s sent something else", p.upload.Origin)
		r, err = p.origin.blob(ctx, info)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = p.dest.PutBlob(ctx, &checkedReader{r, d.Digest.Verifier(), wrong}, info, none.NoCache, isConfig)
	return err
}

// checkedReader ends with an error where it was not what a digest says.
type checkedReader struct {
	io.Reader
	verifier digest.Verifier
	wrong    error
}

func (c *checkedReader) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	_, _ = c.verifier.Write(b[:n]) // a hash takes everything
	if err == io.EOF && !c.verifier.Verified() {
		err = c.wrong
	}
	return n, err
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
