package fstree

import (
	"fmt"
	"strings"
)

// LayerError tells which entry of a layer cannot be applied and why.
type LayerError struct {
	Path   string
	Reason string
}

func (e *LayerError) Error() string { return fmt.Sprintf("layer entry %q: %s", e.Path, e.Reason) }

// Apply merges layer l over the tree. Whiteouts and opaque markers hide what
// lower layers left and nothing of l itself, wherever in l they stand. Of
// entries with the same path the last counts, but a directory over a directory
// keeps the children. A parent that l does not list is made 0755 root:root; a
// parent that a lower layer has as a symlink is replaced by a directory, as
// overlayfs would show it, while a path through a symlink of l itself is an
// error.
func (t *Tree) Apply(l *Layer) error {
	t.hide(l)
	a := applier{tree: t, own: make(map[*Inode]bool), sets: make(map[*Xattrs]*Xattrs)}
	for e := range l.All() {
		if e.Kind != Add && e.Kind != Hardlink {
			continue
		}
		if reason := a.entry(&e); reason != "" {
			return &LayerError{e.Path, reason}
		}
	}
	return nil
}

// hide applies the whiteouts and opaque markers of l.
func (t *Tree) hide(l *Layer) {
	if l.marks == 0 {
		return
	}
	for e := range l.All() {
		switch e.Kind {
		case Whiteout:
			dir, name := splitPath(e.Path)
			if parent := t.Lookup(dir); parent != nil {
				parent.Remove(name)
			}
		case Opaque:
			if n := t.Lookup(e.Path); n != nil && n.IsDir() {
				n.Clear()
			}
		}
	}
}

// applier adds the entries of one layer to a tree.
type applier struct {
	tree *Tree
	own  map[*Inode]bool     // symlinks that the layer itself brought
	sets map[*Xattrs]*Xattrs // the layer's, as the tree has them
}

// entry returns why it cannot be added, or "".
func (a *applier) entry(e *Entry) (reason string) {
	n := e.Inode
	if n != nil {
		n.Xattrs = a.xattrs(n.Xattrs)
	}
	if e.Path == "" {
		if n == nil || !n.IsDir() {
			return "the root must be a directory"
		}
		a.tree.Root.setMeta(n)
		return ""
	}
	dir, name := splitPath(e.Path)
	parent, link := a.parents(dir)
	if parent == nil {
		return fmt.Sprintf("its path leads through %q, a symlink of the same layer", link)
	}
	if e.Kind == Hardlink {
		n = a.tree.Lookup(e.LinkTo)
		switch {
		case n == nil:
			return fmt.Sprintf("hard link to %q, which does not exist", e.LinkTo)
		case n.IsDir():
			return fmt.Sprintf("hard link to the directory %q", e.LinkTo)
		}
		n.Linked = true
	} else if old := parent.Lookup(name); n.IsDir() && old != nil && old.IsDir() {
		old.setMeta(n)
		return ""
	} else if n.IsSymlink() {
		a.own[n] = true
	}
	parent.Set(strings.Clone(name), n) // not the whole path
	return ""
}

func (a *applier) xattrs(x *Xattrs) *Xattrs {
	out, ok := a.sets[x]
	if !ok {
		out = a.tree.Intern(x.All())
		a.sets[x] = out
	}
	return out
}

func (n *Inode) setMeta(from *Inode) {
	dir := n.dir
	*n = *from
	n.dir = dir
}

// parents returns the directory dir, or nil and the symlink that is in the way.
func (a *applier) parents(dir string) (n *Inode, link string) {
	n = a.tree.Root
	if dir == "" {
		return n, ""
	}
	for name := range strings.SplitSeq(dir, "/") {
		child := n.Lookup(name)
		if child == nil || !child.IsDir() {
			if a.own[child] {
				return nil, name
			}
			child = NewDir(0o755)
			n.Set(strings.Clone(name), child)
		}
		n = child
	}
	return n, ""
}

func splitPath(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}
