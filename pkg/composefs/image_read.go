package composefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// incompatChunked is the one feature of EROFS that an image may need.
const incompatChunked = 1 << 2

// maxPath bounds the length of a path, and with it the depth of a tree.
const maxPath = 1 << 16

// ReadImage reads a composefs image of version 0, 1 or 2 (composefs-rs's early
// format). What composefs adds is taken off again: stubs, overlayfs's xattrs,
// escapes. Written in the same version, a tree from a version 0 or 1 image
// gives the same image. Sizes of directories are 0.
//
// The image may be anything: work and memory stay in proportion to its length,
// and what is no well-formed tree is refused with an error of kind Corrupt.
func ReadImage(data []byte) (*Tree, ImageInfo, error) {
	r := &imageReader{
		data: data, tree: &Tree{}, linked: make(map[*Inode]bool),
		bodies: make(map[string]*rawXattrs), sharedAt: make(map[int64]fstree.Xattr),
		budget: int64(len(data)), xattrBudget: 64*int64(len(data)) + 4<<20,
	}
	err := r.superblock()
	if err == nil {
		err = r.readTree()
	}
	if err != nil {
		return nil, ImageInfo{}, fault.New(fault.Corrupt, "", "read composefs image: %w", err)
	}
	return r.tree, ImageInfo{Version: r.version, Size: int64(len(data)), Inodes: r.inos}, nil
}

type imageReader struct {
	data      []byte
	tree      *Tree
	version   int
	inos      uint64
	rootNid   uint64
	buildSec  int64
	buildNsec uint32
	xattrBase int64

	inodes   map[uint64]*stored
	linked   map[*Inode]bool // those with a hard link
	bodies   map[string]*rawXattrs
	sharedAt map[int64]fstree.Xattr
	names    [256]map[string]string // of xattrs by prefix number and suffix
	// In an honest image no two inodes overlap, so what is read stays below
	// its length. Shared xattrs are the exception and have a bound of their own.
	budget      int64
	xattrBudget int64
}

// stored is an inode of the image.
type stored struct {
	*Inode
	ino     uint32
	placed  bool // it has its entry in the tree
	dirents [][]byte
	raw     *rawXattrs
	pathLen int
}

// bytes returns part of the image.
func (r *imageReader) bytes(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > int64(len(r.data)) || n > int64(len(r.data))-off {
		return nil, fmt.Errorf("%d bytes at offset %d are beyond the image of %d bytes", n, off, len(r.data))
	}
	return r.data[off : off+n : off+n], nil
}

// charge accounts for n bytes of inode or data.
func (r *imageReader) charge(n int64) error {
	if r.budget -= n; r.budget < 0 {
		return errors.New("inodes overlap")
	}
	return nil
}

func (r *imageReader) superblock() error {
	le := binary.LittleEndian
	b, err := r.bytes(0, inodesOffset)
	if err != nil {
		return errors.New("too short for an image")
	}
	if le.Uint32(b[0:]) != headerMagic || le.Uint32(b[4:]) != headerVersion {
		return errors.New("not a composefs image")
	}
	if r.version = int(le.Uint32(b[12:])); r.version > 2 {
		return fmt.Errorf("image version %d is not known", r.version)
	}
	s := b[superOffset:]
	if le.Uint32(s[0:]) != superMagic {
		return errors.New("no EROFS superblock")
	}
	if s[12] != 12 {
		return fmt.Errorf("block size of 2^%d bytes, want 2^12", s[12])
	}
	if f := le.Uint32(s[80:]) &^ incompatChunked; f != 0 {
		return fmt.Errorf("EROFS features %#x are not those of composefs", f)
	}
	if le.Uint32(s[40:]) != 0 {
		return errors.New("inodes that do not start at block 0")
	}
	if blocks := int64(le.Uint32(s[36:])); blocks*blockSize != int64(len(r.data)) {
		return fmt.Errorf("%d blocks in %d bytes", blocks, len(r.data))
	}
	r.rootNid = uint64(le.Uint16(s[14:]))
	r.inos = le.Uint64(s[16:])
	r.inodes = make(map[uint64]*stored, min(r.inos, uint64(len(r.data))/slotSize))
	r.buildSec = int64(le.Uint64(s[24:]))
	r.buildNsec = le.Uint32(s[32:])
	r.xattrBase = int64(le.Uint32(s[44:])) * blockSize
	return nil
}

