package composefs

import (
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// File says where the bytes of a regular file are: in the image itself
// (Content), or in the object Payload with the fs-verity digest Digest.
type File struct {
	Content string
	Payload string
	Digest  Digest
	stored  bool // in place of Payload: that of Object
}

// Object returns the File of an object that is kept under its digest, as
// composefs stores do: payload "xx/rest of the digest".
func Object(d Digest) File {
	return File{Payload: objectName(d), Digest: d}
}

func objectName(d Digest) string {
	s := d.String()
	return s[:2] + "/" + s[2:]
}

// ostreeObject returns the path of a file object of an ostree repository.
func ostreeObject(sum [32]byte) string {
	s := hex.EncodeToString(sum[:])
	return s[:2] + "/" + s[2:] + ostreeSuffix
}

const ostreeSuffix = ".file"

// FromTree turns t into the tree of an image. file is asked once for each
// regular file that is not empty, whatever number of names it has; the first of
// these in the order of Walk is its own entry, and their number its link count.
func FromTree(t *fstree.Tree, file func(path string, n *fstree.Inode) (File, error)) (*Tree, error) {
	c := converter{file: file, linked: make(map[*fstree.Inode]*Inode)}
	return c.tree(t)
}

// OSTreeFile is what an image says of a file of an ostree commit.
type OSTreeFile struct {
	Checksum [32]byte // of the file object
	Verity   Digest   // fs-verity digest of the file object; "" leaves it open
}

// ostreeDirs are the directories that libostree adds to an image where a commit
// lacks them: it mounts there.
var ostreeDirs = []string{"usr", "etc", "boot", "var", "sysroot"}

// FromOSTree turns the tree of an ostree commit into that of its `.ostree.cfs`
// as libostree makes it (ostree-repo-composefs.c): nothing inline, payload
// "xx/rest.file" of the ostree checksum, each name an inode of its own, no
// times. file is asked for each name of a regular file that is not empty.
// Written with the options Default, an image whose files all have a digest has
// the one that the commit's metadata calls ostree.composefs.digest.v0.
func FromOSTree(t *fstree.Tree, file func(path string, n *fstree.Inode) (OSTreeFile, error)) (*Tree, error) {
	c := converter{ostree: true, file: func(path string, n *fstree.Inode) (File, error) {
		f, err := file(path, n)
		return File{Payload: ostreeObject(f.Checksum), Digest: f.Verity}, err
	}}
	out, err := c.tree(t)
	if err != nil {
		return nil, err
	}
	for _, name := range ostreeDirs {
		if out.Root.Lookup(name) != nil {
			continue
		}
		out.Root.Entries = append(out.Root.Entries, Dirent{Name: name, Inode: &Inode{Mode: unix.S_IFDIR | 0o755, Nlink: 1}})
		if err := out.Root.sortEntries(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type converter struct {
	file   func(path string, n *fstree.Inode) (File, error)
	ostree bool
	linked map[*fstree.Inode]*Inode
}

func (c *converter) tree(t *fstree.Tree) (*Tree, error) {
	root, err := c.inode("", t.Root)
	if err != nil {
		return nil, err
	}
	return &Tree{Root: root}, nil
}

func (c *converter) inode(path string, n *fstree.Inode) (*Inode, error) {
	out := &Inode{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: 1, Rdev: n.Rdev,
		MtimeSec: n.MtimeSec, MtimeNsec: n.MtimeNsec, Xattrs: n.Xattrs,
	}
	if c.ostree {
		out.MtimeSec, out.MtimeNsec = 0, 0
	}
	switch {
	case n.IsDir():
		return out, c.children(path, n, out)
	case n.IsSymlink():
		out.Payload, out.Size = n.Target, uint64(len(n.Target))
	case n.IsRegular():
		if n.Size < 0 {
			return nil, fmt.Errorf("%s: size %d", path, n.Size)
		}
		if out.Size = uint64(n.Size); out.Size == 0 {
			break
		}
		f, err := c.file(path, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out.Content, out.Payload, out.Digest, out.stored = f.Content, f.Payload, f.Digest, f.stored
	case c.ostree:
		return nil, fmt.Errorf("%s: ostree keeps no files of mode %o", path, n.Mode)
	}
	return out, nil
}

func (c *converter) children(path string, n *fstree.Inode, out *Inode) error {
	entries := n.Entries()
	out.Entries = make([]Dirent, 0, len(entries))
	for _, e := range entries {
		if first := c.linked[e.Inode]; first != nil {
			first.Nlink++
			out.Entries = append(out.Entries, Dirent{Name: e.Name, Inode: first, Link: true})
			continue
		}
		p := e.Name
		if path != "" {
			p = path + "/" + e.Name
		}
		child, err := c.inode(p, e.Inode)
		if err != nil {
			return err
		}
		if c.linked != nil && e.Inode.Linked && !e.Inode.IsDir() {
			c.linked[e.Inode] = child
		}
		out.Entries = append(out.Entries, Dirent{Name: e.Name, Inode: child})
	}
	return nil
}
