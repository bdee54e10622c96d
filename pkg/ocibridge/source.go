package ocibridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Source is an image that has passed the policy and the gate. Its fields do not
// change. Close frees its connections.
type Source struct {
	Reference      Reference
	ManifestDigest string // of the image's own manifest, "sha256:…"
	ListDigest     string // of the manifest list that it was chosen from, or ""
	Manifest       []byte
	Config         []byte
	Layers         []LayerInfo
	Labels         map[string]string
	Annotations    map[string]string // of the manifest
	Architecture   string
	Version        string    // label or annotation org.opencontainers.image.version, or ""
	Created        time.Time // annotation, or the config's field, or zero

	opt   Options
	src   types.ImageSource
	blobs *blobs
	fetch []types.BlobInfo // per layer, what to ask the transport for
}

// openStalls is how many times Retry.Stall Open may take: redirects, tokens and
// a registry that asks to come back later add up.
const openStalls = 3

// openAttempts is how many times Open asks a registry at most, with the waits of
// Retry in between: fewer than for a transfer that is under way, since nobody
// wants to wait half a minute to learn that a name is wrong.
const openAttempts = 4

// Open resolves a reference to an image: it reads the manifest, chooses the
// platform from a list, has policy.json decide, and reads the config. No layer
// is requested. A registry that cannot be reached or fails is asked again.
func Open(ctx context.Context, ref Reference, opt Options) (*Source, error) {
	opt = opt.withDefaults()
	asked := ctx
	if ref.Transport == Registry {
		// go.podman.io/image waits for an answer for ever.
		limited, cancel := context.WithTimeout(ctx, openStalls*opt.Retry.Stall)
		defer cancel()
		ctx = limited
	}
	iref, err := ref.imageReference()
	if err != nil {
		return nil, err
	}
	sys := opt.system(ref)
	doing := "opening image " + ref.String()
	var s *Source
	var mediaType string
	for failed := 1; ; failed++ {
		if s, mediaType, err = connect(ctx, ref, iref, sys, opt); err == nil {
			break
		}
		err = classify(err, doing)
		if ref.Transport != Registry || failed == openAttempts || !passes(err) {
			return nil, err
		}
		if !opt.Retry.wait(ctx, failed) {
			if asked.Err() != nil {
				return nil, context.Cause(asked)
			}
			return nil, err
		}
		opt.Logger.Info("the registry failed, asking again", "image", ref, "attempt", failed, "error", err)
	}
	if err := s.readConfig(ctx, mediaType); err != nil {
		return nil, errors.Join(classify(err, doing), s.Close())
	}
	return s, nil
}

// connect reads the manifest of an image, has the policy decide, and returns the
// manifest's media type.
func connect(ctx context.Context, ref Reference, iref types.ImageReference, sys *types.SystemContext, opt Options) (*Source, string, error) {
	src, err := iref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, "", err
	}
	if opt.Origin != nil {
		src = withOrigin{src, &originSource{ref: *opt.Origin, opt: opt}}
	}
	s := &Source{Reference: ref, opt: opt, src: src, blobs: &blobs{src: src, retry: opt.Retry, log: opt.Logger}}
	if ref.Transport != Registry {
		s.blobs.retry.Attempts = 1 // a local file does not get better
	} else {
		s.blobs.resume, err = newResumer(sys, ref)
	}
	mediaType := ""
	if err == nil {
		mediaType, err = s.readManifest(ctx, sys)
	}
	if err != nil {
		return nil, "", errors.Join(err, s.Close())
	}
	return s, mediaType, nil
}

// Close frees the source's connections.
func (s *Source) Close() error {
	if s.blobs.resume != nil {
		s.blobs.resume.close()
	}
	return s.src.Close()
}

// readManifest reads the manifest and evaluates the policy, and returns the
// manifest's media type.
func (s *Source) readManifest(ctx context.Context, sys *types.SystemContext) (string, error) {
	top := image.UnparsedInstance(s.src, nil)
	data, mediaType, err := readUnparsed(ctx, top)
	if err != nil {
		return "", err
	}
	candidates := []types.UnparsedImage{top}
	if manifest.MIMETypeIsMultiImage(mediaType) {
		instance, err := chooseInstance(data, mediaType, sys)
		if err != nil {
			return "", err
		}
		s.ListDigest = digest.FromBytes(data).String()
		unparsed := image.UnparsedInstance(s.src, &instance)
		candidates = append(candidates, unparsed)
		if data, mediaType, err = readUnparsed(ctx, unparsed); err != nil {
			return "", err
		}
	}
	if err := checkPolicy(ctx, sys, s.Reference, candidates...); err != nil {
		return "", err
	}
	s.Manifest = data
	s.ManifestDigest = digest.FromBytes(data).String()
	return mediaType, nil
}

