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
		n := f.inode(&f.nodes[i])
		if n.MtimeSec < l.buildSec || n.MtimeSec == l.buildSec && n.MtimeNsec < l.buildNsec {
			l.buildSec, l.buildNsec = n.MtimeSec, n.MtimeNsec
		}
	}
	tableSize := l.shareXattrs()
	pos := int64(inodesOffset)
	for i := range l.nodes {
		n := &l.nodes[i]
		in := l.inode(n)
		l.measure(n, &in, uint32(i))
		pos = n.place(roundUp(pos, slotSize), in.IsSymlink())
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
	var mode uint32
	if n.own != nil {
		mode = n.own.Mode
	} else {
		mode = n.viewed.Mode
	}
	if n.whiteout {
		return unix.S_IFREG | mode&^unix.S_IFMT
	}
	return mode
}

// size returns the size that counts for the choice between the two inode
// formats, which is not i_size for everything without data.
func (n *node) size(in *Inode) uint64 {
	switch {
	case in.IsDir():
		return uint64(n.dirSize)
	case in.IsSymlink():
		return uint64(len(in.Payload))
	case n.whiteout:
		return 0
	}
	return in.Size
}

// chunks returns the chunk size of an external file as a power of two, and the
// number of chunks.
func chunks(size uint64) (chunkBits int, count uint32) {
	chunkBits = min(max(bits.Len64(size-1), minChunkBits), maxChunkBits)
	return chunkBits, uint32((size + 1<<chunkBits - 1) >> chunkBits)
}

// measure finds how many blocks and how long a tail a node's data takes, and
// the format of its inode.
func (l *layout) measure(n *node, in *Inode, i uint32) {
	switch {
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
	n.compact = in.MtimeSec == l.buildSec && in.MtimeNsec == l.buildNsec &&
		l.nlink(n, in) <= math.MaxUint16 && in.UID <= math.MaxUint16 && in.GID <= math.MaxUint16 && n.size(in) <= math.MaxUint32
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
	n.dirSize = n.blocks*blockSize + n.tail
}

// nlink returns the link count that a node has in the image.
func (l *layout) nlink(n *node, in *Inode) uint32 {
	if !in.IsDir() {
		return in.Nlink
	}
	count := uint32(2)
	for _, e := range l.ents[n.ents.from:n.ents.to] {
		if l.nodes[e.node].isDir() {
			count++
		}
	}
	return count
}

// place puts node n at pos, a multiple of slotSize, or behind it where its tail
// would otherwise cross a block boundary, and returns the end of the inode.
func (n *node) place(pos int64, symlink bool) int64 {
	fixed := int64(extendedSize)
	if n.compact {
		fixed = compactSize
	}
	fixed += int64(n.xattrSize)
	tail := int64(n.tail)
	if symlink {
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
