package composefs

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// readTree reads the directories breadth-first from the root, which is the
// order in which versions 0 and 1 number the inodes, then takes off what
// composefs added.
func (r *imageReader) readTree() error {
	root, err := r.inode(r.rootNid)
	if err != nil {
		return err
	}
	if !root.IsDir() {
		return errors.New("the root is no directory")
	}
	root.placed = true
	r.tree.Root = root.Inode
	queue := []*stored{root}
	dirs := []*stored{root}
	for i := 0; i < len(queue); i++ {
		dir := queue[i]
		if !dir.IsDir() {
			continue
		}
		children, err := r.entries(dir, uint32(len(queue)))
		if err != nil {
			return fmt.Errorf("directory with inode number %d: %w", dir.ino, err)
		}
		queue = append(queue, children...)
		for _, c := range children {
			if c.IsDir() {
				dirs = append(dirs, c)
			}
		}
	}
	r.placeLinked(r.tree.Root)
	for _, n := range r.inodes {
		if n.External() {
			if err := n.raw.external(n.Inode); err != nil {
				return fmt.Errorf("inode number %d: %w", n.ino, err)
			}
		}
		n.Xattrs = r.plainXattrs(n.raw)
	}
	if r.version < 2 {
		r.dropStubs(root)
		r.restoreWhiteouts(dirs)
	}
	return nil
}

// entries gives a directory its children and returns those that have their own
// entry here; next is the number of the next inode in breadth-first order.
func (r *imageReader) entries(dir *stored, next uint32) ([]*stored, error) {
	var own []*stored
	last := ""
	for _, block := range dir.dirents {
		list, err := direntsOf(block)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if e.name <= last {
				return nil, fmt.Errorf("the name %q stands after %q", e.name, last)
			}
			last = e.name
			if e.name == "." || e.name == ".." {
				continue
			}
			if err := checkName(e.name); err != nil {
				return nil, err
			}
			child, err := r.inode(e.nid)
			if err != nil {
				return nil, err
			}
			link := child.placed || !child.IsDir() && (r.version == 2 || child.ino != next+uint32(len(own)))
			if link && child.IsDir() {
				return nil, fmt.Errorf("%q is a directory with two names", e.name)
			}
			if link {
				r.linked[child.Inode] = true
			} else {
				child.placed = true
				if child.pathLen = dir.pathLen + 1 + len(e.name); child.pathLen > maxPath {
					return nil, fmt.Errorf("a path longer than %d bytes", maxPath)
				}
				own = append(own, child)
			}
			dir.Entries = append(dir.Entries, Dirent{Name: e.name, Inode: child.Inode, Link: link})
		}
	}
	dir.dirents = nil
	return own, nil
}

// placeLinked makes the first entry, in the order of Walk, the own one of each
// inode that has none yet: all files of version 2, and of images whose inode
// numbers say nothing.
func (r *imageReader) placeLinked(root *Inode) {
	placed := make(map[*Inode]bool)
	missing := false
	for _, n := range r.inodes {
		missing = missing || !n.placed
	}
	if !missing {
		return
	}
	for _, n := range r.inodes {
		if n.placed {
			placed[n.Inode] = true
		}
	}
	var visit func(n *Inode)
	visit = func(n *Inode) {
		for i := range n.Entries {
			e := &n.Entries[i]
			if e.Link && !placed[e.Inode] {
				placed[e.Inode] = true
				e.Link = false
			}
			if e.Inode.IsDir() {
				visit(e.Inode)
			}
		}
	}
	visit(root)
}

// dropStubs takes the whiteouts of the object store's directories out of the
// root. composefs makes no hard links to them.
func (r *imageReader) dropStubs(root *stored) {
	root.Entries = slices.DeleteFunc(root.Entries, func(e Dirent) bool {
		return !e.Link && !r.linked[e.Inode] && e.Inode.isWhiteout() && slices.Contains(stubNames[:], e.Name)
	})
}

// restoreWhiteouts makes escaped whiteouts character devices again.
func (r *imageReader) restoreWhiteouts(dirs []*stored) {
	var byInode map[*Inode]*stored
	for _, dir := range dirs {
		if !dir.raw.has(escapedHolder, userHolder) {
			continue
		}
		if byInode == nil {
			byInode = make(map[*Inode]*stored, len(r.inodes))
			for _, n := range r.inodes {
				byInode[n.Inode] = n
			}
		}
		found := false
		for _, e := range dir.Entries {
			n := byInode[e.Inode]
			if e.Link || !n.IsRegular() || n.Size != 0 || !n.raw.has(escapedWhiteout, userWhiteout) {
				continue
			}
			found = true
			n.Mode = unix.S_IFCHR | n.Mode&^unix.S_IFMT
			n.Xattrs = r.restored(n.raw, escapedWhiteout, userWhiteout)
		}
		if !found {
			continue
		}
		added := []string{escapedHolder, userHolder}
		if r.version == 1 {
			added = append(added, escapedOpaque, userOpaque)
		}
		dir.Xattrs = r.restored(dir.raw, added...)
	}
}
