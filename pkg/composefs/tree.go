// Package composefs writes and reads composefs images. What they rest on,
// fs-verity, is in package fsverity.
//
// A composefs image is an EROFS file system of metadata only. A regular file
// that is not inline carries overlayfs xattrs that name an object and the
// fs-verity digest it must have; overlayfs checks the digest when the file is
// opened. The image is a file with an fs-verity digest of its own, and that
// digest names the whole tree.
//
// What goes into an image is a Tree. One comes from a dump (composefs-dump(5),
// ReadDump), from an existing image (ReadImage), or from an fstree.Tree
// (FromTree, FromOSTree); it becomes bytes with WriteImage, which gives the
// same bytes as mkcomposefs 1.0.8.
//
// A Repo keeps images, their objects and the OCI images they were made from in
// the layout of composefs-rs, which bootc uses. An Import takes the layers of an
// image in and writes it (WriteImage; its commit point is the tag); Prepare is
// what makes the tree of an OCI image the one that bootc boots.
//
// Nothing but a Repo, what belongs to it, and Meter.ReadDir touches files, and
// nothing but WriteImageWith starts a program.
package composefs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// Limits of what an image can hold; those of mkcomposefs.
const (
	maxName    = 255
	maxPayload = 4095
	maxInline  = 5000
	maxXattr   = 0xffff
	// maxXattrs bounds the xattrs of one inode: 12 bytes, and 7 for each
	// xattr beside its name and value.
	maxXattrs = 0x7fff
	// maxSize is the size of a file whose chunk map fills a block.
	maxSize = 1 << 53
)

// Inode is one file, directory, symlink or special file of an image.
type Inode struct {
	Mode      uint32 // st_mode: file type and permissions
	UID, GID  uint32
	Nlink     uint32 // as stored; a directory's is computed when an image is written
	MtimeNsec uint32
	// stored says of an external file that its object is kept under its Digest;
	// Payload is empty then, see objectPath.
	stored bool
	// commit, if set, is the inode of an ostree commit by whose checksum the
	// object is kept; Payload is empty then too.
	commit   *fstree.Inode
	MtimeSec int64
	Size     uint64 // regular files: length in bytes; symlinks: of the target
	Rdev     uint64 // devices: Linux dev_t; else 0
	Xattrs   *fstree.Xattrs
	// Payload is a symlink's target, or the path of a regular file's object
	// relative to the object directory; "" leaves the path to be the file's own,
	// but for trees made of an import, where it stands for that of the digest.
	Payload string
	// Content is an inline file's bytes. A regular file of Size > 0 without
	// Content is external: its bytes are an object.
	Content string
	Digest  Digest   // external files: the object's fs-verity digest, or ""
	Entries []Dirent // directories: children in bytewise order of their names
}

// Dirent is a name in a directory. Link says that it is a further name of an
// inode whose own entry, where Link is false, is elsewhere in the tree; an
// inode has exactly one such entry.
type Dirent struct {
	Name  string
	Inode *Inode
	Link  bool
}

// Tree is what an image holds.
type Tree struct {
	Root   *Inode
	intern fstree.Tree // equal xattr sets are one pointer
}

// Type returns the S_IFMT bits of the mode.
func (n *Inode) Type() uint32 { return n.Mode & unix.S_IFMT }

// IsDir reports whether n is a directory.
func (n *Inode) IsDir() bool { return n.Type() == unix.S_IFDIR }

// IsRegular reports whether n is a regular file.
func (n *Inode) IsRegular() bool { return n.Type() == unix.S_IFREG }

// IsSymlink reports whether n is a symbolic link.
func (n *Inode) IsSymlink() bool { return n.Type() == unix.S_IFLNK }

// External reports whether n is a regular file whose bytes are an object.
func (n *Inode) External() bool { return n.IsRegular() && n.Size > 0 && n.Content == "" }

// objectPath returns the Payload that an image has.
func (n *Inode) objectPath() string {
	switch {
	case n.commit != nil:
		return ostreeObject(n.commit.Content)
	case n.stored:
		return objectName(n.Digest)
	}
	return n.Payload
}

