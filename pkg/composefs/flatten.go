package composefs

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// node is one inode of an image that is being written. What it is stands where
// it came from: in a Tree, or in an fstree.Tree (see viewed).
type node struct {
	own    *Inode
	viewed *fstree.Inode
	// data is what viewed does not say of a regular file: its bytes if inline,
	// else its object's digest.
	data   string
	inline bool
	nlink  uint32

	parent uint32
	ents   span // its children in flat.ents
	xattrs span // its xattrs in flat.refs, in order of their full names

	slot      uint32 // of the inode in the image, in units of slotSize
	block     uint32 // number of its first data block
	blocks    uint32 // data blocks
	tail      uint32 // bytes of data behind the inode
	dirSize   uint32
	xattrSize uint32
	filter    uint32
	whiteout  bool // it is a whiteout and is written as a regular file
	compact   bool
	shared    uint8
}

// pos returns where the inode is in the image.
func (n *node) pos() int64 { return int64(n.slot) * slotSize }

type span struct{ from, to uint32 }

// entry is a directory entry of an image that is being written.
type entry struct {
	name string
	node uint32
}

// flat is the tree as an image has it: breadth-first, with the xattrs that make
// overlayfs see it as composefs does.
type flat struct {
	nodes   []node
	ents    []entry
	refs    []uint32 // into xattrs
	version int
	ostree  bool // what is viewed is the tree of an ostree commit
	stub    Inode
	xattrTable
}

// flatten checks a tree and lays it out breadth-first.
func flatten(src Source, o ImageOptions) (*flat, error) {
	f := &flat{version: o.MinVersion}
	root, err := src.begin(f)
	if err != nil {
		return nil, err
	}
	top := f.inode(&root)
	if !top.IsDir() {
		return nil, fmt.Errorf("the root is no directory")
	}
	f.stub = Inode{
		Mode: unix.S_IFCHR | 0o644, Nlink: 1, UID: top.UID, GID: top.GID,
		MtimeSec: top.MtimeSec, MtimeNsec: top.MtimeNsec,
	}
	if label, ok := top.Xattrs.Get(xattrSELinux); ok {
		f.stub.Xattrs = new(fstree.Tree).Intern([]fstree.Xattr{{Name: xattrSELinux, Value: label}})
	}
	inodes, external := src.count()
	f.nodes = make([]node, 0, inodes+len(stubNames))
	f.ents = make([]entry, 0, inodes+len(stubNames))
	f.refs = make([]uint32, 0, inodes+2*external+len(stubNames))
	f.begin(f, 2*external+64)
	if err := f.queue(src, root); err != nil {
		return nil, err
	}
	if f.version < o.MaxVersion && slices.ContainsFunc(f.nodes, func(n node) bool { return n.whiteout }) {
		f.version = o.MaxVersion
	}
	for i := range f.nodes {
		if err := f.setXattrs(uint32(i)); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path(uint32(i)), err)
		}
	}
	f.end()
	return f, nil
}

func (n *node) isDir() bool {
	if n.own != nil {
		return n.own.IsDir()
	}
	return n.viewed.IsDir()
}

func (n *node) xattrSet() *fstree.Xattrs {
	if n.own != nil {
		return n.own.Xattrs
	}
	return n.viewed.Xattrs
}

// source is what tells the inodes of nodes apart.
func (n *node) source() inodeKey { return inodeKey{n.own, n.viewed} }

type inodeKey struct {
	own    *Inode
	viewed *fstree.Inode
}

// inode returns the inode of a node, without its children.
func (f *flat) inode(n *node) Inode {
	if n.own != nil {
		return *n.own
	}
	v := n.viewed
	out := Inode{
		Mode: v.Mode, UID: v.UID, GID: v.GID, Nlink: n.nlink, Rdev: v.Rdev,
		MtimeSec: v.MtimeSec, MtimeNsec: v.MtimeNsec, Xattrs: v.Xattrs,
	}
	if f.ostree {
		out.MtimeSec, out.MtimeNsec = 0, 0
	}
	switch v.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		out.Payload, out.Size = v.Target, uint64(len(v.Target))
	case unix.S_IFREG:
		switch out.Size = uint64(v.Size); {
		case out.Size == 0:
		case n.inline:
			out.Content = n.data
		case f.ostree:
			out.Digest, out.commit = Digest(n.data), v
		default:
			out.Digest, out.stored = Digest(n.data), true
		}
	}
	return out
}

