package ostree

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// Labeler says which SELinux label a path gets. The path is absolute, the mode
// carries the file type, the label has no trailing NUL; false means that the
// policy has none for it. *selinux.Policy is one.
type Labeler interface {
	Label(path string, mode uint32) (string, bool)
}

// OpenFunc opens a regular file's bytes by their sha256.
type OpenFunc func(fstree.Digest) (io.ReadCloser, error)

// PrepareOptions says what Prepare has to know beside the tree.
type PrepareOptions struct {
	// Base is the tree of the base commit of an ostree-chunked image, shaped
	// as the commit has it (/usr/etc), or nil for a plain image.
	Base *fstree.Tree
	// Derived says that the image has layers that are not ostree's. A plain
	// image has nothing else; Prepare then takes it as set.
	Derived bool
	// Layers are the derived layers in order. They serve only to give a
	// directory that no layer lists the owner that libostree gives it; may
	// be nil.
	Layers []*fstree.Layer
	// Open reads the few files that decide the shape: prepare-root.conf and
	// the SELinux policy.
	Open OpenFunc
}

// Prepared is a tree in the shape of an ostree commit.
type Prepared struct {
	Tree *fstree.Tree
	// Labels is the policy that labelled the tree, nil if labels were left as
	// they were.
	Labels Labeler
	// AllTopLevels says that paths outside /usr, /etc and /var were kept.
	AllTopLevels bool
	// Filtered counts, by the name that decided it, what was left out.
	Filtered map[string]int

	unchanged bool // it is the base commit's tree
}

// excludedTopLevels are mount points at run time. The directories stay, what
// an image has below them does not (ostree-ext, tar/write.rs).
var excludedTopLevels = map[string]bool{"run": true, "tmp": true, "proc": true, "sys": true, "dev": true}

// repoObjects is where an ostree-chunked image has its objects.
const repoObjects = "sysroot/ostree/repo"

// Prepare turns the merged tree of an OCI image into what ostree-ext would
// commit for it. The tree becomes Prepared.Tree: its directories are changed in
// place, and where there is no base that may share them its files too.
//
//   - /etc becomes /usr/etc. Where an image has both they are united, and /etc,
//     which is what a container of the image shows, wins.
//   - Children of /run, /tmp, /proc, /sys and /dev go; /var stays.
//   - Other top-level paths of derived layers go unless the base enables
//     composefs or root.transient; an image without a base keeps them.
//   - Empty /usr/etc/hostname and resolv.conf, which container builds leave
//     behind, go.
//   - Empty xattr values go and symlinks are 0777: a tree read from a disk, as
//     libostree reads it, has neither.
//   - If there are derived layers, everything is labelled by the policy of the
//     merged tree, if it has one.
//
// Device nodes, fifos and sockets outside the excluded directories are an
// error of kind Conflict, because libostree cannot store them.
func Prepare(tree *fstree.Tree, opts PrepareOptions) (*Prepared, error) {
	p := &Prepared{Tree: tree, AllTopLevels: true, Filtered: map[string]int{}}
	if opts.Base != nil {
		transient, err := overlayRoot(opts.Base, opts.Open)
		if err != nil {
			return nil, err
		}
		p.AllTopLevels = transient
	}
	if err := moveEtc(p.Tree); err != nil {
		return nil, err
	}
	p.filterTopLevels(opts.Base)
	ownImplicitDirs(p.Tree, opts.Layers, opts.Base)
	dropped := dropInjected(p.Tree)
	p.unchanged = opts.Base != nil && !opts.Derived && !dropped

	if opts.Base == nil || opts.Derived {
		policy, err := selinux.Load(treeReader{p.Tree, opts.Open})
		if err != nil {
			return nil, fault.New(fault.KindOf(err), "the image's SELinux policy cannot be used; rebuild the image or disable SELinux in its /etc/selinux/config",
				"read the image's SELinux policy: %w", err)
		}
		if policy != nil {
			p.Labels = policy
		}
	}
	if err := p.finish(opts.Base == nil); err != nil {
		return nil, err
	}
	if err := labelsFailed(p.Labels); err != nil {
		return nil, err
	}
	p.Tree.Freeze()
	return p, nil
}

