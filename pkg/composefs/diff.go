package composefs

import (
	"slices"
	"strings"
)

// Change is one path in which two trees differ. A is nil where the path is only
// in the new tree, B where it is only in the old one; where both have it,
// Fields names what differs, in the words of the dump format, and "xattr NAME"
// for each xattr.
type Change struct {
	Path   string
	A, B   *Inode
	Fields []string
}

// Diff calls fn for each path in which b differs from a, in the order of Walk;
// a path that is only in one tree is followed by everything below it. A name
// that is a hard link in just one of the trees differs in "link". Link counts,
// sizes and device numbers that an image computes or drops do not count. Diff
// stops at the first error and returns it.
func Diff(a, b *Tree, fn func(Change) error) error {
	return diffEntry("", Dirent{Inode: a.Root}, Dirent{Inode: b.Root}, fn)
}

func diffEntry(path string, a, b Dirent, fn func(Change) error) error {
	c := Change{Path: path, A: a.Inode, B: b.Inode}
	if path == "" {
		c.Path = "/"
	}
	if a.Inode != nil && b.Inode != nil {
		c.Fields = compareInodes(a.Inode, b.Inode)
		if a.Link != b.Link {
			c.Fields = append(c.Fields, "link")
		}
	}
	if a.Inode == nil || b.Inode == nil || len(c.Fields) > 0 {
		if err := fn(c); err != nil {
			return err
		}
	}
	var as, bs []Dirent
	if a.Inode != nil {
		as = a.Inode.Entries
	}
	if b.Inode != nil {
		bs = b.Inode.Entries
	}
	for len(as) > 0 || len(bs) > 0 {
		var x, y Dirent
		order := 0
		switch {
		case len(as) == 0:
			order = 1
		case len(bs) == 0:
			order = -1
		default:
			order = strings.Compare(as[0].Name, bs[0].Name)
		}
		if order <= 0 {
			x, as = as[0], as[1:]
		}
		if order >= 0 {
			y, bs = bs[0], bs[1:]
		}
		if err := diffEntry(path+"/"+max(x.Name, y.Name), x, y, fn); err != nil {
			return err
		}
	}
	return nil
}

func compareInodes(a, b *Inode) []string {
	var fields []string
	add := func(name string, differs bool) {
		if differs {
			fields = append(fields, name)
		}
	}
	add("mode", a.Mode != b.Mode)
	add("uid", a.UID != b.UID)
	add("gid", a.GID != b.GID)
	add("mtime", a.MtimeSec != b.MtimeSec || a.MtimeNsec != b.MtimeNsec)
	add("nlink", a.Nlink != b.Nlink && !(a.IsDir() && b.IsDir()))
	add("size", a.IsRegular() && b.IsRegular() && a.Size != b.Size)
	add("rdev", a.isDevice() && b.isDevice() && uint32(a.Rdev) != uint32(b.Rdev))
	add("payload", a.objectPath() != b.objectPath())
	add("content", a.Content != b.Content)
	add("digest", a.Digest != b.Digest)
	if a.Xattrs != b.Xattrs && !slices.Equal(a.Xattrs.All(), b.Xattrs.All()) {
		for _, x := range a.Xattrs.All() {
			v, ok := b.Xattrs.Get(x.Name)
			add("xattr "+x.Name, !ok || v != x.Value)
		}
		for _, x := range b.Xattrs.All() {
			_, ok := a.Xattrs.Get(x.Name)
			add("xattr "+x.Name, !ok)
		}
	}
	return fields
}
