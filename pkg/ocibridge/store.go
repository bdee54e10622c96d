package ocibridge

import (
	"io"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// Store is where layers go. An implementation is used by several goroutines at
// once; a LayerWriter by one. Package storetest holds the tests that every
// implementation passes.
type Store interface {
	// LayerIndex returns the index that was committed for a layer, or an error
	// that is fs.ErrNotExist. Where it returns an index, every content that the
	// index names is there too.
	LayerIndex(diffID string) ([]byte, error)

	// Begin starts a layer. Nothing of it is visible before Commit.
	Begin(diffID string) (LayerWriter, error)

	// OpenContent reads back a content that a committed layer brought.
	OpenContent(d fstree.Digest) (io.ReadCloser, error)
}

// LayerWriter takes the contents of one layer. After Commit or Abort it is not
// used again; Abort after Commit does nothing.
type LayerWriter interface {
	// Put stores one regular file's bytes, read from r exactly once and to its
	// end, and returns the digest that stands for them in this store: the same
	// for the same bytes, another for others. Which digest that is, is the
	// store's choice: each has one of its own to compute. An error of r is
	// returned as it is, or wrapped.
	//
	// path and meta (owner, mode, xattrs, size; no content) are what the layer
	// says of the file, and serve only to guess how the store will want to keep
	// it. A content object of an ostree-chunked layer has its path in the
	// repository, "sysroot/ostree/repo/objects/…/….file", and its xattrs
	// include the final security.selinux.
	Put(path string, meta *fstree.Inode, r io.Reader) (fstree.Digest, error)

	// Commit makes the layer's contents and its index visible. It is called
	// after the layer's digests were found right. The index is not changed
	// afterwards; the store can keep it.
	Commit(index []byte) error

	// Abort forgets the layer.
	Abort()
}
