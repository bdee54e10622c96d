package composefs

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// node is one inode of an image that is being written.
type node struct {
	in     *Inode
	parent uint32
	ents   span // its children in flat.ents
	xattrs span // its xattrs in flat.refs, in order of their full names

	slot      uint32 // of the inode in the image, in units of slotSize
	block     uint32 // number of its first data block
	blocks    uint32 // data blocks
	tail      uint32 // bytes of data behind the inode
	dirSize   uint64
	xattrSize uint32
	filter    uint32
	whiteout  bool // in is a whiteout and is written as a regular file
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
	stub    Inode
	xattrTable
}

// flatten checks t and lays it out breadth-first.
func flatten(t *Tree, o ImageOptions) (*flat, error) {
	f := &flat{version: o.MinVersion}
	if t.Root == nil || !t.Root.IsDir() {
		return nil, fmt.Errorf("the root is no directory")
	}
	f.stub = Inode{
		Mode: unix.S_IFCHR | 0o644, Nlink: 1, UID: t.Root.UID, GID: t.Root.GID,
		MtimeSec: t.Root.MtimeSec, MtimeNsec: t.Root.MtimeNsec,
	}
	if label, ok := t.Root.Xattrs.Get(xattrSELinux); ok {
		f.stub.Xattrs = new(fstree.Tree).Intern([]fstree.Xattr{{Name: xattrSELinux, Value: label}})
	}
	inodes, external := count(t.Root)
	f.nodes = make([]node, 0, inodes+len(stubNames))
	f.ents = make([]entry, 0, inodes+len(stubNames))
	f.refs = make([]uint32, 0, inodes+2*external+len(stubNames))
	f.begin(f, 2*external+64)
	if err := f.queue(t.Root); err != nil {
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

// count returns about how many inodes are below a directory, and how many of
// them are external files.
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

// queue fills nodes and ents breadth-first from the root.
func (f *flat) queue(root *Inode) error {
	type link struct {
		ent    uint32
		target *Inode
	}
	var links []link
	f.nodes = append(f.nodes, node{in: root})
	for i := 0; i < len(f.nodes); i++ {
		n := f.nodes[i].in
		if n != &f.stub {
			if err := n.check(); err != nil {
				return fmt.Errorf("%s: %w", f.path(uint32(i)), err)
			}
		}
		if !n.IsDir() {
			continue
		}
		f.nodes[i].ents.from = uint32(len(f.ents))
		add := func(name string, child *Inode) {
			f.ents = append(f.ents, entry{name, uint32(len(f.nodes))})
			f.nodes = append(f.nodes, node{in: child, parent: uint32(i), whiteout: child != &f.stub && child.isWhiteout()})
		}
		stubs := 0
		stubsBefore := func(name string) {
			for ; i == 0 && stubs < 256 && stubNames[stubs] < name; stubs++ {
				add(stubNames[stubs], &f.stub)
			}
		}
		for k, e := range n.Entries {
			if err := checkName(e.Name); err != nil {
				return fmt.Errorf("%s: %w", f.path(uint32(i)), err)
			}
			if k > 0 && n.Entries[k-1].Name >= e.Name {
				return fmt.Errorf("%s: the names %q and %q are out of order", f.path(uint32(i)), n.Entries[k-1].Name, e.Name)
			}
			stubsBefore(e.Name)
			if stubs < 256 && stubNames[stubs] == e.Name {
				stubs++
			}
			if !e.Link {
				add(e.Name, e.Inode)
				continue
			}
			if e.Inode.IsDir() {
				return fmt.Errorf("%s: %q is a hard link to a directory", f.path(uint32(i)), e.Name)
			}
			links = append(links, link{uint32(len(f.ents)), e.Inode})
			f.ents = append(f.ents, entry{name: e.Name})
		}
		stubsBefore("\xff")
		f.nodes[i].ents.to = uint32(len(f.ents))
	}
	if len(links) == 0 {
		return nil
	}
	targets := make(map[*Inode]uint32, len(links))
	for _, l := range links {
		targets[l.target] = 0
	}
	for i := range f.nodes {
		if _, ok := targets[f.nodes[i].in]; ok {
			targets[f.nodes[i].in] = uint32(i)
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
	from := len(f.refs)
	size := 0
	for _, x := range n.in.Xattrs.All() {
		if err := checkXattr(x.Name, x.Value); err != nil {
			return err
		}
		size += xattrCost(x.Name, len(x.Value))
	}
	f.refs = append(f.refs, f.ownXattrs(n)...)
	own := size
	if n.in.External() {
		size += f.setObject(nameMetacopy, i)
		if n.in.stored || n.in.Payload != "" {
			size += f.setObject(nameRedirect, i)
		}
	}
	if n.whiteout {
		size += f.set(from, escapedWhiteout, "")
		size += f.set(from, userWhiteout, "")
	}
	if n.in.IsDir() && slices.ContainsFunc(f.ents[n.ents.from:n.ents.to], func(e entry) bool {
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