func (n *Inode) isDevice() bool { return n.Type() == unix.S_IFCHR || n.Type() == unix.S_IFBLK }

// isWhiteout reports whether n is what overlayfs takes for a deleted name.
func (n *Inode) isWhiteout() bool { return n.Type() == unix.S_IFCHR && n.Rdev == 0 }

// Lookup returns the child of directory n with that name, or nil.
func (n *Inode) Lookup(name string) *Inode {
	i, ok := slices.BinarySearchFunc(n.Entries, name, func(e Dirent, s string) int { return cmp.Compare(e.Name, s) })
	if !ok {
		return nil
	}
	return n.Entries[i].Inode
}

// Lookup returns the inode at path, or nil. No symlink is followed; path is
// slash-separated, with or without a leading slash ("" and "/" are the root).
func (t *Tree) Lookup(path string) *Inode {
	n := t.Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if n = n.Lookup(name); n == nil {
			return nil
		}
	}
	return n
}

// Walk calls fn for the root (path "/") and everything below it, a directory
// before its children, children in bytewise order of their names. It stops at
// the first error and returns it.
func (t *Tree) Walk(fn func(path string, e Dirent) error) error {
	var visit func(path string, e Dirent) error
	visit = func(path string, e Dirent) error {
		p := path
		if p == "" {
			p = "/"
		}
		if err := fn(p, e); err != nil {
			return err
		}
		if e.Link {
			return nil
		}
		for _, c := range e.Inode.Entries {
			if err := visit(path+"/"+c.Name, c); err != nil {
				return err
			}
		}
		return nil
	}
	return visit("", Dirent{Inode: t.Root})
}

// sortEntries puts the children of directory n in order and says which name
// stands there twice.
func (n *Inode) sortEntries() error {
	byName := func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(n.Entries, byName) {
		slices.SortFunc(n.Entries, byName)
	}
	for i := 1; i < len(n.Entries); i++ {
		if n.Entries[i-1].Name == n.Entries[i].Name {
			return fmt.Errorf("the name %q stands twice in one directory", n.Entries[i].Name)
		}
	}
	return nil
}

// checkName refuses what no directory entry can be called.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return fmt.Errorf("%q is no file name", name)
	case len(name) > maxName:
		return fmt.Errorf("file name of %d bytes, the limit is %d", len(name), maxName)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("file name %q has a slash or a NUL", name)
	}
	return nil
}

// check refuses an inode that an image cannot hold.
func (n *Inode) check() error {
	switch n.Type() {
	case unix.S_IFDIR, unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFREG:
		switch {
		case n.Content != "" && uint64(len(n.Content)) != n.Size:
			return fmt.Errorf("size %d with %d bytes of inline content", n.Size, len(n.Content))
		case len(n.Content) > maxInline:
			return fmt.Errorf("%d bytes of inline content, the limit is %d", len(n.Content), maxInline)
		case n.Size > maxSize:
			return fmt.Errorf("size %d, the limit is %d", n.Size, uint64(maxSize))
		}
	case unix.S_IFLNK:
		if n.Payload == "" {
			return fmt.Errorf("a symlink without a target")
		}
	default:
		return fmt.Errorf("mode %o has no file type", n.Mode)
	}
	if n.Mode > 0xffff {
		return fmt.Errorf("mode %o is none", n.Mode)
	}
	if len(n.Payload) > maxPayload {
		return fmt.Errorf("a path or symlink target of %d bytes, the limit is %d", len(n.Payload), maxPayload)
	}
	if strings.IndexByte(n.Payload, 0) >= 0 {
		return fmt.Errorf("a path or symlink target with a NUL: %q", n.Payload)
	}
	return n.Digest.Check()
}

func checkXattr(name, value string) error {
	switch {
	case name == "" || len(name) > maxName:
		return fmt.Errorf("xattr name of %d bytes, want 1 to %d", len(name), maxName)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("xattr name %q has a NUL", name)
	case len(value) > maxXattr:
		return fmt.Errorf("xattr %s has %d bytes, the limit is %d", name, len(value), maxXattr)
	}
	return nil
}
