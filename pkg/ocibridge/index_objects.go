package ocibridge

import (
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// ObjectLayer is what a layer of an ostree-chunked image holds.
type ObjectLayer struct {
	Commit     object.Checksum // OSTreeCommit layers; else zero
	CommitData []byte          // the commit object
	CommitMeta []byte          // its detached metadata (a{sv}), or nil
	Meta       []MetaObject    // the dirtrees and dirmetas, in the layer's order
	Files      []FileObject    // the content objects, in the layer's order
}

// MetaObject is a dirtree or dirmeta.
type MetaObject struct {
	Type     object.Type
	Checksum object.Checksum
	Data     []byte
}

// FileObject is a content object: a regular file or a symlink. Its xattrs are
// the object's, security.selinux with its trailing NUL included.
type FileObject struct {
	Checksum object.Checksum
	Inode    *fstree.Inode
	// Unsorted: the checksum was made with the xattrs in another order than
	// that of their names (OSTreeBase.Exact).
	Unsorted bool
}

func (e *encoder) objects(o *ObjectLayer) {
	e.b = append(e.b, o.Commit[:]...)
	e.string(string(o.CommitData))
	e.string(string(o.CommitMeta))
	e.uint(uint64(len(o.Meta)))
	for _, m := range o.Meta {
		e.uint(uint64(m.Type))
		e.string(string(m.Data))
	}
	e.xattrSets(func(yield func(*fstree.Inode) bool) {
		for _, f := range o.Files {
			if !yield(f.Inode) {
				return
			}
		}
	})
	e.uint(uint64(len(o.Files)))
	for _, f := range o.Files {
		e.b = append(e.b, f.Checksum[:]...)
		e.bool(f.Unsorted)
		e.inode(f.Inode)
	}
}

func (d *decoderState) objects() *ObjectLayer {
	o := &ObjectLayer{}
	copy(o.Commit[:], d.bytes(uint64(len(o.Commit))))
	o.CommitData, o.CommitMeta = d.bytes(d.uint()), d.bytes(d.uint())
	if len(o.CommitMeta) == 0 {
		o.CommitMeta = nil
	}
	for range d.count(2) {
		m := MetaObject{Type: object.Type(d.uintMax(uint64(object.TypeDirmeta))), Data: d.bytes(d.uint())}
		m.Checksum = object.Sum(m.Data)
		o.Meta = append(o.Meta, m)
	}
	d.xattrSets()
	for range d.count(len(object.Checksum{})) {
		var f FileObject
		copy(f.Checksum[:], d.bytes(uint64(len(f.Checksum))))
		f.Unsorted = d.uintMax(1) == 1
		f.Inode = d.inode()
		if d.err == nil && !f.Inode.IsRegular() && !f.Inode.IsSymlink() {
			d.fail("object %s is neither a file nor a symlink", f.Checksum)
		}
		if d.err != nil {
			return nil
		}
		o.Files = append(o.Files, f)
	}
	return o
}