// queue fills nodes and ents breadth-first from the root.
func (f *flat) queue(src Source, root node) error {
	type link struct {
		ent    uint32
		target inodeKey
	}
	var links []link
	f.nodes = append(f.nodes, root)
	for i := 0; i < len(f.nodes); i++ {
		if n := f.nodes[i]; n.own != &f.stub {
			in := f.inode(&n)
			if err := in.check(); err != nil {
				return fmt.Errorf("%s: %w", f.path(uint32(i)), err)
			}
		}
		if !f.nodes[i].isDir() {
			continue
		}
		f.nodes[i].ents.from = uint32(len(f.ents))
		add := func(name string, child node) {
			f.ents = append(f.ents, entry{name, uint32(len(f.nodes))})
			child.parent = uint32(i)
			if child.own != &f.stub {
				in := f.inode(&child)
				child.whiteout = in.isWhiteout()
			}
			f.nodes = append(f.nodes, child)
		}
		stubs := 0
		stubsBefore := func(name string) {
			for ; i == 0 && stubs < 256 && stubNames[stubs] < name; stubs++ {
				add(stubNames[stubs], node{own: &f.stub})
			}
		}
		last, first := "", true
		dir := f.nodes[i] // nodes grow
		err := src.children(&dir, func(name string, child node, further bool) error {
			if err := checkName(name); err != nil {
				return fmt.Errorf("%s: %w", f.path(uint32(i)), err)
			}
			if !first && last >= name {
				return fmt.Errorf("%s: the names %q and %q are out of order", f.path(uint32(i)), last, name)
			}
			last, first = name, false
			stubsBefore(name)
			if stubs < 256 && stubNames[stubs] == name {
				stubs++
			}
			if !further {
				add(name, child)
				return nil
			}
			if child.isDir() {
				return fmt.Errorf("%s: %q is a hard link to a directory", f.path(uint32(i)), name)
			}
			links = append(links, link{uint32(len(f.ents)), child.source()})
			f.ents = append(f.ents, entry{name: name})
			return nil
		}, func(name string) string { return strings.TrimPrefix(f.path(uint32(i))+"/"+name, "/") })
		if err != nil {
			return err
		}
		stubsBefore("\xff")
		f.nodes[i].ents.to = uint32(len(f.ents))
	}
	if len(links) == 0 {
		return nil
	}
	targets := make(map[inodeKey]uint32, len(links))
	for _, l := range links {
		targets[l.target] = 0
	}
	for i := range f.nodes {
		if _, ok := targets[f.nodes[i].source()]; ok {
			targets[f.nodes[i].source()] = uint32(i)
		}
	}
	for _, l := range links {
		target := targets[l.target]
		if target == 0 {
			return fmt.Errorf("the hard link %q leads to no inode of the tree", f.ents[l.ent].name)
		}
		f.ents[l.ent].node = target
	}
	return nil
}

// stubNames are the top directories of an object store. Each image has them as
// whiteouts in the root, so that the store does not show through.
var stubNames = func() (names [256]string) {
	for i := range names {
		names[i] = fmt.Sprintf("%02x", i)
	}
	return names
}()

// path returns the path of a node for messages.
func (f *flat) path(i uint32) string {
	var names []string
	for i != 0 {
		p := f.nodes[i].parent
		s := f.nodes[p].ents
		if s.to == 0 {
			s.to = uint32(len(f.ents))
		}
		for _, e := range f.ents[s.from:s.to] {
			if e.node == i {
				names = append(names, e.name)
				break
			}
		}
		i = p
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// setXattrs gives node i the xattrs that it has in the image: its own, with
// overlayfs's escaped, and those by which overlayfs finds its bytes.
func (f *flat) setXattrs(i uint32) error {
	n := &f.nodes[i]
	in := f.inode(n)
	from := len(f.refs)
	size := 0
	for _, x := range in.Xattrs.All() {
		if err := checkXattr(x.Name, x.Value); err != nil {
			return err
		}
		size += xattrCost(x.Name, len(x.Value))
	}
	f.refs = append(f.refs, f.ownXattrs(n)...)
	own := size
	if in.External() {
		size += f.setObject(nameMetacopy, i)
		if in.stored || in.commit != nil || in.Payload != "" {
			size += f.setObject(nameRedirect, i)
		}
	}
	if n.whiteout {
		size += f.set(from, escapedWhiteout, "")
		size += f.set(from, userWhiteout, "")
	}
	if in.IsDir() && slices.ContainsFunc(f.ents[n.ents.from:n.ents.to], func(e entry) bool {
		child := &f.nodes[e.node]
		return child.whiteout && child.parent == i
	}) {
		size += f.set(from, escapedHolder, "")
		size += f.set(from, userHolder, "")
		if f.version >= 1 {
			size += f.set(from, escapedOpaque, "x")
			size += f.set(from, userOpaque, "x")
		}
	}
	if i == 0 {
		size += f.set(from, xattrOpaque, "y")
	}
	if size > 0 && xattrHeader+size > maxXattrs {
		return fmt.Errorf("xattrs of %d bytes, the limit is %d", xattrHeader+size, maxXattrs)
	}
	n.xattrs = span{uint32(from), uint32(len(f.refs))}
	if size != own {
		f.sortRefs(f.refs[from:])
	}
	for _, r := range f.refs[from:] {
		f.xattrs[r].uses++
	}
	return nil
}
