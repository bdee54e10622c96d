package host

import (
	"context"
	"fmt"
	"io"
	"os"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// importerVersion is written to commits as the version of their importer.
const importerVersion = "kedge-1"

// Import implements store. The commit point is that of ostree.WriteContainer.
func (s *ostreeStore) Import(ctx context.Context, src *ocibridge.Source, ref ocibridge.Reference, base string) (root string, err error) {
	if err := s.begin(); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			s.abandon(ctx, err)
		}
	}()
	state, err := s.state()
	if err != nil {
		return "", err
	}
	defer state.Close()
	im, err := s.repo.NewImport(ctx, ostree.ImportOptions{
		State: state, Speculative: s.speculative(), EncodeLayer: encodeForeign, Version: importerVersion, Now: s.cfg.Clock,
	})
	if err != nil {
		return "", err
	}
	defer s.cfg.closeQuietly(im)
	img, err := src.Import(ctx, layerStore{im})
	if err != nil {
		return "", err
	}
	s.cfg.Progress.Step(v1.TaskImporting, "Importing the image")
	c, err := container(img, im)
	if err != nil {
		return "", err
	}
	if err := checkEtc(c.Prepared.Tree, "usr/etc"); err != nil {
		return "", err
	}
	if err := checkKernel(c.Prepared.Tree); err != nil {
		return "", err
	}
	if _, err := s.checkComposefs(c.Prepared.Tree, im.OpenContent); err != nil {
		return "", err
	}
	if base == "" {
		c.ImageRef = ref.Image()
	} else if c.Parent, err = object.ParseChecksum(base); err != nil {
		return "", err
	}
	sum, err := im.WriteContainer(ctx, *c)
	if err != nil {
		return "", err
	}
	if im.Warning != nil {
		s.cfg.Log.Warn("after the import", "error", im.Warning)
	}
	return sum.String(), nil
}

// state opens kedge's own directory beside the repository.
func (s *ostreeStore) state() (*os.Root, error) {
	if err := s.Root().MkdirAll(stateDir, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", stateDir, err)
	}
	return s.Root().OpenRoot(stateDir)
}

// container puts an image into the words of package ostree.
func container(img *ocibridge.Image, im *ostree.Import) (*ostree.Container, error) {
	opts := ostree.PrepareOptions{Open: im.OpenContent}
	c := &ostree.Container{ManifestDigest: img.ManifestDigest, Manifest: img.Manifest, Config: img.Config}
	for _, l := range img.Layers {
		layer := ostree.ContainerLayer{Digest: l.Digest, DiffID: l.DiffID, Role: roles[l.Role], Entries: l.Layer}
		if l.Role == ocibridge.Derived {
			opts.Derived = true
			opts.Layers = append(opts.Layers, l.Layer)
		} else {
			for _, o := range l.Objects.Files {
				layer.Objects = append(layer.Objects, ostree.LayerObject{Checksum: o.Checksum, Inode: o.Inode, Unsorted: o.Unsorted})
			}
		}
		c.Layers = append(c.Layers, layer)
	}
	if b := img.OSTree; b != nil {
		opts.Base = b.Tree
		c.Base = &ostree.BaseCommit{Commit: b.CommitBytes, Tree: b.Tree}
		for _, l := range img.Layers {
			if l.Objects == nil {
				continue
			}
			for _, m := range l.Objects.Meta {
				c.Base.Meta = append(c.Base.Meta, ostree.MetaObject{Type: m.Type, Checksum: m.Checksum, Data: m.Data})
			}
		}
		if len(b.CommitMeta) > 0 {
			var err error
			if c.Base.Detached, err = object.DecodeDict(b.CommitMeta); err != nil {
				return nil, fmt.Errorf("read the detached metadata of the image's commit: %w", err)
			}
		}
	}
	var err error
	c.Prepared, err = ostree.Prepare(img.Tree, opts)
	return c, err
}

var roles = map[ocibridge.Role]ostree.LayerRole{
	ocibridge.Derived:      ostree.DerivedLayer,
	ocibridge.OSTreeCommit: ostree.CommitLayer,
	ocibridge.OSTreeChunk:  ostree.ChunkLayer,
}

// encodeForeign makes ocibridge's index of a layer that another program
// imported, so that it is not fetched again.
func encodeForeign(l *ostree.ForeignLayer) ([]byte, error) {
	x := &ocibridge.Index{DiffID: l.DiffID}
	for role, r := range roles {
		if r == l.Role {
			x.Role = role
		}
	}
	if x.Role == ocibridge.Derived {
		x.Layer = l.Entries
		return ocibridge.EncodeIndex(x), nil
	}
	x.Objects = &ocibridge.ObjectLayer{CommitData: l.Commit, CommitMeta: l.Detached}
	if l.Commit != nil {
		x.Objects.Commit = object.Sum(l.Commit)
	}
	for _, m := range l.Meta {
		x.Objects.Meta = append(x.Objects.Meta, ocibridge.MetaObject{Type: m.Type, Checksum: m.Checksum, Data: m.Data})
	}
	for _, o := range l.Objects {
		x.Objects.Files = append(x.Objects.Files, ocibridge.FileObject{Checksum: o.Checksum, Inode: o.Inode})
	}
	return ocibridge.EncodeIndex(x), nil
}

// layerStore is an ostree.Import as ocibridge wants it.
type layerStore struct{ *ostree.Import }

// Begin implements ocibridge.Store.
func (s layerStore) Begin(diffID string) (ocibridge.LayerWriter, error) {
	w, err := s.Import.Begin(diffID)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// OpenContent implements ocibridge.Store.
func (s layerStore) OpenContent(d fstree.Digest) (io.ReadCloser, error) {
	return s.Import.OpenContent(d)
}

// HasLayer implements store. It opens nothing for writing.
func (s *ostreeStore) HasLayer(l imageLayer) bool {
	_, err := s.repo.ResolveRev(ostree.LayerRef(l.digest))
	return err == nil
}
