package ostree

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Keys of a merge commit's metadata, as ostree-ext writes and reads them.
const (
	keyManifestDigest  = "ostree.manifest-digest"
	keyManifest        = "ostree.manifest"
	keyConfig          = "ostree.container.image-config"
	keyImporterVersion = "ostree.importer.version"
)

// LayerRole says what a layer of an image is.
type LayerRole uint8

// The roles. A plain image has derived layers only; an ostree-chunked one a
// commit layer, then chunks, then derived layers.
const (
	DerivedLayer LayerRole = iota
	CommitLayer
	ChunkLayer
)

// ContainerLayer is a layer of the image that WriteContainer writes.
type ContainerLayer struct {
	Digest string // of the blob, "sha256:…"; names the layer's ref
	DiffID string
	Role   LayerRole
	// Entries is what a derived layer says. WriteContainer lets go of it when
	// it needs it no more.
	Entries *fstree.Layer
	// Objects are the file objects of a commit or chunk layer: what each is,
	// and the checksum by which the layer names it.
	Objects []LayerObject
}

// LayerObject is a file object of an ostree-chunked layer.
type LayerObject struct {
	Checksum object.Checksum
	Inode    *fstree.Inode
	// Unsorted says that Checksum was made with the xattrs in another order
	// than that of their names, as old versions of libostree did. Such an
	// object is kept under its name, unverified.
	Unsorted bool
}

// MetaObject is a dirtree or dirmeta.
type MetaObject struct {
	Type     object.Type
	Checksum object.Checksum
	Data     []byte
}

// BaseCommit is the commit that an ostree-chunked image carries.
type BaseCommit struct {
	Commit   []byte       // the commit object
	Detached object.Dict  // its .commitmeta, may be empty
	Meta     []MetaObject // its dirtrees and dirmetas
	Tree     *fstree.Tree // its tree, as the commit has it
}

// Container is an image whose layers an Import has taken in.
type Container struct {
	// ImageRef is ostree-ext's spelling of the reference, "docker://…"; it
	// names the image's ref. Empty writes none: the commit is then kept by
	// whoever refers to it.
	ImageRef       string
	ManifestDigest string
	Manifest       []byte
	Config         []byte
	Layers         []ContainerLayer
	// Prepared is the merged tree.
	Prepared *Prepared
	// Base is the base commit of an ostree-chunked image, else nil.
	Base *BaseCommit
	// Refs are set with the image's, to the merge commit.
	Refs []string
	// Parent is the merge commit's parent where that is not Base: the merge
	// commit of the image that this one was derived from.
	Parent object.Checksum
}

// WriteContainer writes the image's commits and refs and returns the merge
// commit. Order: objects, the transaction's sync, refs (the commit point), then
// the layers' indexes. If only the indexes cannot be saved the import has
// succeeded, Warning says so, and the layers are read back from the repository
// or fetched again next time. Afterwards the import can only read contents and
// be closed.
func (im *Import) WriteContainer(ctx context.Context, c Container) (object.Checksum, error) {
	commit, err := im.writeContainer(ctx, &c)
	if err != nil {
		im.failed(err)
		return commit, fmt.Errorf("write image %s to the repository: %w", c.ManifestDigest, err)
	}
	return commit, nil
}

func (im *Import) writeContainer(ctx context.Context, c *Container) (merge object.Checksum, err error) {
	metadata, created, err := im.mergeMetadata(c)
	if err != nil {
		return merge, err
	}
	trees, err := layerTrees(c)
	if err != nil {
		return merge, err
	}
	set := newObjectSet()
	set.wantTree(c.Prepared.Tree, nil)
	for _, t := range trees {
		if t != nil {
			set.wantTree(t.tree, c.Prepared.Tree)
		}
	}
	for i := range c.Layers {
		for _, o := range c.Layers[i].Objects {
			if o.Inode.IsRegular() && !o.Unsorted {
				set.want(o.Inode)
			}
		}
	}
	if err := im.resolve(ctx, set); err != nil {
		return merge, err
	}
	txn, err := im.repo.newTxn(ctx, func() (*staging, error) { return im.stage.objects, nil })
	if err != nil {
		return merge, err
	}
	defer func() { _ = txn.Abort() }()
	if err := im.materialise(ctx, txn, set); err != nil {
		return merge, err
	}
	im.present = nil // the transaction's own is newer
	set.index()
	txn.files = set.has
	for i := range c.Layers {
		if err := im.writeObjects(txn, set, &c.Layers[i]); err != nil {
			return merge, err
		}
	}
	im.settle(set)
	base, err := im.writeBase(txn, c.Base)
	if err != nil {
		return merge, err
	}
	m := object.Commit{Metadata: metadata, Parent: base, Time: created}
	if !c.Parent.IsZero() {
		m.Parent = c.Parent
	}
	commits := make([]object.Checksum, len(c.Layers))
	err = parallel(ctx, len(c.Layers)+1, func(i int) (err error) {
		w := newDirWriter(txn, set)
		if i == 0 {
			return c.mergedTree(w, &m)
		}
		commits[i-1], err = im.writeLayer(w, &c.Layers[i-1], trees[i-1], base)
		return err
	})
	if err != nil {
		return merge, err
	}
	for i := range c.Layers {
		if err := txn.SetRef(LayerRef(c.Layers[i].Digest), commits[i]); err != nil {
			return merge, err
		}
	}
	if merge, err = txn.PutCommit(&m); err != nil {
		return merge, err
	}
	refs := c.Refs
	if c.ImageRef != "" {
		refs = append(slices.Clone(refs), ImageRef(c.ImageRef))
	}
	for _, ref := range refs {
		if err := txn.SetRef(ref, merge); err != nil {
			return merge, err
		}
	}
	index, err := im.indexes(set, c.Layers, trees, commits)
	defer index.abort()
	if err != nil {
		return merge, err
	}
	if err := txn.Commit(); err != nil {
		return merge, err
	}
	im.repo.remember(set)
	im.Warning = errors.Join(index.commit(), im.stage.clear())
	return merge, nil
}

