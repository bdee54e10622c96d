package ocibridge

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Index is what a store keeps of a layer beside its contents: everything that
// merging needs, so that the layer is never read again.
type Index struct {
	DiffID   string
	TarBytes int64 // length of the uncompressed layer
	Role     Role
	Layer    *fstree.Layer // Derived layers
	Objects  *ObjectLayer  // OSTreeCommit and OSTreeChunk layers
}

// The encoding is
//
//	magic, version (1 byte), body, sha256 of all before it (32 bytes)
//
// The body is a sequence of unsigned varints (signed ones in zigzag form),
// strings (length, bytes) and digests (32 bytes): diffID, tar length, role, the
// table of xattr sets, then the entries. A path is written as the length of
// what it shares with the path before, and the rest.
const (
	indexMagic   = "kedgelayer"
	indexVersion = 1
)

// EncodeIndex returns the bytes of an index. The same index gives the same
// bytes.
func EncodeIndex(x *Index) []byte {
	e := &encoder{b: append([]byte(indexMagic), indexVersion)}
	e.string(x.DiffID)
	e.int(x.TarBytes)
	e.uint(uint64(x.Role))
	if x.Role == Derived {
		e.layer(x.Layer)
	} else {
		e.objects(x.Objects)
	}
	sum := sha256.Sum256(e.b)
	return append(e.b, sum[:]...)
}

// DecodeIndex reads an index. An index that is damaged, or of another version,
// is a Corrupt error; its layer has to be fetched again.
func DecodeIndex(b []byte) (*Index, error) {
	body, ok := checkSum(b)
	if !ok {
		return nil, fault.New(fault.Corrupt, indexHint, "layer index: wrong checksum or not an index")
	}
	if body[len(indexMagic)] != indexVersion {
		return nil, fault.New(fault.Corrupt, indexHint, "layer index: version %d, expected %d", body[len(indexMagic)], indexVersion)
	}
	d := &decoderState{b: body[len(indexMagic)+1:], tree: fstree.New()}
	x := &Index{DiffID: d.string(), TarBytes: d.int(), Role: Role(d.uintMax(uint64(OSTreeChunk)))}
	if x.Role == Derived {
		x.Layer = d.layer()
	} else {
		x.Objects = d.objects()
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	if d.err != nil {
		return nil, fault.New(fault.Corrupt, indexHint, "layer index: %w", d.err)
	}
	return x, nil
}

const indexHint = "kedge fetches the layer again on the next upgrade or switch"

func checkSum(b []byte) (body []byte, ok bool) {
	if len(b) < len(indexMagic)+1+sha256.Size || string(b[:len(indexMagic)]) != indexMagic {
		return nil, false
	}
	body = b[:len(b)-sha256.Size]
	return body, sha256.Sum256(body) == [sha256.Size]byte(b[len(body):])
}

type encoder struct {
	b    []byte
	last string // path written before
	sets map[*fstree.Xattrs]int
}

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }

func (e *encoder) bool(v bool) {
	if v {
		e.uint(1)
	} else {
		e.uint(0)
	}
}

func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) path(p string) {
	shared := 0
	for shared < len(p) && shared < len(e.last) && p[shared] == e.last[shared] {
		shared++
	}
	e.uint(uint64(shared))
	e.string(p[shared:])
	e.last = p
}

// xattrSets writes the table of the sets in use; inodes refer to it by number,
// 0 being the empty set.
func (e *encoder) xattrSets(inodes func(yield func(*fstree.Inode) bool)) {
	e.sets = map[*fstree.Xattrs]int{nil: 0}
	var table []*fstree.Xattrs
	for n := range inodes {
		if _, ok := e.sets[n.Xattrs]; !ok {
			table = append(table, n.Xattrs)
			e.sets[n.Xattrs] = len(table)
		}
	}
	e.uint(uint64(len(table)))
	for _, x := range table {
		e.uint(uint64(len(x.All())))
		for _, a := range x.All() {
			e.string(a.Name)
			e.string(a.Value)
		}
	}
}

