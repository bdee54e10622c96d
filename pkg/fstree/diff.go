package fstree

import (
	"slices"
	"strings"
)

// Field is a set of inode properties, as bits.
type Field uint16

// The properties that Diff tells apart.
const (
	FieldType Field = 1 << iota
	FieldPerm
	FieldOwner
	FieldMtime
	FieldSize
	FieldContent
	FieldTarget
	FieldRdev
	FieldXattrs
)

// AllFields is every property of an inode.
const AllFields = FieldType | FieldPerm | FieldOwner | FieldMtime | FieldSize | FieldContent | FieldTarget | FieldRdev | FieldXattrs

var fieldNames = [...]string{"type", "mode", "owner", "mtime", "size", "content", "target", "rdev", "xattrs"}

// String returns the names of the properties, comma-separated.
func (f Field) String() string {
	var names []string
	for i, name := range fieldNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Change is one path in which two trees differ. A is nil where the path is
// only in the new tree, B where it is only in the old one; where both have it,
// Fields says what differs.
type Change struct {
	Path   string
	A, B   *Inode
	Fields Field
}

// Compare returns the properties in which a and b differ. Properties that a
// file type does not have are not compared.
func Compare(a, b *Inode) Field {
	var f Field
	if a.Type() != b.Type() {
		return FieldType
	}
	if a.Mode != b.Mode {
		f |= FieldPerm
	}
	if a.UID != b.UID || a.GID != b.GID {
		f |= FieldOwner
	}
	if a.MtimeSec != b.MtimeSec || a.MtimeNsec != b.MtimeNsec {
		f |= FieldMtime
	}
	if a.IsRegular() {
		if a.Size != b.Size {
			f |= FieldSize
		}
		if a.Content != b.Content {
			f |= FieldContent
		}
	}
	if a.Target != b.Target {
		f |= FieldTarget
	}
	if a.Rdev != b.Rdev {
		f |= FieldRdev
	}
	if a.Xattrs != b.Xattrs && !slices.Equal(a.Xattrs.All(), b.Xattrs.All()) {
		f |= FieldXattrs
	}
	return f
}

// Diff calls fn for each path in which b differs from a in one of the given
// properties, in the order of Walk; a path that is only in one tree is followed
// by everything below it. It stops at the first error and returns it.
func Diff(a, b *Tree, fields Field, fn func(Change) error) error {
	return diffInode("", a.Root, b.Root, fields, fn)
}

func diffInode(path string, a, b *Inode, fields Field, fn func(Change) error) error {
	if a != nil && b != nil {
		if f := Compare(a, b) & fields; f != 0 {
			if err := fn(Change{Path: path, A: a, B: b, Fields: f}); err != nil {
				return err
			}
		}
	} else if err := fn(Change{Path: path, A: a, B: b}); err != nil {
		return err
	}
	var as, bs []Dirent
	if a != nil {
		as = a.Entries()
	}
	if b != nil {
		bs = b.Entries()
	}
	for len(as) > 0 || len(bs) > 0 {
		var e Dirent
		var ca, cb *Inode
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
			e, ca, as = as[0], as[0].Inode, as[1:]
		}
		if order >= 0 {
			e, cb, bs = bs[0], bs[0].Inode, bs[1:]
		}
		p := e.Name
		if path != "" {
			p = path + "/" + e.Name
		}
		if err := diffInode(p, ca, cb, fields, fn); err != nil {
			return err
		}
	}
	return nil
}