// mergedTree writes the merged tree and names it in its commit.
func (c *Container) mergedTree(w *dirWriter, m *object.Commit) (err error) {
	if c.Prepared.unchanged {
		own, err := object.DecodeCommit(c.Base.Commit)
		if err != nil {
			return err
		}
		m.Tree, m.Meta = own.Tree, own.Meta
		return nil
	}
	m.Tree, m.Meta, err = w.write(c.Prepared.Tree.Root)
	return err
}

// layerTrees makes the trees of the derived layers' commits.
func layerTrees(c *Container) ([]*layerTree, error) {
	trees := make([]*layerTree, len(c.Layers))
	for i := range c.Layers {
		l := &c.Layers[i]
		if l.Role != DerivedLayer {
			continue
		}
		t, err := c.Prepared.layerTree(l.Entries, func(path string) *fstree.Inode { return lowerFile(c, i, path) })
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		trees[i] = t
	}
	for i := range c.Layers {
		c.Layers[i].Entries = nil
	}
	return trees, labelsFailed(c.Prepared.Labels)
}

// lowerFile finds what a hard link of layer i refers to in the layers below.
// Hardly any image has one, so that the merge is simply done again.
func lowerFile(c *Container, i int, path string) *fstree.Inode {
	t := fstree.New()
	if c.Base != nil {
		t = c.Base.Tree.Clone()
		if usr := t.Root.Lookup("usr"); usr != nil && usr.Lookup("etc") != nil {
			t.Root.Set("etc", usr.Lookup("etc"))
			usr.Remove("etc")
		}
	}
	for k := range i {
		if c.Layers[k].Role != DerivedLayer {
			continue
		}
		if err := t.Apply(c.Layers[k].Entries); err != nil {
			return nil
		}
	}
	if n := t.Lookup(path); n != nil && !n.IsDir() {
		return n
	}
	return nil
}

const damagedHint = "the image is damaged; rebuild and push it again"

// writeObjects writes those objects of an ostree layer that materialise did
// not, and compares the checksums by which the layer names its objects with
// what they are.
func (im *Import) writeObjects(txn *Txn, set *objectSet, l *ContainerLayer) error {
	for _, o := range l.Objects {
		var got object.Checksum
		var err error
		switch {
		case o.Unsorted:
			got, err = o.Checksum, im.writeUnsorted(txn, &o)
		case o.Inode.IsSymlink():
			got, err = txn.PutFile(o.Inode, nil)
		default:
			got = set.checksum(o.Inode)
		}
		if err != nil {
			return err
		}
		if got != o.Checksum {
			return fault.New(fault.Corrupt, damagedHint, "layer %s: the object named %s is %s", l.Digest, o.Checksum, got)
		}
	}
	return nil
}

// writeUnsorted writes an object whose checksum cannot be computed. Its layer's
// diffID vouches for it.
func (im *Import) writeUnsorted(txn *Txn, o *LayerObject) error {
	if ok, err := txn.HasFile(o.Checksum); ok || err != nil {
		return err
	}
	r, err := im.OpenContent(contentOf(o.Inode))
	if err != nil {
		return err
	}
	defer r.Close()
	f, ok := r.(*os.File)
	if !ok || im.repo.mode == Archive {
		return fault.New(fault.Conflict, "have the image built again with libostree 2024.10 or newer",
			"object %s was made with unsorted xattrs, which this repository cannot take in", o.Checksum)
	}
	return txn.copyFile(f, o.Inode, o.Checksum)
}

// writeBase writes an ostree-chunked image's own commit as it came.
func (im *Import) writeBase(txn *Txn, b *BaseCommit) (object.Checksum, error) {
	if b == nil {
		return object.Checksum{}, nil
	}
	c, err := object.DecodeCommit(b.Commit)
	if err != nil {
		return object.Checksum{}, fault.New(fault.Corrupt, damagedHint, "the image's base commit: %w", err)
	}
	missing := map[object.Checksum]bool{c.Tree: true, c.Meta: true}
	for _, m := range b.Meta {
		got, err := txn.PutMeta(m.Type, m.Data)
		if err != nil {
			return got, err
		}
		if got != m.Checksum {
			return got, fault.New(fault.Corrupt, damagedHint, "the object named %s.%s is %s", m.Checksum, m.Type, got)
		}
		delete(missing, got)
	}
	for sum := range missing {
		return sum, fault.New(fault.Corrupt, damagedHint, "the image's base commit names the object %s, which its layers do not have", sum)
	}
	commit, err := txn.PutMeta(object.TypeCommit, b.Commit)
	if err == nil && len(b.Detached) > 0 {
		err = txn.PutCommitMeta(commit, b.Detached)
	}
	return commit, err
}

