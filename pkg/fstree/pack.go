package fstree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Encoder packs inodes and layer entries into B. What it writes are unsigned
// varints (signed ones in zigzag form), strings (length, bytes) and digests (32
// bytes). A path is the length of what it shares with the path before, and the
// rest; a set of xattrs is its number in the table that Sets writes, 0 being
// the empty set.
type Encoder struct {
	B []byte

	last   string // path written before
	table  []*Xattrs
	number map[*Xattrs]int
}

// Uint appends an unsigned number.
func (e *Encoder) Uint(v uint64) { e.B = binary.AppendUvarint(e.B, v) }

// Int appends a signed number.
func (e *Encoder) Int(v int64) { e.B = binary.AppendVarint(e.B, v) }

// Bytes appends a length and bytes.
func (e *Encoder) Bytes(b []byte) {
	e.Uint(uint64(len(b)))
	e.B = append(e.B, b...)
}

// String appends a length and bytes.
func (e *Encoder) String(s string) {
	e.Uint(uint64(len(s)))
	e.B = append(e.B, s...)
}

// Set gives a set of xattrs its number.
func (e *Encoder) Set(x *Xattrs) int {
	if len(x.All()) == 0 {
		return 0
	}
	i, ok := e.number[x]
	if !ok {
		if e.number == nil {
			e.number = make(map[*Xattrs]int)
		}
		e.table = append(e.table, x)
		i = len(e.table)
		e.number[x] = i
	}
	return i
}

// Sets appends the table of the sets that have a number.
func (e *Encoder) Sets() { e.sets(e.table) }

func (e *Encoder) sets(table []*Xattrs) {
	e.Uint(uint64(len(table)))
	for _, x := range table {
		e.Uint(uint64(len(x.All())))
		for _, a := range x.All() {
			e.String(a.Name)
			e.String(a.Value)
		}
	}
}

// Inode appends an inode; of a directory, without its children.
func (e *Encoder) Inode(n *Inode) {
	e.Uint(uint64(n.Mode))
	e.Uint(uint64(n.UID))
	e.Uint(uint64(n.GID))
	e.Int(n.MtimeSec)
	e.Uint(uint64(n.MtimeNsec))
	e.Uint(uint64(e.Set(n.Xattrs)))
	switch n.Type() {
	case unix.S_IFREG:
		e.Uint(uint64(n.Size))
		e.B = append(e.B, n.Content[:]...)
	case unix.S_IFLNK:
		e.String(n.Target)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Uint(n.Rdev)
	}
}

func (e *Encoder) path(p string) {
	shared := 0
	for shared < len(p) && shared < len(e.last) && p[shared] == e.last[shared] {
		shared++
	}
	e.Uint(uint64(shared))
	e.String(p[shared:])
	e.last = p
}

func (e *Encoder) entry(x *Entry) {
	e.Uint(uint64(x.Kind))
	e.path(x.Path)
	switch x.Kind {
	case Add:
		e.Inode(x.Inode)
	case Hardlink:
		e.String(x.LinkTo)
	}
}

// Decoder reads what an Encoder wrote. After the first error every method
// returns zero values, so that callers check once; bytes that nobody wrote lead
// to an error and never to an allocation larger than they are.
type Decoder struct {
	b    []byte
	err  error
	last []byte
	sets []*Xattrs
}

// NewDecoder returns a decoder of b, which must not be changed any more.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// Err returns the first error.
func (d *Decoder) Err() error { return d.err }

// Left returns the number of bytes that were not read.
func (d *Decoder) Left() int { return len(d.b) }

// Fail makes an error the first one, unless there is one.
func (d *Decoder) Fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.b = nil
}

var errShort = errors.New("it ends early")

// Uint reads an unsigned number of at most limit.
func (d *Decoder) Uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	switch {
	case n <= 0:
		d.Fail("%w", errShort)
		return 0
	case v > limit:
		d.Fail("the number %d is above %d", v, limit)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// Int reads a signed number.
func (d *Decoder) Int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.Fail("%w", errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// Raw reads n bytes; they share memory with what is decoded.
func (d *Decoder) Raw(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.Fail("%w", errShort)
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

// Bytes reads a length and bytes; they share memory with what is decoded.
func (d *Decoder) Bytes() []byte { return d.Raw(d.Uint(math.MaxUint64)) }

// String reads a length and bytes.
func (d *Decoder) String() string { return string(d.Bytes()) }

// Count reads the length of a list whose items take at least size bytes, so
// that nothing is allocated for items that cannot be there.
func (d *Decoder) Count(size int) int { return int(d.Uint(uint64(len(d.b) / size))) }

// Sets reads the table of xattr sets to which the inodes that follow refer.
func (d *Decoder) Sets(t *Tree) {
	d.sets = nil
	for range d.Count(1) {
		list := make([]Xattr, d.Count(2))
		for i := range list {
			list[i] = Xattr{Name: d.String(), Value: d.String()}
		}
		d.sets = append(d.sets, t.Intern(list))
	}
}

// Inode reads an inode.
func (d *Decoder) Inode() *Inode {
	n := &Inode{}
	d.inode(n)
	if n.IsDir() {
		n.dir = &directory{}
	}
	return n
}

func (d *Decoder) inode(n *Inode) {
	n.Mode = uint32(d.Uint(math.MaxUint32))
	n.UID = uint32(d.Uint(math.MaxUint32))
	n.GID = uint32(d.Uint(math.MaxUint32))
	n.MtimeSec = d.Int()
	n.MtimeNsec = uint32(d.Uint(999_999_999))
	if i := d.Uint(uint64(len(d.sets))); i > 0 {
		n.Xattrs = d.sets[i-1]
	}
	switch n.Type() {
	case unix.S_IFREG:
		n.Size = int64(d.Uint(math.MaxInt64))
		copy(n.Content[:], d.Raw(uint64(len(n.Content))))
	case unix.S_IFLNK:
		n.Target = d.String()
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = d.Uint(math.MaxUint64)
	case unix.S_IFDIR, unix.S_IFIFO:
	default:
		d.Fail("unknown file type in mode %o", n.Mode)
	}
}

// path makes d.last the path that comes.
func (d *Decoder) path() {
	shared := d.Uint(uint64(len(d.last)))
	d.last = append(d.last[:shared], d.Raw(d.Uint(maxPath-min(shared, maxPath)))...)
}

// The bounds of Linux on names and paths, in bytes.
const (
	maxName = 255
	maxPath = 4095
)

// cleanPath reports whether p is a path as an Entry has it.
func cleanPath(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	start := 0
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			if p[i] == 0 {
				return false
			}
			continue
		}
		name := p[start:i]
		if len(name) == 0 || len(name) > maxName || string(name) == "." || string(name) == ".." {
			return false
		}
		start = i + 1
	}
	return true
}
