package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// PrepareOptions says what Prepare has to know beside the tree.
type PrepareOptions struct {
	// Boot empties /boot and /sysroot and labels the tree by its own policy:
	// what a deployment boots. Without it the tree is what a container of the
	// image shows.
	Boot bool
	// KeepUser keeps user.* xattrs, as images that were sealed for it want.
	KeepUser bool
	// Own gives the tree away: it is changed in place and is what Prepare
	// returns. Nothing of it may be in another tree.
	Own bool
	// Open opens a regular file's bytes by their sha256; the SELinux policy is
	// read with it. Boot needs it.
	Open func(fstree.Digest) (io.ReadCloser, error)
}

const xattrCapability = "security.capability"

// Prepare turns the merged tree of an OCI image into that of which composefs-rs
// (0.7 to 0.9, create_filesystem and transform_for_boot) would make an image.
// The given tree is not changed, unless Own says that it may be.
//
//   - The root has the owner, mode, time and xattrs of /usr: layers and
//     builders disagree on its own.
//   - /run is empty and has the time of /usr: builders leave mount points there.
//   - Of xattrs only security.capability stays, and user.* where asked for.
//   - For booting, /boot, which may hold a UKI that names this very image, and
//     /sysroot are empty and have the seconds of /usr's time.
//   - For booting, everything is labelled by the policy in /etc/selinux; without
//     one there are no labels. A file of which two names want different labels
//     becomes two.
//
// /etc stays where it is. /usr, and for booting /boot and /sysroot, must exist.
func Prepare(tree *fstree.Tree, o PrepareOptions) (*fstree.Tree, error) {
	t := tree
	if !o.Own {
		t = tree.Clone()
	}
	usr, err := needDir(t, "usr")
	if err != nil {
		return nil, err
	}
	p := &preparer{tree: t, keepUser: o.KeepUser, own: o.Own}
	root := t.Root
	root.Mode, root.UID, root.GID, root.Xattrs = usr.Mode, usr.UID, usr.GID, usr.Xattrs
	root.MtimeSec, root.MtimeNsec = usr.MtimeSec, usr.MtimeNsec
	if run := root.Lookup("run"); run != nil {
		if !run.IsDir() {
			return nil, notDir("run")
		}
		run.MtimeSec, run.MtimeNsec = usr.MtimeSec, usr.MtimeNsec
		run.Clear()
	}
	if o.Boot {
		// The policy is read first: nothing says that it is not below /boot.
		if p.labels, err = loadPolicy(t, o.Open); err != nil {
			return nil, err
		}
		for _, name := range []string{"boot", "sysroot"} {
			dir, err := needDir(t, name)
			if err != nil {
				return nil, err
			}
			dir.MtimeSec = usr.MtimeSec
			dir.Clear()
		}
	}
	p.meta(root, "/")
	p.children(root, "/")
	if err := p.labels.err(); err != nil {
		return nil, err
	}
	t.Freeze()
	return t, nil
}

func needDir(t *fstree.Tree, name string) (*fstree.Inode, error) {
	n := t.Root.Lookup(name)
	if n == nil {
		return nil, fault.New(fault.Conflict, "rebuild the image with a directory /"+name, "the image has no /%s", name)
	}
	if !n.IsDir() {
		return nil, notDir(name)
	}
	return n, nil
}

func notDir(name string) error {
	return fault.New(fault.Conflict, "rebuild the image so that /"+name+" is a directory", "the image's /%s is not a directory", name)
}

type preparer struct {
	tree     *fstree.Tree
	keepUser bool
	own      bool // files may be changed in place
	labels   *labeler
	done     map[*fstree.Inode]*fstree.Inode // files of several names, by what they were
	cache    map[xattrsKey]*fstree.Xattrs
}

type xattrsKey struct {
	xattrs *fstree.Xattrs
	label  string
}

// children walks in bytewise order of names: the first name of a file decides
// which of two labels the shared inode gets.
func (p *preparer) children(n *fstree.Inode, path string) {
	prefix := path
	if prefix != "/" {
		prefix += "/"
	}
	for _, e := range n.Entries() {
		child := e.Inode
		if child.IsDir() {
			p.meta(child, prefix+e.Name)
			p.children(child, prefix+e.Name)
			continue
		}
		if p.own && !child.Linked {
			p.meta(child, prefix+e.Name)
			continue
		}
		made := child.WithMeta(func(c *fstree.Inode) { p.meta(c, prefix+e.Name) })
		if child.Linked {
			if p.done == nil {
				p.done = make(map[*fstree.Inode]*fstree.Inode)
			}
			if first := p.done[child]; first == nil {
				p.done[child] = made
			} else if first.Xattrs == made.Xattrs {
				made = first
			}
		}
		n.Set(e.Name, made)
	}
}

// meta changes n, which belongs to p.tree alone.
func (p *preparer) meta(n *fstree.Inode, path string) {
	label := ""
	if p.labels != nil {
		if l, ok := p.labels.label(path, n.Mode); ok {
			label = l
		}
	}
	key := xattrsKey{n.Xattrs, label}
	x, ok := p.cache[key]
	if !ok {
		list := slices.DeleteFunc(slices.Clone(n.Xattrs.All()), func(a fstree.Xattr) bool {
			return a.Name != xattrCapability && (!p.keepUser || !strings.HasPrefix(a.Name, "user."))
		})
		if label != "" {
			list = append(list, fstree.Xattr{Name: xattrSELinux, Value: label})
		}
		x = p.tree.Intern(list)
		if p.cache == nil {
			p.cache = make(map[xattrsKey]*fstree.Xattrs)
		}
		p.cache[key] = x
	}
	n.Xattrs = x
}

