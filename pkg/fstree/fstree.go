// Package fstree is the file system tree that every other package speaks:
// inodes, names, xattrs and a content handle for each regular file.
//
// A Tree is what an OCI image says, merged from its layers and nothing else;
// the stores derive their own tree from it (ostree.Prepare, composefs.Prepare).
// The package does no I/O: file contents stay in a store and are named here by
// a digest.
//
// File inodes may be shared between trees and are then not changed; directories
// belong to one tree. A tree under construction is for one goroutine; after
// Freeze any number may read it.
//
// Memory: an inode takes 112 bytes and a name 24 plus its bytes; directories
// up to 32 bytes more, so a tree stays below 250 bytes an inode plus names. A
// layer is kept packed, at 50 bytes an entry, and gives its inodes to the tree
// that it is merged into: what an image brings is there once.
package fstree

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Digest is the handle under which a store keeps the bytes of a regular file:
// their sha256, or another digest that the store has of them anyway. Digests
// are compared within one store only. The zero Digest stands for "no content".
type Digest [32]byte

// EmptyDigest is the Digest of a file without content, in every store.
var EmptyDigest = Digest{
	0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
	0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
}

// String returns the digest as 64 lower-case hex digits.
func (d Digest) String() string { return fmt.Sprintf("%x", d[:]) }

// Inode is one file, directory, symlink or special file.
type Inode struct {
	Mode      uint32 // st_mode: file type and permissions
	UID, GID  uint32
	MtimeNsec uint32 // 0 … 999,999,999
	MtimeSec  int64
	Size      int64  // regular files: length in bytes; else 0
	Rdev      uint64 // devices: Linux dev_t as unix.Mkdev makes it; else 0
	Content   Digest // regular files: the store's digest of the bytes
	Xattrs    *Xattrs
	Target    string // symlinks: the link's text
	dir       *directory
	Linked    bool // regular files and others: may have more than one name in the tree
}

// NewDir returns an empty directory with the permissions perm, root:root.
func NewDir(perm uint32) *Inode {
	return &Inode{Mode: unix.S_IFDIR | perm, dir: &directory{}}
}

// Type returns the S_IFMT bits of the mode.
func (n *Inode) Type() uint32 { return n.Mode & unix.S_IFMT }

// IsDir reports whether n is a directory.
func (n *Inode) IsDir() bool { return n.Type() == unix.S_IFDIR }

// IsRegular reports whether n is a regular file.
func (n *Inode) IsRegular() bool { return n.Type() == unix.S_IFREG }

// IsSymlink reports whether n is a symbolic link.
func (n *Inode) IsSymlink() bool { return n.Type() == unix.S_IFLNK }

// Dirent is a name in a directory.
type Dirent struct {
	Name  string
	Inode *Inode
}

// indexAbove is the directory size from which names are looked up through a
// map while the tree is built.
const indexAbove = 32

type directory struct {
	entries  []Dirent
	index    map[string]int32 // nil while small or after Freeze
	unsorted bool
}

func (d *directory) find(name string) int {
	if d.index != nil {
		if i, ok := d.index[name]; ok {
			return int(i)
		}
		return -1
	}
	if !d.unsorted && len(d.entries) > indexAbove {
		i, ok := slices.BinarySearchFunc(d.entries, name, func(e Dirent, s string) int { return strings.Compare(e.Name, s) })
		if ok {
			return i
		}
		return -1
	}
	for i := range d.entries {
		if d.entries[i].Name == name {
			return i
		}
	}
	return -1
}