func moveEtc(t *fstree.Tree) error {
	etc := t.Root.Lookup("etc")
	if etc == nil {
		return nil
	}
	if !etc.IsDir() {
		return fault.New(fault.Conflict, "rebuild the image so that /etc is a directory", "the image's /etc is not a directory")
	}
	usr := t.Root.Lookup("usr")
	if usr == nil {
		usr = fstree.NewDir(0o755)
		t.Root.Set("usr", usr)
	}
	if !usr.IsDir() {
		return fault.New(fault.Conflict, "rebuild the image so that /usr is a directory", "the image's /usr is not a directory")
	}
	t.Root.Remove("etc")
	if old := usr.Lookup("etc"); old != nil && old.IsDir() {
		unite(etc, old)
	}
	usr.Set("etc", etc)
	return nil
}

// unite adds to directory over what only directory under has.
func unite(over, under *fstree.Inode) {
	for _, e := range under.Entries() {
		switch mine := over.Lookup(e.Name); {
		case mine == nil:
			over.Set(e.Name, e.Inode)
		case mine.IsDir() && e.Inode.IsDir():
			unite(mine, e.Inode)
		}
	}
}

// filterTopLevels drops what an ostree root cannot show. What the base commit
// has stays as the base has it.
func (p *Prepared) filterTopLevels(base *fstree.Tree) {
	root := p.Tree.Root
	fromBase := func(name string) *fstree.Inode {
		if base == nil {
			return nil
		}
		return base.Root.Lookup(name)
	}
	var names []string
	for _, e := range root.Entries() {
		names = append(names, e.Name)
	}
	for _, name := range names {
		n, old := root.Lookup(name), fromBase(name)
		switch {
		case name == "usr" || name == "var":
		case excludedTopLevels[name]:
			if !n.IsDir() {
				continue
			}
			for _, c := range n.Entries() {
				if old == nil || old.Lookup(c.Name) == nil {
					p.Filtered[c.Name]++
				}
			}
			n.Clear()
			if old != nil && old.IsDir() {
				unite(n, cloneDir(old))
			}
		case p.AllTopLevels:
		case old == nil:
			p.Filtered[name]++
			root.Remove(name)
		default:
			root.Set(name, cloneDir(old))
		}
	}
	if base != nil && !p.AllTopLevels {
		for _, e := range base.Root.Entries() {
			if e.Name != "etc" && root.Lookup(e.Name) == nil {
				root.Set(e.Name, cloneDir(e.Inode))
			}
		}
	}
	p.dropRepoObjects(base)
}

// dropRepoObjects removes what derived layers rewrote of the base's own object
// files: the files they are hard links of carry the content.
func (p *Prepared) dropRepoObjects(base *fstree.Tree) {
	dir := p.Tree.Lookup(repoObjects)
	if dir == nil || !dir.IsDir() || (base != nil && base.Lookup(repoObjects) != nil) {
		return
	}
	if base != nil {
		p.Tree.Lookup("sysroot/ostree").Remove("repo")
		return
	}
	var visit func(n *fstree.Inode)
	visit = func(n *fstree.Inode) {
		var gone []string
		for _, e := range n.Entries() {
			switch {
			case e.Inode.IsDir():
				visit(e.Inode)
			case e.Inode.IsRegular() && e.Inode.MtimeSec > 0:
				gone = append(gone, e.Name)
			}
		}
		for _, name := range gone {
			n.Remove(name)
		}
	}
	visit(dir)
}

func cloneDir(n *fstree.Inode) *fstree.Inode {
	if !n.IsDir() {
		return n
	}
	return (&fstree.Tree{Root: n}).Clone().Root
}

