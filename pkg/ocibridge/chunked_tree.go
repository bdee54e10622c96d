package ocibridge

import (
	"fmt"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// commitTree builds the tree of the commit that the ostree layers of an image
// hold together.
func commitTree(layers []*ObjectLayer, limits Limits) (*OSTreeBase, error) {
	first := layers[0]
	c, err := object.DecodeCommit(first.CommitData)
	if err != nil {
		return nil, fault.New(fault.Corrupt, rebuildHint, "commit %s: %w", first.Commit, err)
	}
	b := &treeBuilder{
		tree: fstree.New(), left: limits.Entries, exact: true,
		meta:  make(map[object.Checksum][]byte),
		files: make(map[object.Checksum]*fstree.Inode),
		used:  make(map[object.Checksum]bool),
	}
	exact := true
	for _, l := range layers {
		for _, m := range l.Meta {
			b.meta[m.Checksum] = m.Data
		}
		for _, f := range l.Files {
			b.files[f.Checksum] = f.Inode
			exact = exact && !f.Unsorted
		}
	}
	if err := b.directory("", b.tree.Root, c.Tree, c.Meta); err != nil {
		return nil, fmt.Errorf("commit %s: %w", first.Commit, err)
	}
	b.tree.Freeze()
	return &OSTreeBase{Commit: first.Commit, CommitBytes: first.CommitData, CommitMeta: first.CommitMeta, Tree: b.tree, Exact: exact && b.exact}, nil
}

// treeBuilder turns dirtrees into a tree of the layers' own inodes. Names of the
// same content object are one inode: the image's tar has them as hard links too,
// all but empty files.
type treeBuilder struct {
	tree  *fstree.Tree
	left  int64 // entries that may still come: dirtrees can be shared and nest
	meta  map[object.Checksum][]byte
	files map[object.Checksum]*fstree.Inode
	used  map[object.Checksum]bool
	exact bool // dirmetas are as they would be encoded again
}

func (b *treeBuilder) directory(path string, n *fstree.Inode, tree, meta object.Checksum) error {
	data, ok := b.meta[meta]
	if !ok {
		return b.missing(path, "dirmeta", meta)
	}
	m, err := object.DecodeDirmeta(data)
	if err != nil {
		return corrupt(path, "dirmeta %s: %w", meta, err)
	}
	n.Mode, n.UID, n.GID, n.Xattrs = m.Mode, m.UID, m.GID, b.tree.Intern(m.Xattrs)
	b.exact = b.exact && object.Sum(object.EncodeDirmeta(n.UID, n.GID, n.Mode, n.Xattrs)) == meta

	if data, ok = b.meta[tree]; !ok {
		return b.missing(path, "dirtree", tree)
	}
	files, dirs, err := object.DecodeDirtree(data)
	if err != nil {
		return corrupt(path, "dirtree %s: %w", tree, err)
	}
	if b.left -= int64(len(files) + len(dirs)); b.left < 0 {
		return corrupt(path, "the commit has too many entries")
	}
	for _, f := range files {
		file, err := b.file(path+"/"+f.Name, f)
		if err != nil {
			return err
		}
		n.Set(f.Name, file)
	}
	for _, d := range dirs {
		sub := path + "/" + d.Name
		if len(d.Name) > maxName || len(sub) > maxPath {
			return corrupt(sub, "the name is too long")
		}
		child := fstree.NewDir(0)
		if err := b.directory(sub, child, d.Tree, d.Meta); err != nil {
			return err
		}
		n.Set(d.Name, child)
	}
	return nil
}

func (b *treeBuilder) file(path string, f object.FileEntry) (*fstree.Inode, error) {
	n, ok := b.files[f.Checksum]
	switch {
	case !ok:
		return nil, b.missing(path, "content object", f.Checksum)
	case len(f.Name) > maxName || len(path) > maxPath:
		return nil, corrupt(path, "the name is too long")
	case !b.used[f.Checksum]:
		b.used[f.Checksum] = true
		n.Xattrs = b.tree.Intern(n.Xattrs.All())
	case n.IsRegular() && n.Size == 0:
		n = n.WithMeta(nil)
	default:
		n.Linked = true
	}
	return n, nil
}

func (b *treeBuilder) missing(path, what string, sum object.Checksum) error {
	return corrupt(path, "its %s %s is in none of the image's layers", what, sum)
}