// labeler answers as composefs-rs does: of all rules that match, the last
// counts. libselinux, and pkg/selinux with it, prefers rules for one path alone.
// The two differ at most for what such a rule names, so just that is looked up
// in a policy that has patterns only, which is slower.
type labeler struct {
	policy, patterns *selinux.Policy
	names            map[string]bool // last elements of the paths with a rule of their own
}

func (l *labeler) label(p string, mode uint32) (string, bool) {
	if l.names[path.Base(p)] {
		return l.patterns.Label(p, mode)
	}
	return l.policy.Label(p, mode)
}

func (l *labeler) err() error {
	if l == nil {
		return nil
	}
	return errors.Join(l.policy.Err(), l.patterns.Err())
}

// loadPolicy returns the policy that the tree is labelled by, or nil.
func loadPolicy(t *fstree.Tree, open func(fstree.Digest) (io.ReadCloser, error)) (*labeler, error) {
	l := &labeler{names: make(map[string]bool)}
	var err error
	if l.policy, err = selinux.Load(policyReader{tree: t, open: open}); err == nil && l.policy != nil {
		l.patterns, err = selinux.Load(policyReader{t, open, l.names})
	}
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "the image's SELinux policy cannot be used; rebuild the image",
			"read the image's SELinux policy: %w", err)
	}
	if l.policy == nil {
		return nil, nil
	}
	return l, nil
}

// policyReader shows the policy's files as composefs-rs reads them: it labels
// wherever a type of policy is named, even if SELINUX=disabled, knows nothing of
// /usr/etc, and has file_contexts.homedirs behind .local. With names, rules for
// one path become patterns, and the paths' last elements are noted there.
type policyReader struct {
	tree  *fstree.Tree
	open  func(fstree.Digest) (io.ReadCloser, error)
	names map[string]bool
}

// maxPolicyFile bounds what is read into memory of an image.
const maxPolicyFile = 64 << 20

// ReadFile returns a file's bytes. Its error is fs.ErrNotExist for a path that
// leads nowhere.
func (r policyReader) ReadFile(name string) ([]byte, error) {
	name = strings.TrimPrefix(name, "/")
	if strings.HasPrefix(name, "usr/etc/") {
		return nil, fmt.Errorf("read %s in the image: %w", name, fs.ErrNotExist)
	}
	if base, ok := strings.CutSuffix(name, ".homedirs"); ok {
		name = base + ".local"
	} else if base, ok := strings.CutSuffix(name, ".local"); ok {
		name = base + ".homedirs"
	}
	data, err := r.read(name)
	if err == nil && r.names != nil && strings.Contains(name, "/contexts/files/file_contexts") && !strings.Contains(name, ".subs") {
		return literalsAsPatterns(data, r.names), nil
	}
	if err != nil || name != "etc/selinux/config" {
		return data, err
	}
	for line := range bytes.Lines(data) {
		key, value, ok := strings.Cut(string(line), "=")
		if ok && strings.EqualFold(strings.TrimSpace(key), "SELINUXTYPE") {
			return fmt.Appendf(nil, "SELINUX=permissive\nSELINUXTYPE=%s\n", strings.TrimSpace(value)), nil
		}
	}
	return nil, fmt.Errorf("read %s in the image: it names no policy: %w", name, fs.ErrNotExist)
}

// literalsAsPatterns makes every rule for one path a pattern for just that path.
func literalsAsPatterns(rules []byte, names map[string]bool) []byte {
	out := make([]byte, 0, len(rules)+len(rules)/16)
	for line := range bytes.Lines(rules) {
		start := len(line) - len(bytes.TrimLeft(line, " \t"))
		end := start + bytes.IndexAny(line[start:], " \t\n")
		if end < start || line[start] == '#' || !isLiteral(line[start:end]) {
			out = append(out, line...)
			continue
		}
		names[path.Base(strings.ReplaceAll(string(line[start:end]), "\\", ""))] = true
		out = append(append(append(out, line[:end]...), '$'), line[end:]...)
	}
	return out
}

func isLiteral(pattern []byte) bool {
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '.', '^', '$', '?', '*', '+', '|', '[', '(', '{':
			return false
		}
	}
	return len(pattern) > 0
}

func (r policyReader) read(path string) ([]byte, error) {
	n := r.tree.Resolve(path)
	switch {
	case n == nil:
		return nil, fmt.Errorf("read %s in the image: %w", path, fs.ErrNotExist)
	case !n.IsRegular():
		return nil, fault.New(fault.Conflict, "", "read %s in the image: not a regular file", path)
	case n.Size > maxPolicyFile:
		return nil, fault.New(fault.Corrupt, "", "read %s in the image: %d bytes are more than such a file can have", path, n.Size)
	case n.Size == 0:
		return nil, nil
	case r.open == nil:
		return nil, errors.New("composefs.Prepare: no way to read the image's files")
	}
	f, err := r.open(n.Content)
	if err != nil {
		return nil, fmt.Errorf("read %s in the image: %w", path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPolicyFile))
	if err != nil {
		return nil, fmt.Errorf("read %s in the image: %w", path, err)
	}
	return data, nil
}
