package ostree

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// ContainerImage is what a merge commit, ours or ostree-ext's, says of the
// image it was made from.
type ContainerImage struct {
	Commit         object.Checksum
	Base           object.Checksum // of an ostree-chunked image's own commit, else zero
	ManifestDigest string
	Manifest       []byte // canonical JSON, not the bytes of the digest
	Config         []byte
}

// ImageLayerID names a layer of an image.
type ImageLayerID struct {
	Digest string
	DiffID string
	Size   int64
}

// ErrNotContainer is wrapped by the error about a commit that was not made
// from a container image.
var ErrNotContainer = errors.New("the commit was not made from a container image")

// ContainerManifest reads a merge commit's image back.
func (r *Repo) ContainerManifest(commit object.Checksum) (*ContainerImage, error) {
	c, err := r.ReadCommit(commit)
	if err != nil {
		return nil, err
	}
	img := &ContainerImage{Commit: commit, Base: c.Parent}
	var ok bool
	if img.ManifestDigest, ok = c.Metadata.Text(keyManifestDigest); !ok {
		return nil, fmt.Errorf("commit %s: %w", commit, ErrNotContainer)
	}
	manifest, ok := c.Metadata.Text(keyManifest)
	if !ok {
		return nil, fault.New(fault.Corrupt, "", "commit %s: its metadata has no %s", commit, keyManifest)
	}
	img.Manifest = []byte(manifest)
	// Old versions of ostree-ext wrote the text null.
	if config, ok := c.Metadata.Text(keyConfig); ok && config != "null" {
		img.Config = []byte(config)
	}
	return img, nil
}

// Layers returns the image's layers in the manifest's order. DiffIDs are empty
// where the config has none.
func (img *ContainerImage) Layers() ([]ImageLayerID, error) {
	var m struct {
		Layers []struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"layers"`
	}
	var c struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		return nil, fault.New(fault.Corrupt, "", "commit %s: manifest: %w", img.Commit, err)
	}
	if len(img.Config) > 0 {
		if err := json.Unmarshal(img.Config, &c); err != nil {
			return nil, fault.New(fault.Corrupt, "", "commit %s: config: %w", img.Commit, err)
		}
	}
	layers := make([]ImageLayerID, len(m.Layers))
	for i, l := range m.Layers {
		layers[i] = ImageLayerID{Digest: l.Digest, Size: l.Size}
		if i < len(c.RootFS.DiffIDs) {
			layers[i].DiffID = c.RootFS.DiffIDs[i]
		}
	}
	return layers, nil
}

// The keys under which ostree-ext keeps, in a merge commit's detached metadata,
// an update that was found and not imported.
const (
	keyCachedDigest   = "ostree-ext.cached.manifest-digest"
	keyCachedManifest = "ostree-ext.cached.manifest"
	keyCachedConfig   = "ostree-ext.cached.config"
)

// CachedUpdate is an update that a check has found.
type CachedUpdate struct {
	ManifestDigest string
	Manifest       []byte // JSON
	Config         []byte // JSON
}

// CachedUpdate returns the update that was found for the image of a merge
// commit, nil if there is none.
func (r *Repo) CachedUpdate(commit object.Checksum) (*CachedUpdate, error) {
	d, err := r.ReadCommitMeta(commit)
	if err != nil {
		return nil, err
	}
	digest, ok := d.Text(keyCachedDigest)
	if !ok {
		return nil, nil
	}
	manifest, ok1 := d.Text(keyCachedManifest)
	config, ok2 := d.Text(keyCachedConfig)
	if !ok1 || !ok2 {
		return nil, fault.New(fault.Corrupt, "", "commit %s: its detached metadata has %s without manifest and config", commit, keyCachedDigest)
	}
	return &CachedUpdate{digest, []byte(manifest), []byte(config)}, nil
}

// SetCachedUpdate notes an update found for the image of a merge commit; nil
// takes the note away. Other detached metadata stays.
func (r *Repo) SetCachedUpdate(ctx context.Context, commit object.Checksum, u *CachedUpdate) error {
	d, err := r.ReadCommitMeta(commit)
	if err != nil {
		return err
	}
	old := d.Encode()
	for _, key := range []string{keyCachedDigest, keyCachedManifest, keyCachedConfig} {
		d.Delete(key)
	}
	if u != nil {
		manifest, err := canonicalJSON(u.Manifest)
		if err != nil {
			return fmt.Errorf("manifest of the update: %w", err)
		}
		config, err := canonicalJSON(u.Config)
		if err != nil {
			return fmt.Errorf("config of the update: %w", err)
		}
		d.Set(keyCachedConfig, object.Text(string(config)))
		d.Set(keyCachedManifest, object.Text(string(manifest)))
		d.Set(keyCachedDigest, object.Text(u.ManifestDigest))
	}
	if string(old) == string(d.Encode()) {
		return nil
	}
	txn, err := r.Txn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = txn.Abort() }()
	if err := txn.PutCommitMeta(commit, d); err != nil {
		return err
	}
	return txn.Commit()
}
