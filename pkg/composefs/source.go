package composefs

import (
	"fmt"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// Source is what an image is made of: a Tree, or an fstree.Tree as it stands
// (View, ViewOSTree). The image is the same; a large one has no room in memory
// for a Tree beside the other.
type Source interface {
	tree() (*Tree, error)
	begin(*flat) (root node, err error)
	// count returns about how many inodes there are, and how many of them are
	// external files.
	count() (inodes, external int)
	// children calls fn for what is in a directory, in bytewise order of the
	// names; further says that it is one more name of an inode. path makes a
	// path of a name.
	children(dir *node, fn func(name string, child node, further bool) error, path func(name string) string) error
}

func (t *Tree) tree() (*Tree, error) { return t, nil }

func (t *Tree) begin(*flat) (node, error) {
	if t.Root == nil {
		return node{}, fmt.Errorf("the root is no directory")
	}
	return node{own: t.Root}, nil
}

func (t *Tree) count() (inodes, external int) { return count(t.Root) }

func count(dir *Inode) (inodes, external int) {
	for _, e := range dir.Entries {
		inodes++
		switch {
		case e.Link:
		case e.Inode.IsDir():
			i, x := count(e.Inode)
			inodes, external = inodes+i, external+x
		case e.Inode.External():
			external++
		}
	}
	return inodes + 1, external
}

func (t *Tree) children(dir *node, fn func(string, node, bool) error, _ func(string) string) error {
	for _, e := range dir.own.Entries {
		if err := fn(e.Name, node{own: e.Inode}, e.Link); err != nil {
			return err
		}
	}
	return nil
}

// View is FromTree for an image that is only written. Every object is kept under
// its digest.
func View(t *fstree.Tree, file func(path string, n *fstree.Inode) (File, error)) Source {
	return &view{root: t.Root, file: file, whole: func() (*Tree, error) { return FromTree(t, file) }}
}

// ViewOSTree is FromOSTree for an image that is only written; an inode's content
// is the checksum of its file object, and digest returns the fs-verity digest
// of that, or "".
func ViewOSTree(t *fstree.Tree, digest func(*fstree.Inode) (Digest, error)) Source {
	root := t.Root.WithMeta(nil)
	for _, e := range t.Root.Entries() {
		root.Set(e.Name, e.Inode)
	}
	for _, name := range ostreeDirs {
		if root.Lookup(name) == nil {
			root.Set(name, fstree.NewDir(0o755))
		}
	}
	return &view{
		root: root, ostree: true,
		file: func(_ string, n *fstree.Inode) (File, error) {
			d, err := digest(n)
			return File{Digest: d}, err
		},
		whole: func() (*Tree, error) {
			return FromOSTree(t, func(_ string, n *fstree.Inode) (OSTreeFile, error) {
				d, err := digest(n)
				return OSTreeFile{Checksum: n.Content, Verity: d}, err
			})
		},
	}
}

type view struct {
	root   *fstree.Inode
	ostree bool
	file   func(path string, n *fstree.Inode) (File, error)
	whole  func() (*Tree, error)
	linked map[*fstree.Inode]*names
}

// names are those of an inode that has several.
type names struct {
	dir   *fstree.Inode // where the first one is, in the order of fstree.Tree.Walk
	name  string
	count uint32
}

func (v *view) tree() (*Tree, error) { return v.whole() }

func (v *view) begin(f *flat) (node, error) {
	f.ostree = v.ostree
	if !v.ostree {
		v.linked = make(map[*fstree.Inode]*names)
		v.findNames(v.root)
	}
	return node{viewed: v.root, nlink: 1}, nil
}

func (v *view) findNames(dir *fstree.Inode) {
	for _, e := range dir.Entries() {
		switch n := e.Inode; {
		case n.IsDir():
			v.findNames(n)
		case !n.Linked:
		case v.linked[n] == nil:
			v.linked[n] = &names{dir, e.Name, 1}
		default:
			v.linked[n].count++
		}
	}
}

func (v *view) count() (inodes, external int) { return v.countBelow(v.root) }

func (v *view) countBelow(dir *fstree.Inode) (inodes, external int) {
	for _, e := range dir.Entries() {
		switch n := e.Inode; {
		case n.IsDir():
			i, x := v.countBelow(n)
			inodes, external = inodes+i, external+x
		case n.IsRegular() && (n.Size > inlineMax || v.ostree && n.Size > 0):
			inodes, external = inodes+1, external+1
		default:
			inodes++
		}
	}
	return inodes + 1, external
}

func (v *view) children(dir *node, fn func(string, node, bool) error, path func(string) string) error {
	for _, e := range dir.viewed.Entries() {
		n := e.Inode
		child := node{viewed: n, nlink: 1}
		if l := v.linked[n]; l != nil {
			if l.dir != dir.viewed || l.name != e.Name {
				if err := fn(e.Name, child, true); err != nil {
					return err
				}
				continue
			}
			child.nlink = l.count
		}
		if err := v.describe(&child, n); err != nil {
			return fmt.Errorf("%s: %w", path(e.Name), err)
		}
		if err := fn(e.Name, child, false); err != nil {
			return err
		}
	}
	return nil
}

// describe gives a node what its inode does not say.
func (v *view) describe(child *node, n *fstree.Inode) error {
	switch {
	case n.IsDir(), n.IsSymlink():
		return nil
	case !n.IsRegular():
		if v.ostree {
			return fmt.Errorf("ostree keeps no files of mode %o", n.Mode)
		}
		return nil
	case n.Size < 0:
		return fmt.Errorf("size %d", n.Size)
	case n.Size == 0:
		return nil
	}
	f, err := v.file("", n)
	if err != nil {
		return err
	}
	if child.data = f.Content; f.Content != "" {
		child.inline = true
		return nil
	}
	child.data = string(f.Digest)
	return nil
}
