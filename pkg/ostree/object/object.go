// Package object encodes and decodes the objects of a libostree repository:
// commit, dirtree, dirmeta and the headers of file objects, all of them
// GVariant (ostree-core.h, ostree-core-private.h of libostree).
//
// It is pure: bytes in, bytes out, no I/O. Decoders take foreign bytes; they
// accept normal form only, bound what they allocate by the length of their
// input, and never return a name that could lead out of its directory.
package object

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// MaxMetadata is the size in bytes beyond which libostree refuses a metadata
// object (OSTREE_MAX_METADATA_SIZE).
const MaxMetadata = 128 << 20

// ErrFormat is wrapped by every error about bytes that are not a valid object
// of their type.
var ErrFormat = errors.New("not a valid ostree object")

func malformed(what string, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %w", what, ErrFormat, fmt.Errorf(format, args...))
}

// Checksum is the sha256 that names an object. The zero Checksum stands for
// "none".
type Checksum [sha256.Size]byte

// Sum returns the checksum of a metadata object's bytes.
func Sum(data []byte) Checksum { return sha256.Sum256(data) }

// ParseChecksum parses 64 lower-case hex digits.
func ParseChecksum(s string) (Checksum, error) {
	var c Checksum
	if len(s) != hex.EncodedLen(len(c)) {
		return c, fmt.Errorf("ostree checksum %.80q has %d characters instead of 64", s, len(s))
	}
	for i := range len(s) {
		if b := s[i]; (b < '0' || b > '9') && (b < 'a' || b > 'f') {
			return c, fmt.Errorf("ostree checksum %q: %q is not a lower-case hex digit", s, b)
		}
	}
	_, err := hex.Decode(c[:], []byte(s))
	return c, err
}

// String returns 64 lower-case hex digits.
func (c Checksum) String() string { return hex.EncodeToString(c[:]) }

// IsZero reports whether c stands for "none".
func (c Checksum) IsZero() bool { return c == Checksum{} }

// Compare orders checksums bytewise.
func (c Checksum) Compare(d Checksum) int { return bytes.Compare(c[:], d[:]) }

func checksumFrom(b []byte) (Checksum, error) {
	if len(b) != sha256.Size {
		return Checksum{}, fmt.Errorf("a checksum of %d bytes", len(b))
	}
	return Checksum(b), nil
}

// Type is the type of an object.
type Type uint8

// The object types, with libostree's numbers (OstreeObjectType).
const (
	TypeFile Type = iota + 1
	TypeDirtree
	TypeDirmeta
	TypeCommit
	TypeTombstoneCommit
	TypeCommitMeta
	TypePayloadLink
	TypeFileXattrs
	TypeFileXattrsLink
)

var extensions = [...]string{
	TypeFile: "file", TypeDirtree: "dirtree", TypeDirmeta: "dirmeta", TypeCommit: "commit",
	TypeTombstoneCommit: "tombstone-commit", TypeCommitMeta: "commitmeta", TypePayloadLink: "payload-link",
	TypeFileXattrs: "file-xattrs", TypeFileXattrsLink: "file-xattrs-link",
}

// String returns the type's file name extension in a bare repository.
func (t Type) String() string {
	if t == 0 || int(t) >= len(extensions) {
		return fmt.Sprintf("type-%d", uint8(t))
	}
	return extensions[t]
}

// IsMeta reports whether objects of the type are GVariants named by the sha256
// of their bytes.
func (t Type) IsMeta() bool { return t == TypeDirtree || t == TypeDirmeta || t == TypeCommit }

// Name identifies an object of a repository.
type Name struct {
	Checksum Checksum
	Type     Type
}

// String returns CHECKSUM.EXTENSION, as libostree prints object names.
func (n Name) String() string { return n.Checksum.String() + "." + n.Type.String() }

// Path returns the object's path below objects/: xx/<62 hex>.EXTENSION. In an
// archive repository the extension of a file object is filez.
func (n Name) Path(archive bool) string {
	b := make([]byte, 0, 3+62+1+16)
	b = hex.AppendEncode(b, n.Checksum[:1])
	b = append(b, '/')
	b = hex.AppendEncode(b, n.Checksum[1:])
	b = append(b, '.')
	b = append(b, n.Type.String()...)
	if archive && n.Type == TypeFile {
		b = append(b, 'z')
	}
	return string(b)
}

// ParsePath parses the two parts of a path below objects/: the directory's
// name and the file's. ok is false for what is not an object's name.
func ParsePath(dir, file string, archive bool) (n Name, ok bool) {
	hexLen := 2*len(n.Checksum) - 2
	if len(dir) != 2 || len(file) <= hexLen+1 || file[hexLen] != '.' {
		return n, false
	}
	c, err := ParseChecksum(dir + file[:hexLen])
	if err != nil {
		return n, false
	}
	ext := file[hexLen+1:]
	if archive && ext == "filez" {
		return Name{c, TypeFile}, true
	}
	for t := TypeFile; t <= TypeFileXattrsLink; t++ {
		if ext == extensions[t] && (t != TypeFile || !archive) {
			return Name{c, t}, true
		}
	}
	return n, false
}