// writeLayer writes the commit that a layer's ref names.
func (im *Import) writeLayer(w *dirWriter, l *ContainerLayer, tree *layerTree, base object.Checksum) (object.Checksum, error) {
	var commit object.Commit
	var err error
	switch l.Role {
	case CommitLayer:
		return base, nil
	case ChunkLayer:
		// A flat directory of objects, each under its checksum, without
		// anything else (ostree-ext, tar/import.rs).
		files := make([]object.FileEntry, len(l.Objects))
		for i, o := range l.Objects {
			files[i] = object.FileEntry{Name: o.Checksum.String(), Checksum: o.Checksum}
		}
		slices.SortFunc(files, func(a, b object.FileEntry) int { return a.Checksum.Compare(b.Checksum) })
		if commit.Tree, err = w.txn.PutMeta(object.TypeDirtree, object.EncodeDirtree(files, nil)); err == nil {
			commit.Meta, err = w.txn.PutMeta(object.TypeDirmeta, object.EncodeDirmeta(0, 0, unix.S_IFDIR|0o755, nil))
		}
	default:
		// ostree-ext stamps its layer commits with the time of the import;
		// without it a layer is the same commit on every host.
		commit.Metadata = object.Dict{{Key: keyImporterVersion, Value: object.Text(im.opts.Version)}}
		commit.Tree, commit.Meta, err = w.write(tree.tree.Root)
	}
	if err != nil {
		return object.Checksum{}, err
	}
	if old, ok := im.sameLayer(LayerRef(l.Digest), &commit); ok {
		return old, nil
	}
	return w.txn.PutCommit(&commit)
}

// sameLayer returns the commit that a layer's ref names, if it has the same
// content: ostree-ext's then stays.
func (im *Import) sameLayer(ref string, want *object.Commit) (object.Checksum, bool) {
	old, err := im.repo.ResolveRev(ref)
	if err != nil {
		return old, false
	}
	have, err := im.repo.ReadCommit(old)
	return old, err == nil && have.Tree == want.Tree && have.Meta == want.Meta
}

// mergeMetadata returns the merge commit's metadata and time.
func (im *Import) mergeMetadata(c *Container) (object.Dict, uint64, error) {
	manifest, err := canonicalJSON(c.Manifest)
	if err != nil {
		return nil, 0, fmt.Errorf("manifest: %w", err)
	}
	config, err := canonicalJSON(c.Config)
	if err != nil {
		return nil, 0, fmt.Errorf("config: %w", err)
	}
	created, ok := createdTime(c.Manifest, c.Config)
	if !ok {
		created = im.opts.Now()
	}
	return object.Dict{
		{Key: keyConfig, Value: object.Text(string(config))},
		{Key: keyImporterVersion, Value: object.Text(im.opts.Version)},
		{Key: keyManifest, Value: object.Text(string(manifest))},
		{Key: keyManifestDigest, Value: object.Text(c.ManifestDigest)},
	}, uint64(created.Unix()), nil
}

// createdTime returns when the image says it was made: the manifest's
// annotation, else the config.
func createdTime(manifest, config []byte) (time.Time, bool) {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	var c struct {
		Created string `json:"created"`
	}
	_ = json.Unmarshal(manifest, &m)
	text := m.Annotations["org.opencontainers.image.created"]
	if text == "" {
		_ = json.Unmarshal(config, &c)
		text = c.Created
	}
	t, err := time.Parse(time.RFC3339, text)
	return t, err == nil
}

// indexes makes the index files of the layers, with the objects that their
// contents have become. A layer of which some top-level path was left out is
// not kept: another image may want it whole.
func (im *Import) indexes(set *objectSet, layers []ContainerLayer, trees []*layerTree, commits []object.Checksum) (*indexUpdate, error) {
	u := &indexUpdate{state: im.opts.State}
	if u.state == nil {
		return u, nil
	}
	for i := range layers {
		l := &layers[i]
		im.mu.Lock()
		have := im.layers[l.DiffID]
		im.mu.Unlock()
		if have == nil || (trees[i] != nil && trees[i].partial) {
			continue
		}
		saved := &savedLayer{commit: commits[i], blob: l.Digest}
		records := set.recordsOf(l, trees[i])
		if have.stored && have.equal(saved.commit, saved.blob, records) {
			continue
		}
		index, err := im.openIndex(l.DiffID)
		if err != nil {
			continue // it is not kept, and fetched again
		}
		if err := errors.Join(u.add(l.DiffID, saved, index, records), index.Close()); err != nil {
			return u, err
		}
	}
	return u, nil
}
