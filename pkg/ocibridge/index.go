package ocibridge

import (
	"crypto/sha256"

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
// The body is what fstree.Encoder writes: diffID, tar length, role, the table of
// xattr sets, then the entries.
const (
	indexMagic   = "kedgelayer"
	indexVersion = 1
)

// EncodeIndex returns the bytes of an index. The same index gives the same
// bytes.
func EncodeIndex(x *Index) []byte {
	e := &fstree.Encoder{B: make([]byte, 0, x.size())}
	e.B = append(append(e.B, indexMagic...), indexVersion)
	e.String(x.DiffID)
	e.Int(x.TarBytes)
	e.Uint(uint64(x.Role))
	if x.Role == Derived {
		e.Layer(x.Layer)
	} else {
		encodeObjects(e, x.Objects)
	}
	sum := sha256.Sum256(e.B)
	return append(e.B, sum[:]...)
}

// size returns about how many bytes the index takes: buffers that grow would
// take twice that.
func (x *Index) size() int {
	const others = 256 // magic, checksum, diffID, numbers
	if x.Role == Derived {
		return others + x.Layer.PackedLen()
	}
	return others + x.Objects.size()
}

// DecodeIndex reads an index, which shares memory with b. An index that is
// damaged, or of another version, is a Corrupt error; its layer has to be
// fetched again.
func DecodeIndex(b []byte) (*Index, error) {
	body, ok := checkSum(b)
	if !ok {
		return nil, fault.New(fault.Corrupt, indexHint, "layer index: wrong checksum or not an index")
	}
	if body[len(indexMagic)] != indexVersion {
		return nil, fault.New(fault.Corrupt, indexHint, "layer index: version %d, expected %d", body[len(indexMagic)], indexVersion)
	}
	d := fstree.NewDecoder(body[len(indexMagic)+1:])
	x := &Index{DiffID: d.String(), TarBytes: d.Int(), Role: Role(d.Uint(uint64(OSTreeChunk)))}
	if x.Role == Derived {
		x.Layer = d.Layer()
	} else {
		x.Objects = decodeIndexObjects(d)
	}
	if d.Err() == nil && d.Left() > 0 {
		d.Fail("%d bytes too many", d.Left())
	}
	if d.Err() != nil {
		return nil, fault.New(fault.Corrupt, indexHint, "layer index: %w", d.Err())
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