// ownImplicitDirs gives directories that no layer lists the owner of the entry
// that made them necessary, as `ostree commit --tar-autocreate-parents` does.
func ownImplicitDirs(t *fstree.Tree, layers []*fstree.Layer, base *fstree.Tree) {
	type owner struct{ uid, gid uint32 }
	listed := map[string]bool{"": true}
	implicit := map[string]owner{}
	for _, l := range layers {
		for e := range l.All() {
			if e.Kind != fstree.Add {
				continue
			}
			if e.Inode.IsDir() {
				listed[e.Path] = true
				delete(implicit, e.Path)
			}
			for dir := parentPath(e.Path); !listed[dir]; dir = parentPath(dir) {
				if _, known := implicit[dir]; known || (base != nil && lookupShaped(base, dir) != nil) {
					break
				}
				implicit[dir] = owner{e.Inode.UID, e.Inode.GID}
			}
		}
	}
	for path, o := range implicit {
		if o.uid == 0 && o.gid == 0 {
			continue
		}
		if n := lookupShaped(t, path); n != nil && n.IsDir() {
			n.UID, n.GID = o.uid, o.gid
		}
	}
}

// lookupShaped looks an OCI path up in an ostree-shaped tree.
func lookupShaped(t *fstree.Tree, path string) *fstree.Inode { return t.Lookup(shapedPath(path)) }

// shapedPath returns where an OCI path is in an ostree commit.
func shapedPath(path string) string {
	if path == "etc" || strings.HasPrefix(path, "etc/") {
		return "usr/" + path
	}
	return path
}