// readUnparsed reads a manifest; one whose digest is not the one asked for is
// an error.
func readUnparsed(ctx context.Context, u *image.UnparsedImage) (data []byte, mediaType string, err error) {
	data, mediaType, err = u.Manifest(ctx)
	if err != nil {
		if strings.Contains(err.Error(), "does not match provided manifest digest") {
			return nil, "", fault.New(fault.Untrusted, tamperedHint, "reading the manifest: %w", err)
		}
		return nil, "", err
	}
	if mediaType == "" || mediaType == "text/plain" || mediaType == "application/octet-stream" || mediaType == "application/json" {
		mediaType = manifest.GuessMIMEType(data)
	}
	return data, mediaType, nil
}

func chooseInstance(data []byte, mediaType string, sys *types.SystemContext) (digest.Digest, error) {
	list, err := manifest.ListFromBlob(data, mediaType)
	if err != nil {
		return "", fault.New(fault.Corrupt, rebuildHint, "reading the manifest list: %w", err)
	}
	d, err := list.ChooseInstance(sys)
	if err != nil {
		return "", fault.New(fault.Conflict, "use an image that is built for "+sys.ArchitectureChoice, "the image is not available for this machine: %w", err)
	}
	return d, nil
}

// readConfig reads the config, applies the gate and fills in the fields.
func (s *Source) readConfig(ctx context.Context, mediaType string) error {
	m, err := parseManifest(s.Manifest, mediaType)
	if err != nil {
		return err
	}
	if s.Config, err = s.readBlob(ctx, m.Config); err != nil {
		return err
	}
	c, err := parseConfig(s.Config)
	if err != nil {
		return err
	}
	if !s.opt.AllowPlatform {
		if err := checkPlatform(c, s.opt.OS, s.opt.Architecture); err != nil {
			return err
		}
	}
	s.Labels, s.Annotations = c.Config.Labels, m.Annotations
	if !s.opt.AllowUnbootable {
		if err := checkBootable(s.Labels); err != nil {
			return err
		}
	}
	if s.Layers, err = layerInfos(m, c); err != nil {
		return err
	}
	s.Architecture = c.Architecture
	s.Created = created(m, c)
	if s.Version = s.Labels[labelVersion]; s.Version == "" {
		s.Version = s.Annotations[labelVersion]
	}
	return s.chooseBlobs(ctx, m)
}

// readBlob reads a small blob into memory and checks its digest.
func (s *Source) readBlob(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fault.New(fault.Corrupt, rebuildHint, "the image's config has %d bytes, above the limit of %d", d.Size, maxManifest)
	}
	r := s.blobs.open(ctx, types.BlobInfo{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType})
	defer r.hangUp()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("reading the image's config: %w", err)
	}
	if got := d.Digest.Algorithm().FromBytes(data); got != d.Digest {
		return nil, fault.New(fault.Untrusted, tamperedHint, "the image's config has the digest %s, the manifest says %s", got, d.Digest)
	}
	return data, nil
}

// chooseBlobs decides what to fetch for each layer. A transport that keeps
// layers in another form than the manifest says (containers-storage has them
// uncompressed) tells which; what it gives is checked against the diffIDs.
func (s *Source) chooseBlobs(ctx context.Context, m *imageManifest) error {
	other, err := s.src.LayerInfosForCopy(ctx, nil)
	if err != nil {
		return fmt.Errorf("listing the layers: %w", err)
	}
	if other != nil && len(other) != len(m.Layers) {
		return fault.New(fault.Corrupt, rebuildHint, "the storage has %d layers of the image, its manifest %d", len(other), len(m.Layers))
	}
	s.fetch = make([]types.BlobInfo, len(m.Layers))
	for i, d := range m.Layers {
		s.fetch[i] = types.BlobInfo{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType, URLs: d.URLs}
		if other != nil {
			s.fetch[i] = other[i]
		}
	}
	return nil
}
