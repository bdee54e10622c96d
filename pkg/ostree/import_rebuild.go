package ostree

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// ForeignLayer is a layer that ostree-ext or bootc imported, read back from its
// commit.
type ForeignLayer struct {
	DiffID  string
	Role    LayerRole
	Entries *fstree.Layer // derived layers; times and labels are not known
	Objects []LayerObject // ostree layers
	// Of the commit layer: the base commit, its detached metadata (nil if
	// none), and its dirtrees and dirmetas.
	Commit   []byte
	Detached []byte
	Meta     []MetaObject
}

// foreignImage is where a layer of an image in the repository stands.
type foreignImage struct {
	layers []ImageLayerID
	at     int
	role   LayerRole
}

// labelFinalDiffID marks the last ostree layer of an ostree-chunked image.
const labelFinalDiffID = "ostree.final-diffid"

// foreignLayer finds a layer by the images that are in the repository, whoever
// imported them, and reads its index back from its commit and objects.
func (im *Import) foreignLayer(diffID, name string) (*savedLayer, bool) {
	if im.opts.EncodeLayer == nil {
		return nil, false
	}
	at, ok := im.foreignImages()[diffID]
	if !ok {
		return nil, false
	}
	blob := at.layers[at.at].Digest
	commit, err := im.repo.ResolveRev(LayerRef(blob))
	if err != nil {
		return nil, false
	}
	l, records, err := im.readForeign(at, commit)
	if err != nil {
		return nil, false
	}
	l.DiffID = diffID
	index, err := im.opts.EncodeLayer(l)
	if err != nil {
		return nil, false
	}
	saved := &savedLayer{commit: commit, blob: blob, index: index, records: records}
	return saved, im.stage.putLayer(name, saved) == nil
}

// foreignImages maps the diffIDs of the layers of all images in the repository.
// What cannot be read is left out.
func (im *Import) foreignImages() map[string]foreignImage {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.foreign != nil {
		return im.foreign
	}
	im.foreign = map[string]foreignImage{}
	for _, prefix := range keepingRefs {
		refs, err := im.repo.Refs(prefix + "/")
		if err != nil {
			continue
		}
		for _, commit := range refs {
			img, err := im.repo.ContainerManifest(commit)
			if err != nil {
				continue
			}
			layers, err := img.Layers()
			if err != nil {
				continue
			}
			roles := layerRoles(img.Config, layers)
			for i, l := range layers {
				if _, known := im.foreign[l.DiffID]; !known && l.DiffID != "" {
					im.foreign[l.DiffID] = foreignImage{layers, i, roles[i]}
				}
			}
		}
	}
	return im.foreign
}