func (d *directory) sort() {
	if d.unsorted {
		slices.SortFunc(d.entries, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
		d.unsorted = false
	}
	d.index = nil
}

// Lookup returns the child of directory n with that name, or nil.
func (n *Inode) Lookup(name string) *Inode {
	if n.dir == nil {
		return nil
	}
	if i := n.dir.find(name); i >= 0 {
		return n.dir.entries[i].Inode
	}
	return nil
}

// Set gives directory n a child, replacing one of the same name whole.
func (n *Inode) Set(name string, child *Inode) {
	d := n.dir
	if i := d.find(name); i >= 0 {
		d.entries[i].Inode = child
		return
	}
	if k := len(d.entries); k > 0 && d.entries[k-1].Name > name {
		d.unsorted = true
	}
	d.entries = append(d.entries, Dirent{name, child})
	switch {
	case d.index != nil:
		d.index[name] = int32(len(d.entries) - 1)
	case len(d.entries) > indexAbove:
		d.index = make(map[string]int32, 2*len(d.entries))
		for i, e := range d.entries {
			d.index[e.Name] = int32(i)
		}
	}
}

// Remove takes a name out of directory n; a missing name is not an error.
func (n *Inode) Remove(name string) {
	if n.dir == nil {
		return
	}
	d := n.dir
	i := d.find(name)
	if i < 0 {
		return
	}
	last := len(d.entries) - 1
	if i != last {
		d.entries[i] = d.entries[last]
		d.unsorted = true
		if d.index != nil {
			d.index[d.entries[i].Name] = int32(i)
		}
	}
	d.entries[last] = Dirent{}
	d.entries = d.entries[:last]
	delete(d.index, name)
}

// Clear takes every name out of directory n.
func (n *Inode) Clear() { n.dir = &directory{} }

// Entries returns the children of directory n in bytewise order of their
// names. The slice belongs to the tree.
func (n *Inode) Entries() []Dirent {
	if n.dir == nil {
		return nil
	}
	if n.dir.unsorted {
		n.dir.sort()
	}
	return n.dir.entries
}

// Len returns the number of children of directory n.
func (n *Inode) Len() int {
	if n.dir == nil {
		return 0
	}
	return len(n.dir.entries)
}

// WithMeta returns a copy of n for another tree. A directory's copy is empty.
func (n *Inode) WithMeta(change func(*Inode)) *Inode {
	c := *n
	if c.IsDir() {
		c.dir = &directory{}
	}
	if change != nil {
		change(&c)
	}
	return &c
}

// Tree is a file system tree.
type Tree struct {
	Root   *Inode
	xattrs map[string]*Xattrs
}

// New returns a tree with an empty root directory, 0755 root:root.
func New() *Tree { return &Tree{Root: NewDir(0o755)} }

// Freeze sorts every directory and drops what only construction needs. After
// it, reading is safe from several goroutines until the next change.
func (t *Tree) Freeze() {
	var visit func(n *Inode)
	visit = func(n *Inode) {
		n.dir.sort()
		for _, e := range n.dir.entries {
			if e.Inode.IsDir() {
				visit(e.Inode)
			}
		}
	}
	visit(t.Root)
}

// Clone returns a tree that can be changed without changing t. File inodes are
// shared.
func (t *Tree) Clone() *Tree {
	var clone func(n *Inode) *Inode
	clone = func(n *Inode) *Inode {
		c := n.WithMeta(nil)
		c.dir.entries = slices.Clone(n.dir.entries)
		c.dir.unsorted = n.dir.unsorted
		if len(c.dir.entries) > indexAbove {
			c.dir.sort()
		}
		for i, e := range c.dir.entries {
			if e.Inode.IsDir() {
				c.dir.entries[i].Inode = clone(e.Inode)
			}
		}
		return c
	}
	return &Tree{Root: clone(t.Root), xattrs: t.xattrs}
}

// Lookup returns the inode at path, or nil. No symlink is followed; path is
// slash-separated and relative to the root ("" and "." are the root).
func (t *Tree) Lookup(path string) *Inode {
	n := t.Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if n = n.Lookup(name); n == nil {
			return nil
		}
	}
	return n
}

// maxSymlinks bounds symlink resolution, as the kernel's MAXSYMLINKS does.
const maxSymlinks = 40

// Resolve returns the inode at path with every symlink followed inside the
// tree (".." of the root is the root), or nil where the path leads nowhere.
func (t *Tree) Resolve(path string) *Inode {
	stack := []*Inode{t.Root}
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		n := stack[len(stack)-1].Lookup(name)
		switch {
		case n == nil:
			return nil
		case n.IsSymlink():
			if links++; links > maxSymlinks {
				return nil
			}
			if strings.HasPrefix(n.Target, "/") {
				stack = stack[:1]
			}
			rest = append(strings.Split(n.Target, "/"), rest...)
		default:
			stack = append(stack, n)
		}
	}
	return stack[len(stack)-1]
}

// Walk calls fn for the root (path "") and everything below it, a directory
// before its children, children in bytewise order of their names. It stops at
// the first error and returns it; SkipDir from a directory skips its children.
func (t *Tree) Walk(fn func(path string, n *Inode) error) error {
	var visit func(path string, n *Inode) error
	visit = func(path string, n *Inode) error {
		if err := fn(path, n); err != nil {
			if err == SkipDir && n.IsDir() {
				return nil
			}
			return err
		}
		for _, e := range n.Entries() {
			p := e.Name
			if path != "" {
				p = path + "/" + e.Name
			}
			if err := visit(p, e.Inode); err != nil {
				return err
			}
		}
		return nil
	}
	return visit("", t.Root)
}

// SkipDir, returned by a Walk function for a directory, skips its children.
var SkipDir = fmt.Errorf("skip this directory")
