package ostree

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Whiteouts as layer archives and ostree-ext's layer commits spell them.
const (
	ociWhiteout = ".wh."
	ociOpaque   = ".wh..wh..opq"
)

// layerTree is the tree of a derived layer's commit.
type layerTree struct {
	tree    *fstree.Tree
	partial bool // a top-level path was left out that another image might keep
}

// layerTree builds the tree of a derived layer's commit as ostree-ext has it:
// the layer alone, /etc as /usr/etc, whiteouts as files, and the directories
// that it does not list as `ostree commit --tar-autocreate-parents` makes
// them. below finds the target of a hard link that an earlier layer brought.
// Labels are those of p, which the layer's image was prepared to.
func (p *Prepared) layerTree(l *fstree.Layer, below func(path string) *fstree.Inode) (*layerTree, error) {
	b := layerBuilder{tree: fstree.New(), all: p.AllTopLevels, targets: linkTargets(l)}
	b.finisher = finisher{tree: b.tree, known: p.Tree, labels: p.layerLabels(), filesDone: true}
	for e := range l.All() {
		if err := b.entry(&e, below); err != nil {
			return nil, err
		}
	}
	b.finisher.meta(b.tree.Root, "/")
	if err := b.finisher.dir(b.tree.Root, "/"); err != nil {
		return nil, err
	}
	b.tree.Freeze()
	return &layerTree{b.tree, b.partial}, nil
}

// layerLabels looks labels up in the prepared tree before it asks the policy:
// nearly every path of a layer is in it.
func (p *Prepared) layerLabels() Labeler {
	if p.Labels == nil {
		return nil
	}
	return knownLabels{p}
}

type knownLabels struct{ p *Prepared }

func (k knownLabels) Label(path string, mode uint32) (string, bool) {
	if n := k.p.Tree.Lookup(path); n != nil && n.Type() == mode&unix.S_IFMT {
		if v, ok := n.Xattrs.Get(xattrSELinux); ok && strings.HasSuffix(v, "\x00") {
			return v[:len(v)-1], true
		}
	}
	return k.p.Labels.Label(path, mode)
}

type layerBuilder struct {
	tree     *fstree.Tree
	finisher finisher
	partial  bool
	all      bool                     // keep every top-level path
	targets  map[string]*fstree.Inode // hard link targets of the layer by OCI path
}

func linkTargets(l *fstree.Layer) map[string]*fstree.Inode {
	targets := map[string]*fstree.Inode{}
	if !l.HasLinks() {
		return targets
	}
	for e := range l.All() {
		if e.Kind == fstree.Hardlink {
			targets[e.LinkTo] = nil
		}
	}
	return targets
}

func (b *layerBuilder) entry(e *fstree.Entry, below func(string) *fstree.Inode) error {
	n, path := e.Inode, e.Path
	switch e.Kind {
	case fstree.Hardlink:
		if n = b.targets[e.LinkTo]; n == nil {
			n = below(e.LinkTo)
		}
		if n == nil {
			return fault.New(fault.Corrupt, "", "layer entry %q: hard link to %q, which does not exist", e.Path, e.LinkTo)
		}
	case fstree.Whiteout:
		n, path = whiteoutFile(), joinPath(parentPath(path), ociWhiteout+baseName(path))
	case fstree.Opaque:
		n, path = whiteoutFile(), joinPath(path, ociOpaque)
	}
	if _, linked := b.targets[path]; linked {
		b.targets[path] = n
	}
	path, keep := b.place(path, n)
	if !keep {
		return nil
	}
	if path == "" {
		setDirMeta(b.tree.Root, n)
		return nil
	}
	parent := b.parent(parentPath(path), n)
	name := baseName(path)
	if old := parent.Lookup(name); n.IsDir() && old != nil && old.IsDir() {
		setDirMeta(old, n)
		return nil
	}
	if !n.IsDir() {
		// At once, so that the entries' own inodes do not pile up.
		if err := storable("/"+path, name, n); err != nil {
			return err
		}
		n = b.finisher.file(n, "/"+path)
	}
	parent.Set(strings.Clone(name), n) // not the whole path
	return nil
}

// place returns where in the commit an entry goes, and whether it does.
func (b *layerBuilder) place(path string, n *fstree.Inode) (string, bool) {
	top, rest, deep := strings.Cut(path, "/")
	switch {
	case top == "" || top == "usr" || top == "var":
	case top == "etc":
		return shapedPath(path), true
	case excludedTopLevels[top]:
		return path, !deep
	case !b.all:
		b.partial = true
		return "", false
	case deep && strings.HasPrefix(path, repoObjects+"/") && rest != "":
		return path, !(n.IsRegular() && n.MtimeSec > 0)
	}
	return path, true
}

// parent returns the directory dir. Where a part of it is missing libostree
// gives every directory on the way, those that exist too, the owner of the
// entry and mode 0755.
func (b *layerBuilder) parent(dir string, of *fstree.Inode) *fstree.Inode {
	if n := b.tree.Lookup(dir); n != nil && n.IsDir() {
		return n
	}
	made := fstree.NewDir(0o755)
	made.UID, made.GID = of.UID, of.GID
	n := b.tree.Root
	setDirMeta(n, made)
	for name := range strings.SplitSeq(dir, "/") {
		child := n.Lookup(name)
		if child == nil || !child.IsDir() {
			child = fstree.NewDir(0o755)
			n.Set(strings.Clone(name), child)
		}
		setDirMeta(child, made)
		n = child
	}
	return n
}

func setDirMeta(n, from *fstree.Inode) {
	n.Mode, n.UID, n.GID, n.Xattrs = from.Mode, from.UID, from.GID, from.Xattrs
	n.MtimeSec, n.MtimeNsec = from.MtimeSec, from.MtimeNsec
}

func whiteoutFile() *fstree.Inode {
	return &fstree.Inode{Mode: unix.S_IFREG | 0o644, Content: fstree.EmptyDigest}
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func baseName(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// layerOf reverses layerTree: what a layer commit, ours or ostree-ext's, says
// in the words of its OCI layer. Labels are left out; times are lost.
func layerOf(t *fstree.Tree) (*fstree.Layer, error) {
	var l fstree.LayerBuilder
	err := t.Walk(func(path string, n *fstree.Inode) error {
		if rest, ok := strings.CutPrefix(path, "usr/etc"); ok && (rest == "" || rest[0] == '/') {
			path = path[len("usr/"):]
		}
		name := baseName(path)
		switch {
		case name == ociOpaque:
			l.Add(fstree.Entry{Kind: fstree.Opaque, Path: parentPath(path)})
		case !n.IsSymlink() && !n.IsDir() && strings.HasPrefix(name, ociWhiteout):
			if name == ociWhiteout {
				return fmt.Errorf("%q is a whiteout of nothing", path)
			}
			hidden := joinPath(parentPath(path), name[len(ociWhiteout):])
			l.Add(fstree.Entry{Kind: fstree.Whiteout, Path: hidden})
		default:
			bare := n.WithMeta(func(c *fstree.Inode) {
				c.Xattrs = t.Without(c.Xattrs, xattrSELinux)
			})
			l.Add(fstree.Entry{Kind: fstree.Add, Path: path, Inode: bare})
		}
		return nil
	})
	return l.Layer(), err
}
