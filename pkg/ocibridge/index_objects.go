package ocibridge

import (
	"crypto/sha256"

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

// size returns about how many bytes the encoding takes.
func (o *ObjectLayer) size() int {
	n := len(o.CommitData) + len(o.CommitMeta) + len(o.Files)*(2*sha256.Size+32)
	for i := range o.Meta {
		n += len(o.Meta[i].Data) + 4
	}
	for i := range o.Files {
		n += len(o.Files[i].Inode.Target)
	}
	return n
}

func encodeObjects(e *fstree.Encoder, o *ObjectLayer) {
	e.B = append(e.B, o.Commit[:]...)
	e.Bytes(o.CommitData)
	e.Bytes(o.CommitMeta)
	e.Uint(uint64(len(o.Meta)))
	for i := range o.Meta {
		e.Uint(uint64(o.Meta[i].Type))
		e.Bytes(o.Meta[i].Data)
	}
	for i := range o.Files {
		e.Set(o.Files[i].Inode.Xattrs)
	}
	e.Sets()
	e.Uint(uint64(len(o.Files)))
	for i := range o.Files {
		f := &o.Files[i]
		e.B = append(e.B, f.Checksum[:]...)
		var unsorted uint64
		if f.Unsorted {
			unsorted = 1
		}
		e.Uint(unsorted)
		e.Inode(f.Inode)
	}
}

func decodeIndexObjects(d *fstree.Decoder) *ObjectLayer {
	o := &ObjectLayer{}
	copy(o.Commit[:], d.Raw(uint64(len(o.Commit))))
	o.CommitData, o.CommitMeta = d.Bytes(), d.Bytes()
	if len(o.CommitMeta) == 0 {
		o.CommitMeta = nil
	}
	for range d.Count(2) {
		m := MetaObject{Type: object.Type(d.Uint(uint64(object.TypeDirmeta))), Data: d.Bytes()}
		m.Checksum = object.Sum(m.Data)
		o.Meta = append(o.Meta, m)
	}
	d.Sets(fstree.New())
	count := d.Count(len(object.Checksum{}))
	o.Files = make([]FileObject, 0, count)
	for range count {
		var f FileObject
		copy(f.Checksum[:], d.Raw(uint64(len(f.Checksum))))
		f.Unsorted = d.Uint(1) == 1
		f.Inode = d.Inode()
		if d.Err() == nil && !f.Inode.IsRegular() && !f.Inode.IsSymlink() {
			d.Fail("object %s is neither a file nor a symlink", f.Checksum)
		}
		if d.Err() != nil {
			return nil
		}
		o.Files = append(o.Files, f)
	}
	return o
}
