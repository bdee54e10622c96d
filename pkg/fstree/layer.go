package fstree

import (
	"fmt"
	"strings"
)

// EntryKind says what a layer entry does to the tree below it.
type EntryKind uint8

// The kinds of layer entries (image-spec, layer.md).
const (
	Add      EntryKind = iota // Inode appears at Path
	Hardlink                  // Path becomes another name of LinkTo
	Whiteout                  // Path of the lower layers disappears
	Opaque                    // the lower layers' children of directory Path disappear
)

// Entry is one entry of a layer. Paths are slash-separated, relative to the
// root, clean, and never contain "." or ".." elements; "" is the root.
type Entry struct {
	Path   string
	LinkTo string // Hardlink only
	Inode  *Inode // Add only; directories are empty
	Kind   EntryKind
}

// Layer is what one OCI layer says, in the order of its archive.
type Layer struct {
	Entries []Entry
}

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
	for _, e := range l.Entries {
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
	own := make(map[*Inode]bool) // symlinks that l itself brought
	for _, e := range l.Entries {
		if e.Kind != Add && e.Kind != Hardlink {
			continue
		}
		if e.Path == "" {
			if e.Kind != Add || !e.Inode.IsDir() {
				return &LayerError{"/", "the root must be a directory"}
			}
			t.Root.setMeta(t, e.Inode)
			continue
		}
		dir, name := splitPath(e.Path)
		parent, err := t.makeParents(dir, own)
		if err != nil {
			return &LayerError{e.Path, err.Error()}
		}
		if e.Kind == Hardlink {
			n := t.Lookup(e.LinkTo)
			switch {
			case n == nil:
				return &LayerError{e.Path, fmt.Sprintf("hard link to %q, which does not exist", e.LinkTo)}
			case n.IsDir():
				return &LayerError{e.Path, fmt.Sprintf("hard link to the directory %q", e.LinkTo)}
			}
			n.Linked = true
			parent.Set(name, n)
			continue
		}
		if old := parent.Lookup(name); e.Inode.IsDir() && old != nil && old.IsDir() {
			old.setMeta(t, e.Inode)
			continue
		}
		n := e.Inode.WithMeta(func(c *Inode) { c.Xattrs = t.Intern(c.Xattrs.All()) })
		if n.IsSymlink() {
			own[n] = true
		}
		parent.Set(name, n)
	}
	return nil
}

func (n *Inode) setMeta(t *Tree, from *Inode) {
	dir := n.dir
	*n = *from
	n.dir = dir
	n.Xattrs = t.Intern(from.Xattrs.All())
}

func (t *Tree) makeParents(dir string, own map[*Inode]bool) (*Inode, error) {
	n := t.Root
	if dir == "" {
		return n, nil
	}
	for name := range strings.SplitSeq(dir, "/") {
		child := n.Lookup(name)
		if child == nil || !child.IsDir() {
			if own[child] {
				return nil, fmt.Errorf("its path leads through %q, a symlink of the same layer", name)
			}
			child = NewDir(0o755)
			n.Set(name, child)
		}
		n = child
	}
	return n, nil
}

func splitPath(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}
