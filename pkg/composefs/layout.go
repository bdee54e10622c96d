package composefs

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// layout says where each part of an image goes: inodes, shared xattrs, data
// blocks, in this order.
type layout struct {
	*flat
	buildSec   int64
	buildNsec  uint32
	inodesEnd  int64
	table      []uint32 // shared xattrs in the order of the table
	dataStart  int64
	dataBlocks int64
	hasACL     bool
	scratch    []listed
}

// newLayout computes the layout of f. It follows mkcomposefs in every choice,
// as a digest of the image depends on each.
func newLayout(f *flat) (*layout, error) {
	l := &layout{flat: f, buildSec: math.MaxInt64}
	for i := range f.nodes {
		n := f.nodes[i].in
		if n.MtimeSec < l.buildSec || n.MtimeSec == l.buildSec && n.MtimeNsec < l.buildNsec {
			l.buildSec, l.buildNsec = n.MtimeSec, n.MtimeNsec
		}
	}
	tableSize := l.shareXattrs()
	pos := int64(inodesOffset)
	for i := range l.nodes {
		n := &l.nodes[i]
		l.measure(n, uint32(i))
		pos = l.place(n, roundUp(pos, slotSize))
		l.dataBlocks += int64(n.blocks)
	}
	l.inodesEnd = roundUp(pos, slotSize)
	l.dataStart = roundUp(l.inodesEnd+tableSize, blockSize)
	block := l.dataStart / blockSize
	if block+l.dataBlocks > math.MaxUint32 || l.inodesEnd/slotSize > math.MaxUint32 {
		return nil, fmt.Errorf("the image would be too large for EROFS")
	}
	for i := range l.nodes {
		if n := &l.nodes[i]; n.blocks > 0 {
			n.block = uint32(block)
			block += int64(n.blocks)
		}
	}
	return l, nil
}

// size returns the length of the image in bytes.
func (l *layout) size() int64 { return l.dataStart + l.dataBlocks*blockSize }

func (l *layout) sizeOf(x *xattr) int64 {
	_, suffix := splitXattr(l.nameOf(x))
	return roundUp(int64(xattrEntry+len(suffix)+l.valueLen(x)), 4)
}

// shareXattrs puts each xattr that several inodes have into the shared table,
// measures every inode's xattrs and returns the size of the table.
func (l *layout) shareXattrs() int64 {
	for i := range l.xattrs {
		if l.xattrs[i].uses > 1 {
			l.table = append(l.table, uint32(i))
		}
		if name := l.nameOf(&l.xattrs[i]); name == "system.posix_acl_access" || name == "system.posix_acl_default" {
			l.hasACL = true
		}
	}
	slices.SortFunc(l.table, func(i, j uint32) int {
		a, b := &l.xattrs[j], &l.xattrs[i]
		if c := cmp.Or(strings.Compare(l.nameOf(a), l.nameOf(b)), cmp.Compare(l.valueLen(a), l.valueLen(b))); c != 0 {
			return c
		}
		return l.compareValues(a, b)
	})
	var end int64
	for _, i := range l.table {
		l.xattrs[i].offset = int32(end)
		end += l.sizeOf(&l.xattrs[i])
	}
	for i := range l.nodes {
		n := &l.nodes[i]
		if n.xattrs.from == n.xattrs.to {
			continue
		}
		size := int64(xattrHeader)
		var used uint32
		for _, r := range l.refs[n.xattrs.from:n.xattrs.to] {
			x := &l.xattrs[r]
			used |= l.names[x.name].hash
			if x.offset >= 0 && n.shared < maxSharedRefs {
				n.shared++
				size += 4
				continue
			}
			size += l.sizeOf(x)
		}
		n.filter = ^used
		n.xattrSize = uint32(size)
	}
	return end
}

// mode returns the st_mode that a node has in the image.
func (n *node) mode() uint32 {
	if n.whiteout {
		return unix.S_IFREG | n.in.Mode&^unix.S_IFMT
	}
	return n.in.Mode
}

