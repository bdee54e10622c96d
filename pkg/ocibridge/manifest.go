package ocibridge

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Role says what a layer holds.
type Role uint8

const (
	// Derived layers are ordinary tars of a file system's changes.
	Derived Role = iota
	// OSTreeCommit layers hold a commit, its directories and some content.
	OSTreeCommit
	// OSTreeChunk layers hold content objects of the commit layer.
	OSTreeChunk
)

func (r Role) String() string {
	return [...]string{"derived", "ostree-commit", "ostree-chunk"}[r]
}

// LayerInfo is what manifest and config say of a layer.
type LayerInfo struct {
	Digest     string // of the blob, "sha256:…"
	Size       int64  // of the blob, bytes
	MediaType  string
	DiffID     string // sha256 of the tar, "sha256:…"
	Role       Role
	Components []string // chunk layers: the packages in it, where the image says so
}

// The labels that matter to bootable images (bootc, ostree-ext).
const (
	labelBootc       = "containers.bootc"
	labelBootable    = "ostree.bootable"
	labelFinalDiffID = "ostree.final-diffid"
	labelCommit      = "ostree.commit"
	labelVersion     = "org.opencontainers.image.version"
	labelCreated     = "org.opencontainers.image.created"
	keyComponents    = "ostree.components"
)

// imageManifest is the part of an OCI image manifest, or a Docker v2 schema 2
// manifest, that both spell the same way.
type imageManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	Config        v1.Descriptor     `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Annotations   map[string]string `json:"annotations"`
}

func parseManifest(data []byte, mediaType string) (*imageManifest, error) {
	switch mediaType {
	case v1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
	case manifest.DockerV2Schema1MediaType, manifest.DockerV2Schema1SignedMediaType:
		return nil, fault.New(fault.Conflict, "push the image again with a current tool", "the manifest has Docker's schema 1, which has no layer digests to trust")
	default:
		return nil, fault.New(fault.Conflict, "use an image that `podman build` or `docker build` made", "manifest of type %q is not an image's", mediaType)
	}
	var m imageManifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fault.New(fault.Corrupt, rebuildHint, "reading the manifest: %w", err)
	}
	switch m.Config.MediaType {
	case v1.MediaTypeImageConfig, manifest.DockerV2Schema2ConfigMediaType, "application/octet-stream":
	default:
		return nil, fault.New(fault.Conflict, "use an image that `podman build` or `docker build` made", "the manifest is that of an artifact of type %q, not of an image", m.Config.MediaType)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := d.Digest.Validate(); err != nil {
			return nil, fault.New(fault.Corrupt, rebuildHint, "the manifest has a malformed digest %.80q: %w", d.Digest, err)
		}
		if d.Digest.Algorithm() != digest.SHA256 && d.Digest.Algorithm() != digest.SHA512 || d.Size < 0 || d.Size > maxBlob {
			return nil, fault.New(fault.Corrupt, rebuildHint, "the manifest's digest %s of %d bytes cannot be right", d.Digest, d.Size)
		}
	}
	return &m, nil
}

// layerMediaTypes are the layers that can be read, whatever their compression.
// "nondistributable" and "foreign" ones are fetched like others.
func readableLayer(mediaType string) bool {
	base, suffix, _ := strings.Cut(mediaType, "+")
	switch base {
	case "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar":
		return suffix == "" || suffix == "gzip" || suffix == "zstd"
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return suffix == ""
	}
	return false
}

// layerInfos joins the manifest's layers with the config's diffIDs and finds
// the ostree layers (label ostree.final-diffid names the last of them).
func layerInfos(m *imageManifest, c *v1.Image) ([]LayerInfo, error) {
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return nil, fault.New(fault.Corrupt, rebuildHint, "the manifest has %d layers, its config %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	infos := make([]LayerInfo, len(m.Layers))
	for i, d := range m.Layers {
		diffID := c.RootFS.DiffIDs[i]
		if err := diffID.Validate(); err != nil || diffID.Algorithm() != digest.SHA256 {
			return nil, fault.New(fault.Corrupt, rebuildHint, "the config has a malformed diffID %.80q", diffID)
		}
		if !readableLayer(d.MediaType) {
			return nil, fault.New(fault.Conflict, "push the image with gzip, zstd or no compression, and not encrypted", "layer %d has the type %q, which kedge does not read", i+1, d.MediaType)
		}
		infos[i] = LayerInfo{Digest: d.Digest.String(), Size: d.Size, MediaType: d.MediaType, DiffID: diffID.String()}
		if s := d.Annotations[keyComponents]; s != "" {
			infos[i].Components = strings.Split(s, ",")
		}
	}
	final := c.Config.Labels[labelFinalDiffID]
	if final == "" {
		return infos, nil
	}
	last := slices.IndexFunc(infos, func(l LayerInfo) bool { return l.DiffID == final })
	if last < 0 {
		return nil, fault.New(fault.Corrupt, rebuildHint, "label %s=%s names no layer of the image", labelFinalDiffID, final)
	}
	infos[0].Role = OSTreeCommit
	for i := 1; i <= last; i++ {
		infos[i].Role = OSTreeChunk
	}
	return infos, nil
}

func parseConfig(data []byte) (*v1.Image, error) {
	var c v1.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fault.New(fault.Corrupt, rebuildHint, "reading the image's config: %w", err)
	}
	return &c, nil
}

// checkBootable refuses an image that no operating system boots from.
func checkBootable(labels map[string]string) error {
	for _, l := range []string{labelBootc, labelBootable} {
		if _, ok := labels[l]; ok {
			return nil
		}
	}
	return fault.New(fault.Conflict, fmt.Sprintf("use a bootable image; if you build this one, add LABEL %s=1 to its Containerfile", labelBootc),
		"the image has neither the label %s nor %s: it is not an operating system", labelBootc, labelBootable)
}

// checkPlatform refuses an image of another architecture.
func checkPlatform(c *v1.Image, os, arch string) error {
	if c.OS != "" && c.OS != os {
		return fault.New(fault.Conflict, "use an image for Linux", "the image is for %s", c.OS)
	}
	if c.Architecture != arch {
		return fault.New(fault.Conflict, "use an image that is built for "+arch, "the image is for %q, this machine is %s", c.Architecture, arch)
	}
	return nil
}

// created returns when the image was made: the manifest's annotation, else the
// config's field, else the zero time.
func created(m *imageManifest, c *v1.Image) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, m.Annotations[labelCreated]); err == nil {
		return t
	}
	if c.Created != nil {
		return *c.Created
	}
	return time.Time{}
}
