package object

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/gvariant"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Meta is the metadata of a file or directory as an object holds it.
type Meta struct {
	UID, GID uint32
	Mode     uint32         // file type and permissions
	Target   string         // symlinks: the link's text
	Xattrs   []fstree.Xattr // in bytewise order of the names
}

const (
	xattrsType  = "a(ayay)"
	dirmetaType = "(uuu" + xattrsType + ")"
	headerType  = "(uuuus" + xattrsType + ")"
	archiveType = "(tuuuus" + xattrsType + ")"
	// prefixLen is the length of what precedes a header variant in a stream: its
	// length in big endian and four bytes that align it to eight.
	prefixLen = 8
)

var (
	xattrShape   = gvariant.StructOf(xattrsType[1:])
	dirmetaShape = gvariant.StructOf(dirmetaType)
	headerShape  = gvariant.StructOf(headerType)
	archiveShape = gvariant.StructOf(archiveType)
)

func be32(u uint32) gvariant.Value {
	return gvariant.Value{Type: "u", Data: binary.BigEndian.AppendUint32(nil, u)}
}

func be64(u uint64) gvariant.Value {
	return gvariant.Value{Type: "t", Data: binary.BigEndian.AppendUint64(nil, u)}
}

func xattrsValue(list []fstree.Xattr) gvariant.Value {
	vals := make([]gvariant.Value, len(list))
	for i, a := range list {
		vals[i] = gvariant.Tuple(gvariant.ByteString(a.Name), gvariant.Bytes([]byte(a.Value)))
	}
	return gvariant.Array(xattrsType[1:], vals)
}

// EncodeXattrs encodes a(ayay): the content of a file-xattrs object.
func EncodeXattrs(x *fstree.Xattrs) []byte { return xattrsValue(x.All()).Data }

// DecodeXattrs decodes a(ayay). Names are unique; they are returned in bytewise
// order, in which libostree hashes them (_ostree_canonicalize_xattrs), although
// it stores them in archive headers and split xattrs in the order of the commit.
func DecodeXattrs(data []byte) ([]fstree.Xattr, error) {
	list, err := decodeXattrs(data)
	if err != nil {
		return nil, malformed("extended attributes", "%w", err)
	}
	return list, nil
}

