package composefs

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fsverity"
)

// ImageOptions say how a tree is written as an image.
type ImageOptions struct {
	// MinVersion is the version of the image's format, 0 or 1. A tree with
	// whiteouts raises it to MaxVersion. The two fields of Default give what
	// mkcomposefs and libostree write when nothing is asked of them, those of
	// V0 and V1 just that version.
	MinVersion, MaxVersion int
	// Algorithm is that of the returned digest of the image; SHA256 if zero.
	// The digests inside the image are those of the tree, whatever they are.
	Algorithm Algorithm
}

// The usual formats of images.
var (
	Default = ImageOptions{MinVersion: 0, MaxVersion: 1}
	V0      = ImageOptions{}
	V1      = ImageOptions{MinVersion: 1, MaxVersion: 1}
)

// ImageInfo tells about an image.
type ImageInfo struct {
	Version int
	Size    int64  // in bytes
	Inodes  uint64 // in the image, with those that composefs adds
	Digest  Digest // the image's fs-verity digest
}

// WriteImage writes t as an image. The bytes are those that mkcomposefs 1.0.8
// writes for the same tree; with sha512 digests in it, which mkcomposefs cannot
// write, those of composefs-rs's version 1.
func WriteImage(w io.Writer, t Source, o ImageOptions) (ImageInfo, error) {
	info, err := writeImage(w, t, o)
	if err != nil {
		return ImageInfo{}, fmt.Errorf("write composefs image: %w", err)
	}
	return info, nil
}

func writeImage(w io.Writer, t Source, o ImageOptions) (ImageInfo, error) {
	if o.MinVersion < 0 || o.MinVersion > 1 || o.MaxVersion > 1 {
		return ImageInfo{}, fmt.Errorf("image version %d is not one that can be written", max(o.MinVersion, o.MaxVersion))
	}
	if o.Algorithm == 0 {
		o.Algorithm = SHA256
	}
	f, err := flatten(t, o)
	if err != nil {
		return ImageInfo{}, err
	}
	l, err := newLayout(f)
	if err != nil {
		return ImageInfo{}, err
	}
	out := &imageWriter{layout: l, w: w, verity: fsverity.New(o.Algorithm), buf: make([]byte, 0, writeBuffer+2*blockSize)}
	out.header()
	for i := range l.nodes {
		out.node(&l.nodes[i], uint32(i))
	}
	out.padTo(l.inodesEnd)
	for _, x := range l.table {
		out.xattr(&l.xattrs[x])
	}
	out.padTo(l.dataStart)
	for i := range l.nodes {
		if n := &l.nodes[i]; n.blocks > 0 {
			out.blocks(n, uint32(i))
		}
	}
	out.flush()
	if out.err != nil {
		return ImageInfo{}, out.err
	}
	return ImageInfo{Version: f.version, Size: l.size(), Inodes: uint64(len(l.nodes)), Digest: out.verity.Sum()}, nil
}

const writeBuffer = 256 << 10

// imageWriter writes the parts of an image in the order in which they stand in
// it. The first error of the underlying writer ends all writing.
type imageWriter struct {
	*layout
	w      io.Writer
	verity *fsverity.Hasher
	buf    []byte
	pos    int64 // of the end of buf in the image
	err    error
}

func (o *imageWriter) flush() {
	if o.err == nil {
		_, _ = o.verity.Write(o.buf)
		_, o.err = o.w.Write(o.buf)
	}
	o.buf = o.buf[:0]
}

// wrote accounts for n bytes that were appended to the buffer.
func (o *imageWriter) wrote(n int) {
	o.pos += int64(n)
	if len(o.buf) >= writeBuffer {
		o.flush()
	}
}

func (o *imageWriter) put(b []byte) {
	o.buf = append(o.buf, b...)
	o.wrote(len(b))
}

func (o *imageWriter) putString(s string) {
	o.buf = append(o.buf, s...)
	o.wrote(len(s))
}

var zeros [blockSize]byte

func (o *imageWriter) padTo(pos int64) {
	for o.pos < pos {
		o.put(zeros[:min(pos-o.pos, blockSize)])
	}
}

func (o *imageWriter) header() {
	le := binary.LittleEndian
	var b [inodesOffset]byte
	le.PutUint32(b[0:], headerMagic)
	le.PutUint32(b[4:], headerVersion)
	if o.hasACL {
		le.PutUint32(b[8:], headerACL)
	}
	le.PutUint32(b[12:], uint32(o.version))
	s := b[superOffset:]
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatMtime|compatFilter)
	s[12] = 12 // log2 of the block size
	le.PutUint16(s[14:], uint16(o.nodes[0].slot))
	le.PutUint64(s[16:], uint64(len(o.nodes)))
	le.PutUint64(s[24:], uint64(o.buildSec))
	le.PutUint32(s[32:], o.buildNsec)
	le.PutUint32(s[36:], uint32(o.size()/blockSize))
	le.PutUint32(s[44:], uint32(o.inodesEnd/blockSize))
	o.put(b[:])
}