func (e *encoder) inode(n *fstree.Inode) {
	e.uint(uint64(n.Mode))
	e.uint(uint64(n.UID))
	e.uint(uint64(n.GID))
	e.int(n.MtimeSec)
	e.uint(uint64(n.MtimeNsec))
	e.uint(uint64(e.sets[n.Xattrs]))
	switch n.Type() {
	case unix.S_IFREG:
		e.uint(uint64(n.Size))
		e.b = append(e.b, n.Content[:]...)
	case unix.S_IFLNK:
		e.string(n.Target)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.uint(n.Rdev)
	}
}

func (e *encoder) layer(l *fstree.Layer) {
	e.xattrSets(func(yield func(*fstree.Inode) bool) {
		for i := range l.Entries {
			if n := l.Entries[i].Inode; n != nil && !yield(n) {
				return
			}
		}
	})
	e.uint(uint64(len(l.Entries)))
	for i := range l.Entries {
		x := &l.Entries[i]
		e.uint(uint64(x.Kind))
		e.path(x.Path)
		switch x.Kind {
		case fstree.Add:
			e.inode(x.Inode)
		case fstree.Hardlink:
			e.string(x.LinkTo)
		}
	}
}

// decoderState reads a body. After the first error every method returns zero
// values, so that callers check once.
type decoderState struct {
	b    []byte
	err  error
	last string
	sets []*fstree.Xattrs
	tree *fstree.Tree
}

func (d *decoderState) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.b = nil
}

var errShort = errors.New("it ends early")

func (d *decoderState) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("%w", errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoderState) uintMax(limit uint64) uint64 {
	v := d.uint()
	if v > limit {
		d.fail("the number %d is above %d", v, limit)
		return 0
	}
	return v
}

func (d *decoderState) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("%w", errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoderState) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail("%w", errShort)
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoderState) string() string { return string(d.bytes(d.uint())) }

// count reads the length of a list whose items take at least size bytes, so
// that nothing is allocated for items that cannot be there.
func (d *decoderState) count(size int) int {
	return int(d.uintMax(uint64(len(d.b) / size)))
}

func (d *decoderState) path() string {
	shared := d.uintMax(uint64(len(d.last)))
	rest := d.bytes(d.uintMax(maxPath - shared))
	d.last = d.last[:shared] + string(rest)
	return d.last
}

func (d *decoderState) xattrSets() {
	d.sets = []*fstree.Xattrs{nil}
	for range d.count(1) {
		list := make([]fstree.Xattr, d.count(2))
		for i := range list {
			list[i] = fstree.Xattr{Name: d.string(), Value: d.string()}
		}
		d.sets = append(d.sets, d.tree.Intern(list))
	}
}

func (d *decoderState) inode() *fstree.Inode {
	mode := uint32(d.uintMax(math.MaxUint32))
	n := &fstree.Inode{}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		n = fstree.NewDir(0)
	}
	n.Mode = mode
	n.UID = uint32(d.uintMax(math.MaxUint32))
	n.GID = uint32(d.uintMax(math.MaxUint32))
	n.MtimeSec = d.int()
	n.MtimeNsec = uint32(d.uintMax(999_999_999))
	if i := d.uintMax(uint64(max(len(d.sets)-1, 0))); d.err == nil {
		n.Xattrs = d.sets[i]
	}
	switch n.Type() {
	case unix.S_IFREG:
		n.Size = int64(d.uintMax(math.MaxInt64))
		copy(n.Content[:], d.bytes(uint64(len(n.Content))))
	case unix.S_IFLNK:
		n.Target = d.string()
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = d.uint()
	case unix.S_IFDIR, unix.S_IFIFO:
	default:
		d.fail("unknown file type in mode %o", mode)
	}
	return n
}

func (d *decoderState) layer() *fstree.Layer {
	d.xattrSets()
	n := d.count(3) // kind, shared length, rest length
	l := &fstree.Layer{Entries: make([]fstree.Entry, 0, min(n, 1<<16))}
	for range n {
		x := fstree.Entry{Kind: fstree.EntryKind(d.uintMax(uint64(fstree.Opaque))), Path: d.path()}
		switch x.Kind {
		case fstree.Add:
			x.Inode = d.inode()
		case fstree.Hardlink:
			x.LinkTo = d.string()
		}
		if path, why := cleanRelative(x.Path); why != "" || path != x.Path {
			d.fail("the path %q is not clean", x.Path)
		}
		if d.err != nil {
			return nil
		}
		l.Entries = append(l.Entries, x)
	}
	return l
}
