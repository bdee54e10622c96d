package composefs

import (
	"encoding/hex"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// xattr is one (name, value) pair of an image.
type xattr struct {
	name   uint32 // in xattrTable.names
	value  uint32 // in xattrTable.values; nameMetacopy and nameRedirect: a node that has it
	uses   uint32 // number of inodes that have it
	offset int32  // in the shared table, or -1
}

// The names whose values are made of a node when they are needed: most files
// have a value of their own, and there is no end to them.
const (
	nameMetacopy = iota
	nameRedirect
	namesOfObjects
)

type xattrName struct {
	full string
	hash uint32 // bit of the name filter
}

// xattrTable holds the xattrs of an image that is being written.
type xattrTable struct {
	flat   *flat
	xattrs []xattr
	names  []xattrName
	values []string

	pairs  index // of xattrs by name and value
	seed   maphash.Seed
	buf    []byte
	byName map[string]uint32
	bySet  map[*fstree.Xattrs][]uint32
}

func (t *xattrTable) begin(f *flat, size int) {
	t.flat, t.xattrs, t.seed = f, make([]xattr, 0, size), maphash.MakeSeed()
	t.byName, t.bySet = make(map[string]uint32), make(map[*fstree.Xattrs][]uint32)
	t.name(xattrMetacopy)
	t.name(xattrRedirect)
}

// end gives back what only finds xattrs.
func (t *xattrTable) end() { t.pairs, t.byName, t.bySet = index{}, nil, nil }

func (t *xattrTable) name(full string) uint32 {
	i, ok := t.byName[full]
	if !ok {
		prefix, suffix := splitXattr(full)
		i = uint32(len(t.names))
		t.names = append(t.names, xattrName{full, 1 << (xxh32(suffix, filterSeed+uint32(prefix)) & 31)})
		t.byName[full] = i
	}
	return i
}

func (t *xattrTable) nameOf(x *xattr) string { return t.names[x.name].full }

// appendValue appends an xattr's value to b.
func (t *xattrTable) appendValue(b []byte, x *xattr) []byte {
	if x.name >= namesOfObjects {
		return append(b, t.values[x.value]...)
	}
	in := t.flat.inode(&t.flat.nodes[x.value])
	switch {
	case x.name == nameMetacopy:
		return appendMetacopy(b, in.Digest)
	case in.commit != nil:
		sum := &in.commit.Content
		b = append(hex.AppendEncode(append(b, '/'), sum[:1]), '/')
		return append(hex.AppendEncode(b, sum[1:]), ostreeSuffix...)
	case in.stored:
		b = append(hex.AppendEncode(append(b, '/'), []byte(in.Digest[:1])), '/')
		return hex.AppendEncode(b, []byte(in.Digest[1:]))
	}
	return append(append(b, '/'), in.Payload...)
}

func (t *xattrTable) valueLen(x *xattr) int {
	if x.name >= namesOfObjects {
		return len(t.values[x.value])
	}
	in := t.flat.inode(&t.flat.nodes[x.value])
	switch {
	case x.name == nameMetacopy && in.Digest == "":
		return 0
	case x.name != nameMetacopy && in.commit != nil:
		return 2 + 2*len(in.commit.Content) + len(ostreeSuffix)
	case x.name == nameMetacopy:
		return 4 + len(in.Digest)
	case in.stored:
		return 2 + 2*len(in.Digest)
	}
	return 1 + len(in.Payload)
}

// compareValues orders the values of two xattrs of one name and length.
func (t *xattrTable) compareValues(a, b *xattr) int {
	if a.name >= namesOfObjects {
		return strings.Compare(t.values[a.value], t.values[b.value])
	}
	n, m := t.flat.inode(&t.flat.nodes[a.value]), t.flat.inode(&t.flat.nodes[b.value])
	if a.name == nameMetacopy || n.stored && m.stored {
		return strings.Compare(string(n.Digest), string(m.Digest)) // hexadecimal has the same order
	}
	return strings.Compare(n.objectPath(), m.objectPath())
}

// xattrCost is what an xattr counts towards maxXattrs.
func xattrCost(name string, value int) int { return 7 + len(name) + value }

func (t *xattrTable) sortRefs(refs []uint32) {
	slices.SortFunc(refs, func(a, b uint32) int {
		return strings.Compare(t.nameOf(&t.xattrs[a]), t.nameOf(&t.xattrs[b]))
	})
}

// ownXattrs returns the xattrs that the input gives a node, escaped.
func (t *xattrTable) ownXattrs(n *node) []uint32 {
	set := n.xattrSet()
	if refs, ok := t.bySet[set]; ok || set == nil {
		return refs
	}
	var refs []uint32
	for _, x := range set.All() {
		name := x.Name
		if s, ok := strings.CutPrefix(name, overlayPrefix); ok {
			name = escapedPrefix + s
		}
		refs = append(refs, t.pair(name, x.Value))
	}
	t.sortRefs(refs)
	t.bySet[set] = refs
	return refs
}

// set gives the node whose references start at from one more xattr, or another
// value for one that it has, and returns what that costs.
func (f *flat) set(from int, name, value string) int {
	r := f.pair(name, value)
	for i := from; i < len(f.refs); i++ {
		if old := &f.xattrs[f.refs[i]]; old.name == f.xattrs[r].name {
			f.refs[i] = r
			return len(value) - f.valueLen(old)
		}
	}
	f.refs = append(f.refs, r)
	return xattrCost(name, len(value))
}

// setObject gives node i, whose xattrs are being set, one that tells of its
// object, and returns what that costs.
func (f *flat) setObject(name, i uint32) int {
	x := xattr{name: name, value: i, offset: -1}
	f.refs = append(f.refs, f.intern(x))
	return xattrCost(f.nameOf(&x), f.valueLen(&x))
}

// pair returns the number of a name with a value.
func (t *xattrTable) pair(name, value string) uint32 {
	t.values = append(t.values, value)
	x := xattr{name: t.name(name), value: uint32(len(t.values) - 1), offset: -1}
	i := t.intern(x)
	if t.xattrs[i].value != x.value {
		t.values = t.values[:x.value]
	}
	return i
}

// intern returns the number of the xattr that is like x, and adds x if none is.
func (t *xattrTable) intern(x xattr) uint32 {
	t.buf = t.appendValue(append(t.buf[:0], t.nameOf(&x)...), &x)
	hash := uint32(maphash.Bytes(t.seed, t.buf))
	i, ok := t.pairs.find(hash, func(i uint32) bool {
		y := &t.xattrs[i]
		return y.name == x.name && t.valueLen(y) == t.valueLen(&x) && t.compareValues(y, &x) == 0
	})
	if ok {
		return i
	}
	i = uint32(len(t.xattrs))
	t.xattrs = append(t.xattrs, x)
	t.pairs.add(hash, i)
	return i
}

// metacopy returns the value of the xattr that binds a file's digest
// (linux fs/overlayfs, struct ovl_metacopy).
func metacopy(d Digest) string { return string(appendMetacopy(nil, d)) }

func appendMetacopy(b []byte, d Digest) []byte {
	if d == "" {
		return b
	}
	return append(append(b, 0, byte(4+len(d)), 0, byte(d.Algorithm())), d...)
}