func decodeXattrs(data []byte) ([]fstree.Xattr, error) {
	var list []fstree.Xattr
	var m []gvariant.Value
	err := gvariant.Value{Type: xattrsType, Data: data}.Each(func(v gvariant.Value) error {
		var err error
		if m, err = xattrShape.Split(m[:0], v.Data); err != nil {
			return err
		}
		name, err := m[0].ByteString()
		switch {
		case err != nil:
			return err
		case name == "":
			return fmt.Errorf("extended attribute %d has no name", len(list))
		}
		list = append(list, fstree.Xattr{Name: name, Value: string(m[1].Data)})
		return nil
	})
	slices.SortFunc(list, func(a, b fstree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(list); i++ {
		if list[i].Name == list[i-1].Name {
			return nil, fmt.Errorf("extended attribute %q occurs twice", list[i].Name)
		}
	}
	return list, err
}

// EncodeDirmeta encodes a dirmeta. mode includes S_IFDIR.
func EncodeDirmeta(uid, gid, mode uint32, x *fstree.Xattrs) []byte {
	return encodeMeta(uid, gid, mode, x)
}

// EncodeFileMeta encodes (uuua(ayay)) for a file: the value of the xattr
// user.ostreemeta in a bare-user repository.
func EncodeFileMeta(uid, gid, mode uint32, x *fstree.Xattrs) []byte {
	return encodeMeta(uid, gid, mode, x)
}

func encodeMeta(uid, gid, mode uint32, x *fstree.Xattrs) []byte {
	return gvariant.Tuple(be32(uid), be32(gid), be32(mode), xattrsValue(x.All())).Data
}

// DecodeDirmeta decodes a dirmeta.
func DecodeDirmeta(data []byte) (Meta, error) {
	m, err := decodeMeta(data)
	if err == nil && m.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = fmt.Errorf("mode %#o is not a directory's", m.Mode)
	}
	if err != nil {
		return Meta{}, malformed("dirmeta", "%w", err)
	}
	return m, nil
}

// DecodeFileMeta decodes the value of user.ostreemeta.
func DecodeFileMeta(data []byte) (Meta, error) {
	m, err := decodeMeta(data)
	if err == nil {
		err = checkFileType(m.Mode)
	}
	if err != nil {
		return Meta{}, malformed("user.ostreemeta", "%w", err)
	}
	return m, nil
}

func decodeMeta(data []byte) (m Meta, err error) {
	v, err := dirmetaShape.Split(nil, data)
	if err != nil {
		return m, err
	}
	m.UID, m.GID, m.Mode = beUint32(v[0]), beUint32(v[1]), beUint32(v[2])
	if err = checkMode(m.Mode); err != nil {
		return m, err
	}
	m.Xattrs, err = decodeXattrs(v[3].Data)
	return m, err
}

func beUint32(v gvariant.Value) uint32 { return binary.BigEndian.Uint32(v.Data) }

func checkMode(mode uint32) error {
	if mode&^(unix.S_IFMT|0o7777) != 0 {
		return fmt.Errorf("mode %#o has bits that no file has", mode)
	}
	return nil
}

func checkFileType(mode uint32) error {
	if t := mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFLNK {
		return fmt.Errorf("mode %#o is neither a regular file's nor a symlink's", mode)
	}
	return nil
}

// FileHeader returns what precedes the content of a file object in its
// checksum: the length of the header variant in big endian, four NUL bytes,
// and the variant.
func FileHeader(uid, gid, mode uint32, target string, x *fstree.Xattrs) []byte {
	return withPrefix(gvariant.Tuple(be32(uid), be32(gid), be32(mode), be32(0),
		gvariant.String(target), xattrsValue(x.All())).Data)
}

// RawFileHeader is FileHeader for xattrs that are encoded already, in whatever
// order: libostree before 2024.10 did not sort them.
func RawFileHeader(uid, gid, mode uint32, target string, xattrs []byte) []byte {
	return withPrefix(gvariant.Tuple(be32(uid), be32(gid), be32(mode), be32(0),
		gvariant.String(target), gvariant.Value{Type: xattrsType, Data: xattrs}).Data)
}

// ArchiveHeader returns what precedes the deflated content in a .filez object.
// size is the length of the content in bytes.
func ArchiveHeader(size uint64, uid, gid, mode uint32, target string, x *fstree.Xattrs) []byte {
	return withPrefix(gvariant.Tuple(be64(size), be32(uid), be32(gid), be32(mode), be32(0),
		gvariant.String(target), xattrsValue(x.All())).Data)
}

func withPrefix(variant []byte) []byte {
	out := make([]byte, prefixLen, prefixLen+len(variant))
	binary.BigEndian.PutUint32(out, uint32(len(variant)))
	return append(out, variant...)
}

// HeaderLen returns the length of the header variant that follows an 8-byte
// stream prefix.
func HeaderLen(prefix [prefixLen]byte) (int, error) {
	n := binary.BigEndian.Uint32(prefix[:])
	if n > MaxMetadata {
		return 0, malformed("file header", "%d bytes are too many", n)
	}
	return int(n), nil
}

// DecodeFileHeader decodes a header variant without its 8-byte prefix.
func DecodeFileHeader(variant []byte) (Meta, error) {
	v, err := headerShape.Split(nil, variant)
	if err != nil {
		return Meta{}, malformed("file header", "%w", err)
	}
	return headerMeta(v)
}

// DecodeArchiveHeader decodes the header variant of a .filez object without
// its 8-byte prefix, and the length in bytes of the content once inflated.
func DecodeArchiveHeader(variant []byte) (Meta, uint64, error) {
	v, err := archiveShape.Split(nil, variant)
	if err != nil {
		return Meta{}, 0, malformed("archive file header", "%w", err)
	}
	m, err := headerMeta(v[1:])
	return m, binary.BigEndian.Uint64(v[0].Data), err
}

func headerMeta(v []gvariant.Value) (m Meta, err error) {
	m.UID, m.GID, m.Mode = beUint32(v[0]), beUint32(v[1]), beUint32(v[2])
	if err = checkMode(m.Mode); err == nil {
		err = checkFileType(m.Mode)
	}
	if err == nil && beUint32(v[3]) != 0 {
		err = fmt.Errorf("device number %d instead of 0", beUint32(v[3]))
	}
	if err == nil {
		m.Target, err = v[4].Str()
	}
	if err == nil && m.Mode&unix.S_IFMT == unix.S_IFREG && m.Target != "" {
		err = fmt.Errorf("a regular file has the link text %q", m.Target)
	}
	if err == nil {
		m.Xattrs, err = decodeXattrs(v[5].Data)
	}
	if err != nil {
		return Meta{}, malformed("file header", "%w", err)
	}
	return m, nil
}

// CheckTarget returns a *NameError for a link text that a file header cannot
// hold.
func CheckTarget(target string) error {
	if strings.IndexByte(target, 0) >= 0 || !utf8.ValidString(target) {
		return &NameError{target, "as the text of a symlink it must be UTF-8 without NUL bytes"}
	}
	return nil
}