// inode returns the inode at nid, which is read once.
func (r *imageReader) inode(nid uint64) (*stored, error) {
	if n, ok := r.inodes[nid]; ok {
		return n, nil
	}
	if nid > uint64(len(r.data))/slotSize {
		return nil, fmt.Errorf("inode %d is beyond the image", nid)
	}
	n := &stored{Inode: &Inode{}}
	if err := r.readInode(n, int64(nid)*slotSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	r.inodes[nid] = n
	return n, nil
}

func (r *imageReader) readInode(n *stored, off int64) error {
	le := binary.LittleEndian
	b, err := r.bytes(off, compactSize)
	if err != nil {
		return err
	}
	format := le.Uint16(b[0:])
	fixed := int64(compactSize)
	if format&1 != 0 {
		fixed = extendedSize
		if b, err = r.bytes(off, fixed); err != nil {
			return err
		}
	}
	n.Mode = uint32(le.Uint16(b[4:]))
	iu := le.Uint32(b[16:])
	n.ino = le.Uint32(b[20:])
	if fixed == compactSize {
		n.Nlink = uint32(le.Uint16(b[6:]))
		n.Size = uint64(le.Uint32(b[8:]))
		n.UID, n.GID = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		n.MtimeSec, n.MtimeNsec = r.buildSec, r.buildNsec
	} else {
		n.Size = le.Uint64(b[8:])
		n.UID, n.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
		n.MtimeSec, n.MtimeNsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
		n.Nlink = le.Uint32(b[44:])
	}
	body := int64(0)
	if icount := le.Uint16(b[2:]); icount > 0 {
		body = xattrHeader + int64(icount-1)*4
	}
	if err := r.charge(fixed + body); err != nil {
		return err
	}
	if body > 0 {
		if n.raw, err = r.xattrs(off+fixed, body); err != nil {
			return err
		}
	}
	return r.readData(n, format>>1, int64(iu), off+fixed+body)
}

// readData reads what the file type has in place of data; end is where the
// inode's tail would start.
func (r *imageReader) readData(n *stored, layout uint16, iu, end int64) error {
	size := n.Size
	switch n.Type() {
	case unix.S_IFREG:
		if layout == layoutChunk || size == 0 {
			return nil
		}
		parts, err := r.parts(size, layout, iu, end)
		if err != nil {
			return err
		}
		n.Content = string(bytes.Join(parts, nil))
		return nil
	case unix.S_IFDIR:
		n.Size = 0
		parts, err := r.parts(size, layout, iu, end)
		n.dirents = parts
		return err
	case unix.S_IFLNK:
		if size == 0 || size > maxPayload {
			return fmt.Errorf("a symlink target of %d bytes", size)
		}
		parts, err := r.parts(size, layout, iu, end)
		if err != nil {
			return err
		}
		n.Payload = string(bytes.Join(parts, nil))
		if bytes.IndexByte([]byte(n.Payload), 0) >= 0 {
			return errors.New("a symlink target with a NUL")
		}
		return nil
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = uint64(iu)
	case unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return fmt.Errorf("mode %o has no file type", n.Mode)
	}
	n.Size = 0
	return nil
}

// parts returns a file's data, block by block.
func (r *imageReader) parts(size uint64, layout uint16, block, end int64) ([][]byte, error) {
	if size > uint64(len(r.data)) {
		return nil, fmt.Errorf("%d bytes of data in an image of %d", size, len(r.data))
	}
	if err := r.charge(int64(size)); err != nil {
		return nil, err
	}
	rest := int64(size)
	var parts [][]byte
	for rest > 0 {
		n := min(rest, blockSize)
		off := block * blockSize
		switch {
		case layout == layoutInline && rest < blockSize:
			if off = end; off%blockSize+n > blockSize {
				return nil, errors.New("the tail crosses a block boundary")
			}
		case layout != layoutInline && layout != layoutPlain:
			return nil, fmt.Errorf("data layout %d", layout)
		}
		b, err := r.bytes(off, n)
		if err != nil {
			return nil, err
		}
		parts = append(parts, b)
		rest -= n
		block++
	}
	return parts, nil
}

// dirent is a directory entry of the image.
type dirent struct {
	name string
	nid  uint64
}

// direntsOf decodes one block of a directory, or its tail.
func direntsOf(b []byte) ([]dirent, error) {
	le := binary.LittleEndian
	if len(b) < direntSize {
		return nil, errors.New("a directory block that is too short")
	}
	first := int(le.Uint16(b[8:]))
	if first == 0 || first%direntSize != 0 || first > len(b) {
		return nil, fmt.Errorf("the names of a directory block start at %d", first)
	}
	count := first / direntSize
	out := make([]dirent, count)
	for i := range out {
		e := b[i*direntSize:]
		from, to := int(le.Uint16(e[8:])), len(b)
		if i+1 < count {
			to = int(le.Uint16(e[direntSize+8:]))
		}
		if from < first || to < from || to > len(b) {
			return nil, errors.New("the names of a directory block are out of order")
		}
		name := b[from:to]
		if i+1 == count {
			name, _, _ = bytes.Cut(name, []byte{0})
		}
		out[i] = dirent{string(name), le.Uint64(e)}
	}
	return out, nil
}