func parentPath(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

func dropInjected(t *fstree.Tree) (dropped bool) {
	etc := t.Lookup("usr/etc")
	if etc == nil || !etc.IsDir() {
		return false
	}
	for _, name := range []string{"hostname", "resolv.conf"} {
		if n := etc.Lookup(name); n != nil && n.IsRegular() && n.Size == 0 {
			etc.Remove(name)
			dropped = true
		}
	}
	return dropped
}

// finish labels the tree and puts every inode into the form in which ostree
// stores it. owned says that the tree's files are in no other tree.
func (p *Prepared) finish(owned bool) error {
	f := finisher{tree: p.Tree, labels: p.Labels, owned: owned}
	f.meta(p.Tree.Root, "/")
	return f.dir(p.Tree.Root, "/")
}

// finisher labels inodes; those of the same xattrs and label share one set.
type finisher struct {
	tree   *fstree.Tree
	known  *fstree.Tree // may be nil: finished before, its inodes are taken where they are the same
	labels Labeler
	owned  bool // files may be changed in place

	filesDone bool // only directories are left
	cache     map[labelKey]*fstree.Xattrs
}

type labelKey struct {
	xattrs *fstree.Xattrs
	label  string
}

func (f *finisher) dir(n *fstree.Inode, path string) error {
	prefix := path
	if prefix != "/" {
		prefix += "/"
	}
	for _, e := range n.Entries() {
		child := e.Inode
		if f.filesDone && !child.IsDir() {
			continue
		}
		if err := storable(prefix+e.Name, e.Name, child); err != nil {
			return err
		}
		if child.IsDir() {
			f.meta(child, prefix+e.Name)
			if err := f.dir(child, prefix+e.Name); err != nil {
				return err
			}
			continue
		}
		if done := f.file(child, prefix+e.Name); done != child {
			n.Set(e.Name, done)
		}
	}
	return nil
}

// storable returns why libostree has no object for a file.
func storable(path, name string, n *fstree.Inode) error {
	if err := object.CheckName(name); err != nil {
		return fault.New(fault.Conflict, "rename it in the image", "%s: %w", path, err)
	}
	switch n.Type() {
	case unix.S_IFDIR, unix.S_IFREG:
		return nil
	case unix.S_IFLNK:
		if err := object.CheckTarget(n.Target); err != nil {
			return fault.New(fault.Conflict, "change it in the image", "%s: %w", path, err)
		}
		return nil
	}
	what := map[uint32]string{
		unix.S_IFCHR: "character device", unix.S_IFBLK: "block device",
		unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
	}[n.Type()]
	return fault.New(fault.Conflict, "remove it from the image, or create it at boot with systemd-tmpfiles",
		"%s is a %s, which an ostree repository cannot store", path, what)
}

// file returns what n becomes at path: n itself where nothing changes, or the
// same file of the tree that is known to have it.
func (f *finisher) file(n *fstree.Inode, path string) *fstree.Inode {
	mode, xattrs := f.final(n, path)
	if mode == n.Mode && xattrs == n.Xattrs {
		return n
	}
	if f.known != nil {
		k := f.known.Lookup(path)
		if k != nil && k.Mode == mode && k.UID == n.UID && k.GID == n.GID && k.Size == n.Size && k.Content == n.Content &&
			k.Target == n.Target && slices.Equal(k.Xattrs.All(), xattrs.All()) {
			return k
		}
	}
	if f.owned && !n.Linked {
		n.Mode, n.Xattrs = mode, xattrs
		return n
	}
	return n.WithMeta(func(c *fstree.Inode) { c.Mode, c.Xattrs = mode, xattrs })
}

// meta changes n, which belongs to f.tree alone.
func (f *finisher) meta(n *fstree.Inode, path string) { n.Mode, n.Xattrs = f.final(n, path) }

func (f *finisher) final(n *fstree.Inode, path string) (mode uint32, xattrs *fstree.Xattrs) {
	mode = n.Mode
	if n.IsSymlink() {
		mode = unix.S_IFLNK | 0o777
	}
	label := ""
	if f.labels != nil {
		if path == "/proc" { // libostree's own exception
			path = "/mnt"
		}
		if l, ok := f.labels.Label(path, mode); ok {
			label = l
		}
	}
	return mode, f.xattrs(n.Xattrs, label)
}

// labelsFailed returns what made a policy stop answering.
func labelsFailed(l Labeler) error {
	if l, ok := l.(interface{ Err() error }); ok {
		return l.Err()
	}
	return nil
}

const xattrSELinux = "security.selinux"

func (f *finisher) xattrs(x *fstree.Xattrs, label string) *fstree.Xattrs {
	key := labelKey{x, label}
	if out, ok := f.cache[key]; ok {
		return out
	}
	var list []fstree.Xattr
	for _, a := range x.All() {
		if a.Value == "" || (a.Name == xattrSELinux && label != "") {
			continue
		}
		list = append(list, a)
	}
	if label != "" {
		list = append(list, fstree.Xattr{Name: xattrSELinux, Value: label + "\x00"})
	}
	out := x
	if !slices.Equal(list, x.All()) {
		out = f.tree.Intern(list)
	}
	if f.cache == nil {
		f.cache = map[labelKey]*fstree.Xattrs{}
	}
	f.cache[key] = out
	return out
}

// treeReader reads files of an ostree-shaped tree as a root would show them,
// with /etc where a path has no /usr/etc in front.
type treeReader struct {
	tree *fstree.Tree
	open OpenFunc
}

// maxPolicyFile bounds what is read into memory of an image.
const maxPolicyFile = 64 << 20

// ReadFile returns a file's bytes, following symlinks inside the tree. Its
// error is fs.ErrNotExist for a path that leads nowhere.
func (r treeReader) ReadFile(path string) ([]byte, error) {
	path = strings.TrimPrefix(path, "/")
	n := r.tree.Resolve(path)
	if n == nil {
		n = r.tree.Resolve(shapedPath(path))
	}
	return readInode(path, n, r.open)
}

func readInode(path string, n *fstree.Inode, open OpenFunc) ([]byte, error) {
	if n == nil {
		return nil, fmt.Errorf("read %s in the image: %w", path, errNotExist)
	}
	if !n.IsRegular() {
		return nil, fault.New(fault.Conflict, "", "read %s in the image: not a regular file", path)
	}
	if n.Size > maxPolicyFile {
		return nil, fault.New(fault.Corrupt, "", "read %s in the image: %d bytes are more than such a file can have", path, n.Size)
	}
	if n.Size == 0 {
		return nil, nil
	}
	r, err := open(n.Content)
	if err != nil {
		return nil, fmt.Errorf("read %s in the image: %w", path, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxPolicyFile))
	if err != nil {
		return nil, fmt.Errorf("read %s in the image: %w", path, err)
	}
	return data, nil
}
