package layering

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Labels of a derived image's config.
const (
	LabelBase    = "io.kedge.base"    // digest of the base image's manifest
	LabelRequest = "io.kedge.request" // Request as JSON, without the paths of files
	LabelLock    = "io.kedge.lock"    // Lock as JSON
	LabelFormat  = "io.kedge.format"  // Format
	LabelSecrets = "io.kedge.secrets" // Layer.Secrets as JSON, where there are any
)

// Format is the version of how layers are made; another one makes another
// layer of the same lock.
const Format = "2"

// BaseImage is what a registry gave for the base.
type BaseImage struct {
	Digest   string // of the manifest, "sha256:…"
	Manifest []byte // a store may have other bytes of the same JSON
	Config   []byte
}

type derivedBytes struct{ manifest, config []byte }

func derive(base BaseImage, req Request, lock *Lock, layer *Layer) (*derivedBytes, error) {
	var m v1.Manifest
	if err := json.Unmarshal(base.Manifest, &m); err != nil {
		return nil, fault.New(fault.Corrupt, "", "read the base image's manifest: %w", err)
	}
	// What kedge does not know of a config (Docker's fields) stays in it.
	var config map[string]json.RawMessage
	var c v1.Image
	if err := errors.Join(json.Unmarshal(base.Config, &config), json.Unmarshal(base.Config, &c)); err != nil {
		return nil, fault.New(fault.Corrupt, "", "read the base image's config: %w", err)
	}
	labels := make(map[string]string)
	maps.Copy(labels, c.Config.Labels)
	labels[LabelBase], labels[LabelFormat] = base.Digest, Format
	req.Files, req.Replace = nil, slices.Clone(req.Replace)
	for i := range req.Replace {
		req.Replace[i].File = ""
	}
	values := map[string]any{LabelRequest: req, LabelLock: lock}
	if len(layer.Secrets) > 0 {
		values[LabelSecrets] = layer.Secrets
	}
	for key, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		labels[key] = string(b)
	}
	c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.Digest(layer.DiffID))
	c.History = append(c.History, v1.History{Created: created(c.Created), CreatedBy: "kedge pkg: " + describe(lock), Comment: lock.Engine})
	if err := setFields(config, map[string]any{"rootfs": c.RootFS, "history": c.History}); err != nil {
		return nil, err
	}
	var runtime map[string]json.RawMessage
	if raw, ok := config["config"]; ok {
		if err := json.Unmarshal(raw, &runtime); err != nil {
			return nil, fault.New(fault.Corrupt, "", "read the base image's config: %w", err)
		}
	}
	if runtime == nil {
		runtime = make(map[string]json.RawMessage)
	}
	if err := setFields(runtime, map[string]any{"Labels": labels}); err != nil {
		return nil, err
	}
	if err := setFields(config, map[string]any{"config": runtime}); err != nil {
		return nil, err
	}
	out := &derivedBytes{}
	var err error
	if out.config, err = canonical(config); err != nil {
		return nil, err
	}
	for i := range m.Layers {
		m.Layers[i].MediaType = ociLayerType(m.Layers[i].MediaType)
	}
	m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.Digest(layer.DiffID), Size: layer.Size})
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(out.config), Size: int64(len(out.config))}
	out.manifest, err = json.Marshal(m)
	return out, err
}

// canonical encodes JSON with every object's keys in order, however the base
// image has them: stores keep the meaning of a config and not its bytes.
func canonical(obj any) ([]byte, error) {
	b, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	in := json.NewDecoder(bytes.NewReader(b))
	in.UseNumber()
	var any any
	if err := in.Decode(&any); err != nil {
		return nil, err
	}
	return json.Marshal(any)
}

func created(t *time.Time) *time.Time {
	if t == nil {
		zero := time.Unix(0, 0).UTC()
		return &zero
	}
	return t
}

// describe is the lock in a line, as it stands in the image's history.
func describe(lock *Lock) string {
	var words []string
	for _, p := range lock.Install {
		if p.Requested {
			words = append(words, "add "+p.Name)
		}
	}
	for _, p := range lock.Remove {
		words = append(words, "remove "+p.Name)
	}
	if lock.Initramfs != nil {
		words = append(words, "make the initramfs")
	}
	return strings.Join(words, ", ")
}

func setFields(obj map[string]json.RawMessage, fields map[string]any) error {
	for key, v := range fields {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		obj[key] = b
	}
	return nil
}

// ociLayerType turns Docker's media types into OCI's; a manifest has one kind.
func ociLayerType(t string) string {
	switch t {
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return v1.MediaTypeImageLayerGzip
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return v1.MediaTypeImageLayerZstd
	case "application/vnd.docker.image.rootfs.diff.tar":
		return v1.MediaTypeImageLayer
	}
	return t
}