// size returns the size that counts for the choice between the two inode
// formats, which is not i_size for everything without data.
func (n *node) size() uint64 {
	switch {
	case n.in.IsDir():
		return n.dirSize
	case n.in.IsSymlink():
		return uint64(len(n.in.Payload))
	case n.whiteout:
		return 0
	}
	return n.in.Size
}

// chunks returns the chunk size of an external file as a power of two, and the
// number of chunks.
func chunks(size uint64) (chunkBits int, count uint32) {
	chunkBits = min(max(bits.Len64(size-1), minChunkBits), maxChunkBits)
	return chunkBits, uint32((size + 1<<chunkBits - 1) >> chunkBits)
}

// measure finds how many blocks and how long a tail a node's data takes, and
// the format of its inode.
func (l *layout) measure(n *node, i uint32) {
	switch in := n.in; {
	case in.IsDir():
		l.measureDir(n, i)
	case in.IsSymlink():
		n.tail = uint32(len(in.Payload))
	case in.External():
		_, count := chunks(in.Size)
		n.tail = count * 4
	case in.IsRegular():
		n.blocks, n.tail = uint32(len(in.Content)/blockSize), uint32(len(in.Content)%blockSize)
		if n.tail > maxInlineTail {
			n.blocks, n.tail = n.blocks+1, 0
		}
	}
	n.compact = n.in.MtimeSec == l.buildSec && n.in.MtimeNsec == l.buildNsec &&
		l.nlink(n) <= math.MaxUint16 && n.in.UID <= math.MaxUint16 && n.in.GID <= math.MaxUint16 && n.size() <= math.MaxUint32
}

func (l *layout) measureDir(n *node, i uint32) {
	var used uint32
	for _, e := range l.list(n, i) {
		cost := uint32(direntSize + len(e.name))
		if used+cost > blockSize {
			n.blocks++
			used = 0
		}
		used += cost
	}
	if used > maxInlineTail {
		n.blocks++
	} else {
		n.tail = used
	}
	n.dirSize = uint64(n.blocks)*blockSize + uint64(n.tail)
}

// nlink returns the link count that a node has in the image.
func (l *layout) nlink(n *node) uint32 {
	if !n.in.IsDir() {
		return n.in.Nlink
	}
	count := uint32(2)
	for _, e := range l.ents[n.ents.from:n.ents.to] {
		if l.nodes[e.node].in.IsDir() {
			count++
		}
	}
	return count
}

// place puts node n at pos, a multiple of slotSize, or behind it where its tail
// would otherwise cross a block boundary, and returns the end of the inode.
func (l *layout) place(n *node, pos int64) int64 {
	fixed := int64(extendedSize)
	if n.compact {
		fixed = compactSize
	}
	fixed += int64(n.xattrSize)
	tail := int64(n.tail)
	if n.in.IsSymlink() {
		// Unlike other data, a target stays in one block with its inode.
		total := fixed + tail
		if pos/blockSize != (pos+total-1)/blockSize {
			pos = roundUp(pos, blockSize)
		}
		if total >= blockSize {
			n.blocks, n.tail = 1, 0
		}
	} else if left := blockSize - (pos+fixed)%blockSize; left < tail {
		pad := roundUp(left, slotSize)
		if blockSize-(pos+fixed+pad)%blockSize >= tail {
			pos += pad
		} else {
			pos = roundUp(pos, blockSize)
			n.blocks, n.tail = n.blocks+1, 0
		}
	}
	n.slot = uint32(pos / slotSize)
	return pos + fixed + int64(n.tail)
}

// listed is a directory entry as it is stored.
type listed struct {
	name string
	node uint32
}

// list returns the entries of directory i in their order, "." and ".." among
// them. The slice is good until the next call.
func (l *layout) list(n *node, i uint32) []listed {
	out := l.scratch[:0]
	own := [2]listed{{".", i}, {"..", n.parent}}
	k := 0
	for _, e := range l.ents[n.ents.from:n.ents.to] {
		for k < len(own) && own[k].name < e.name {
			out = append(out, own[k])
			k++
		}
		out = append(out, listed(e))
	}
	out = append(out, own[k:]...)
	l.scratch = out
	return out
}
