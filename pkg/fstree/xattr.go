package fstree

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Xattr is one extended attribute. Value holds raw bytes.
type Xattr struct {
	Name, Value string
}

// Xattrs is an immutable set of extended attributes in bytewise order of their
// names. Equal sets of one tree are the same pointer (Tree.Intern), so that
// what depends on them can be cached by it. A nil *Xattrs is the empty set.
type Xattrs struct {
	list []Xattr
}

// All returns the attributes in order. The slice must not be changed.
func (x *Xattrs) All() []Xattr {
	if x == nil {
		return nil
	}
	return x.list
}

// Get returns an attribute's value.
func (x *Xattrs) Get(name string) (string, bool) {
	for _, a := range x.All() {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Intern returns the set of the given attributes; of two with the same name
// the last counts. An empty set is nil.
func (t *Tree) Intern(list []Xattr) *Xattrs {
	if len(list) == 0 {
		return nil
	}
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	out := sorted[:0]
	for _, a := range sorted {
		if k := len(out); k > 0 && out[k-1].Name == a.Name {
			out[k-1] = a
			continue
		}
		out = append(out, a)
	}
	var key []byte
	for _, a := range out {
		key = binary.AppendUvarint(key, uint64(len(a.Name)))
		key = append(key, a.Name...)
		key = binary.AppendUvarint(key, uint64(len(a.Value)))
		key = append(key, a.Value...)
	}
	if x, ok := t.xattrs[string(key)]; ok {
		return x
	}
	if t.xattrs == nil {
		t.xattrs = make(map[string]*Xattrs)
	}
	x := &Xattrs{list: slices.Clip(out)}
	t.xattrs[string(key)] = x
	return x
}

// With returns the set x with one attribute set.
func (t *Tree) With(x *Xattrs, name, value string) *Xattrs {
	if v, ok := x.Get(name); ok && v == value {
		return x
	}
	return t.Intern(append(slices.Clone(x.All()), Xattr{name, value}))
}

// Without returns the set x with one attribute taken out.
func (t *Tree) Without(x *Xattrs, name string) *Xattrs {
	if _, ok := x.Get(name); !ok {
		return x
	}
	return t.Intern(slices.DeleteFunc(slices.Clone(x.All()), func(a Xattr) bool { return a.Name == name }))
}
