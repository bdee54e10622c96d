package host

import (
	"encoding/json"
	"fmt"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// imageInfo is an image as its manifest and config describe it.
type imageInfo struct {
	digest   string // of the manifest, "sha256:…"
	version  string
	created  time.Time
	arch     string
	layers   []imageLayer
	manifest []byte
	config   []byte
	labels   map[string]string
}

// imageLayer is a layer as the manifest and the config name it.
type imageLayer struct {
	digest    string // of the blob, "sha256:…"
	diffID    string // of the uncompressed tar; "" where the config has too few
	mediaType string
	size      int64 // of the blob
}

// parseImage reads a stored manifest and config.
func parseImage(digest string, manifest, config []byte) (*imageInfo, error) {
	var m ociv1.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("read the stored manifest of %s: %w", digest, err)
	}
	var c ociv1.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("read the stored config of %s: %w", digest, err)
	}
	i := &imageInfo{
		digest: digest, manifest: manifest, config: config, arch: c.Architecture,
		version: c.Config.Labels[ociv1.AnnotationVersion], labels: c.Config.Labels,
	}
	for n, d := range m.Layers {
		l := imageLayer{digest: d.Digest.String(), mediaType: d.MediaType, size: d.Size}
		if n < len(c.RootFS.DiffIDs) {
			l.diffID = c.RootFS.DiffIDs[n].String()
		}
		i.layers = append(i.layers, l)
	}
	if i.version == "" {
		i.version = m.Annotations[ociv1.AnnotationVersion]
	}
	// The order in which bootc looks for the time of the build.
	if t, err := time.Parse(time.RFC3339Nano, c.Config.Labels[ociv1.AnnotationCreated]); err == nil {
		i.created = t
	} else if c.Created != nil {
		i.created = *c.Created
	}
	return i, nil
}

// sourceInfo describes an image that was opened and not imported.
func sourceInfo(s *ocibridge.Source) (*imageInfo, error) {
	return parseImage(s.ManifestDigest, s.Manifest, s.Config)
}

// size returns the compressed size of all layers.
func (i *imageInfo) size() int64 {
	var n int64
	for _, l := range i.layers {
		n += l.size
	}
	return n
}

func (i *imageInfo) status(ref ocibridge.Reference) *v1.ImageStatus {
	s := &v1.ImageStatus{Image: apiReference(ref), ImageDigest: i.digest, Architecture: i.arch}
	if i.version != "" {
		s.Version = &i.version
	}
	if !i.created.IsZero() {
		t := i.created.UTC()
		s.Timestamp = &t
	}
	return s
}