func layerRoles(config []byte, layers []ImageLayerID) []LayerRole {
	var c struct {
		Config struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	_ = json.Unmarshal(config, &c)
	roles := make([]LayerRole, len(layers))
	final := c.Config.Labels[labelFinalDiffID]
	for i, l := range layers {
		if final == "" {
			break
		}
		if roles[i] = ChunkLayer; i == 0 {
			roles[i] = CommitLayer
		}
		if l.DiffID == final {
			break
		}
	}
	return roles
}

func (im *Import) readForeign(at foreignImage, commit object.Checksum) (*ForeignLayer, []record, error) {
	l := &ForeignLayer{Role: at.role}
	r := &treeBack{repo: im.repo, files: map[object.Checksum]*fstree.Inode{}, intern: fstree.New()}
	data, err := im.repo.ReadMeta(object.Name{Checksum: commit, Type: object.TypeCommit})
	if err != nil {
		return nil, nil, err
	}
	c, err := object.DecodeCommit(data)
	if err != nil {
		return nil, nil, err
	}
	root, err := r.dir(c.Tree, c.Meta, 0)
	if err != nil {
		return nil, nil, err
	}
	if at.role == CommitLayer {
		if err := im.leaveOutChunks(at, r); err != nil {
			return nil, nil, err
		}
	}
	records, err := r.hash()
	if err != nil {
		return nil, nil, err
	}
	switch at.role {
	case DerivedLayer:
		l.Entries, err = layerOf(&fstree.Tree{Root: root})
		return l, records, err
	case CommitLayer:
		l.Commit, l.Meta = data, r.meta
		d, err := im.repo.ReadCommitMeta(commit)
		if err != nil {
			return nil, nil, err
		}
		if len(d) > 0 {
			l.Detached = d.Encode()
		}
	}
	for _, c := range r.order {
		if n, ok := r.files[c]; ok {
			l.Objects = append(l.Objects, LayerObject{Checksum: c, Inode: n})
		}
	}
	return l, records, nil
}

// leaveOutChunks takes the objects of an image's chunk layers from those of its
// base commit: what remains came with the commit layer.
func (im *Import) leaveOutChunks(at foreignImage, r *treeBack) error {
	for i, l := range at.layers {
		if role := im.foreignImages()[l.DiffID].role; i == 0 || role != ChunkLayer {
			continue
		}
		commit, err := im.repo.ResolveRev(LayerRef(l.Digest))
		if err != nil {
			return err
		}
		c, err := im.repo.ReadCommit(commit)
		if err != nil {
			return err
		}
		files, _, err := im.repo.ReadDirtree(c.Tree)
		if err != nil {
			return err
		}
		for _, f := range files {
			delete(r.files, f.Checksum)
		}
	}
	return nil
}

// treeBack reads a commit's tree and what its contents are in sha256.
type treeBack struct {
	repo   *Repo
	files  map[object.Checksum]*fstree.Inode
	order  []object.Checksum
	meta   []MetaObject
	seen   map[object.Checksum]bool
	intern *fstree.Tree
}

func (r *treeBack) dir(tree, meta object.Checksum, depth int) (*fstree.Inode, error) {
	if depth > maxDirDepth {
		return nil, fault.New(fault.Corrupt, "run kedge fsck", "read the dirtree %s: %w", tree, errTooDeep)
	}
	metaData, err := r.keep(object.TypeDirmeta, meta)
	if err != nil {
		return nil, err
	}
	m, err := object.DecodeDirmeta(metaData)
	if err != nil {
		return nil, err
	}
	treeData, err := r.keep(object.TypeDirtree, tree)
	if err != nil {
		return nil, err
	}
	files, dirs, err := object.DecodeDirtree(treeData)
	if err != nil {
		return nil, err
	}
	n := fstree.NewDir(0)
	n.Mode, n.UID, n.GID, n.Xattrs = m.Mode, m.UID, m.GID, r.intern.Intern(m.Xattrs)
	for _, f := range files {
		if r.files[f.Checksum] == nil {
			r.files[f.Checksum] = &fstree.Inode{}
			r.order = append(r.order, f.Checksum)
		}
		n.Set(f.Name, r.files[f.Checksum])
	}
	for _, d := range dirs {
		child, err := r.dir(d.Tree, d.Meta, depth+1)
		if err != nil {
			return nil, err
		}
		n.Set(d.Name, child)
	}
	return n, nil
}

func (r *treeBack) keep(t object.Type, c object.Checksum) ([]byte, error) {
	data, err := r.repo.ReadMeta(object.Name{Checksum: c, Type: t})
	if err == nil && !r.seen[c] {
		if r.seen == nil {
			r.seen = map[object.Checksum]bool{}
		}
		r.seen[c] = true
		r.meta = append(r.meta, MetaObject{t, c, data})
	}
	return data, err
}

// hash fills the inodes in, reading every regular file once.
func (r *treeBack) hash() ([]record, error) {
	var mu sync.Mutex
	var all records
	err := parallel(context.Background(), len(r.order), func(i int) error {
		c := r.order[i]
		n, ok := r.files[c]
		if !ok {
			return nil
		}
		m, content, err := r.repo.OpenFile(c)
		if err != nil {
			return err
		}
		defer content.Close()
		sum, own := sha256.New(), sha256.New()
		header := object.FileHeader(m.UID, m.GID, m.Mode, m.Target, fstree.New().Intern(m.Xattrs))
		own.Write(header)
		if n.Size, err = io.Copy(io.MultiWriter(sum, own), content); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		n.Mode, n.UID, n.GID, n.Target = m.Mode, m.UID, m.GID, m.Target
		n.Xattrs = r.intern.Intern(m.Xattrs)
		if object.Checksum(own.Sum(nil)) != c {
			return fault.New(fault.Corrupt, "run kedge fsck", "object %s.file is not what its name says", c)
		}
		if !n.IsRegular() {
			return nil
		}
		sum.Sum(n.Content[:0])
		if n.Size > 0 {
			all.add(record{n.Content, hashHeader(header), c})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read a layer back from the repository: %w", err)
	}
	all.sort()
	return all.list, nil
}