// node writes node i with the padding before it, its xattrs and its tail.
func (o *imageWriter) node(n *node, i uint32) {
	o.padTo(n.pos())
	in := o.inode(n)
	le := binary.LittleEndian
	var b [extendedSize]byte
	format := uint16(layoutPlain)
	size, data := n.size(&in), uint32(0)
	switch {
	case in.External():
		chunkBits, _ := chunks(in.Size)
		format, data = layoutChunk, uint32(chunkBits-minChunkBits)
	case n.tail > 0:
		format = layoutInline
	}
	switch {
	case in.isDevice() && !n.whiteout:
		size, data = 0, uint32(in.Rdev)
	case !in.IsDir() && !in.IsRegular() && !in.IsSymlink():
		size = 0
	case n.blocks > 0 && in.External():
		// The chunk format takes the low 16 bits of the block number.
		data |= n.block &^ 0xffff
	case n.blocks > 0:
		data = n.block
	}
	icount := uint16(0)
	if n.xattrSize > 0 {
		icount = uint16((n.xattrSize-xattrHeader)/4 + 1)
	}
	le.PutUint16(b[0:], format<<1)
	le.PutUint16(b[2:], icount)
	le.PutUint16(b[4:], uint16(n.mode()))
	le.PutUint32(b[16:], data)
	le.PutUint32(b[20:], i)
	if n.compact {
		le.PutUint16(b[6:], uint16(o.nlink(n, &in)))
		le.PutUint32(b[8:], uint32(size))
		le.PutUint16(b[24:], uint16(in.UID))
		le.PutUint16(b[26:], uint16(in.GID))
		o.put(b[:compactSize])
	} else {
		b[0] |= 1
		le.PutUint64(b[8:], size)
		le.PutUint32(b[24:], in.UID)
		le.PutUint32(b[28:], in.GID)
		le.PutUint64(b[32:], uint64(in.MtimeSec))
		le.PutUint32(b[40:], in.MtimeNsec)
		le.PutUint32(b[44:], o.nlink(n, &in))
		o.put(b[:])
	}
	o.inodeXattrs(n)
	o.tail(n, &in, i)
}

func (o *imageWriter) inodeXattrs(n *node) {
	if n.xattrSize == 0 {
		return
	}
	le := binary.LittleEndian
	var b [xattrHeader]byte
	le.PutUint32(b[0:], n.filter)
	b[4] = n.shared
	o.put(b[:])
	refs := o.refs[n.xattrs.from:n.xattrs.to]
	shared := 0
	for _, r := range refs {
		if x := &o.xattrs[r]; x.offset >= 0 && shared < int(n.shared) {
			shared++
			o.buf = le.AppendUint32(o.buf, uint32((o.inodesEnd%blockSize+int64(x.offset))/4))
			o.wrote(4)
		}
	}
	shared = 0
	for _, r := range refs {
		x := &o.xattrs[r]
		if x.offset >= 0 && shared < int(n.shared) {
			shared++
			continue
		}
		o.xattr(x)
	}
}

func (o *imageWriter) xattr(x *xattr) {
	index, suffix := splitXattr(o.nameOf(x))
	start := len(o.buf)
	o.buf = append(o.buf, byte(len(suffix)), index)
	o.buf = binary.LittleEndian.AppendUint16(o.buf, uint16(o.valueLen(x)))
	o.buf = append(o.buf, suffix...)
	o.buf = o.appendValue(o.buf, x)
	o.buf = append(o.buf, zeros[:-(len(o.buf)-start)&3]...)
	o.wrote(len(o.buf) - start)
}

// tail writes the data of a node that stands directly behind its inode.
func (o *imageWriter) tail(n *node, in *Inode, i uint32) {
	if n.tail == 0 {
		return
	}
	switch {
	case in.IsDir():
		o.dirents(n, i, true)
	case in.IsSymlink():
		o.putString(in.Payload)
	case in.External():
		for range n.tail / 4 {
			o.buf = binary.LittleEndian.AppendUint32(o.buf, 0xffffffff)
			o.wrote(4)
		}
	default:
		o.putString(in.Content[len(in.Content)-int(n.tail):])
	}
}

// blocks writes the data of a node that stands in blocks of its own.
func (o *imageWriter) blocks(n *node, i uint32) {
	in := o.inode(n)
	switch {
	case in.IsDir():
		o.dirents(n, i, false)
	case in.IsSymlink():
		o.putString(in.Payload)
	case in.External():
		for range blockSize {
			o.buf = append(o.buf, 0xff)
		}
		o.wrote(blockSize)
	default:
		o.putString(in.Content[:len(in.Content)-int(n.tail)])
	}
	o.padTo((int64(n.block) + int64(n.blocks)) * blockSize)
}

// dirents writes either the tail of a directory or its full blocks.
func (o *imageWriter) dirents(n *node, i uint32, tail bool) {
	all := o.list(n, i)
	for block := uint32(0); len(all) > 0; block++ {
		used, count := 0, 0
		for count < len(all) && used+direntSize+len(all[count].name) <= blockSize {
			used += direntSize + len(all[count].name)
			count++
		}
		if isTail := block == n.blocks; isTail == tail {
			o.direntBlock(all[:count])
			if !isTail {
				o.padTo(roundUp(o.pos, blockSize))
			}
		}
		all = all[count:]
	}
}

func (o *imageWriter) direntBlock(list []listed) {
	nameOffset := direntSize * len(list)
	for _, e := range list {
		child := &o.nodes[e.node]
		o.buf = binary.LittleEndian.AppendUint64(o.buf, uint64(child.slot))
		o.buf = binary.LittleEndian.AppendUint16(o.buf, uint16(nameOffset))
		o.buf = append(o.buf, direntType(child.mode()&unix.S_IFMT), 0)
		nameOffset += len(e.name)
	}
	o.wrote(direntSize * len(list))
	for _, e := range list {
		o.putString(e.name)
	}
}
