package ostree

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"

	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// savedLayer is what kedge keeps of an imported layer, beside the repository
// (layers/<diffID>) and in the staging directory.
//
// The file is: "kedge layer\n", the version in one byte, the layer commit (32
// bytes, zero while staged), the blob's digest (length in two bytes and text),
// the index (length in eight bytes and bytes), the records (their number in
// eight bytes, then content sha256, header hash and object checksum of each),
// and the sha256 of all that. Integers are little-endian.
//
// Index and records are as large as a tree. The file is written and read as a
// stream, and an import holds neither of the two longer than it has to.
type savedLayer struct {
	commit  object.Checksum
	blob    string
	index   []byte
	records []record // sorted

	stored bool              // read from kedge's state directory
	sum    [sha256.Size]byte // sumRecords, of one that is stored
}

// equal compares what two layers of the same index say of their contents.
func (l *savedLayer) equal(commit object.Checksum, blob string, records recordList) bool {
	return l.commit == commit && l.blob == blob && l.sum == sumRecords(records)
}

const (
	layerMagic   = "kedge layer\n"
	layerVersion = 1
)

var errLayerFile = errors.New("not a layer file of this version of kedge")

// write writes the file with an index of size bytes, which may be that of
// another file, and the given records.
func (l *savedLayer) write(w io.Writer, index io.Reader, size int64, records recordList) error {
	h := sha256.New()
	b := bufio.NewWriterSize(w, 64<<10)
	both := io.MultiWriter(b, h)
	head := append([]byte(layerMagic), layerVersion)
	head = append(head, l.commit[:]...)
	head = append(binary.LittleEndian.AppendUint16(head, uint16(len(l.blob))), l.blob...)
	_, _ = both.Write(binary.LittleEndian.AppendUint64(head, uint64(size)))
	if _, err := io.CopyN(both, index, size); err != nil {
		return err
	}
	_, _ = both.Write(binary.LittleEndian.AppendUint64(nil, uint64(records.n)))
	for r := range records.all {
		r.write(both)
	}
	_, _ = b.Write(h.Sum(nil))
	return b.Flush() // bufio keeps the first error
}

// layerReader reads a savedLayer's file.
type layerReader struct {
	r    io.Reader
	h    hash.Hash
	left int64 // bytes, without the checksum
	err  error
}

// newLayerReader reads a file of size bytes from r.
func newLayerReader(r io.Reader, size int64) *layerReader {
	h := sha256.New()
	return &layerReader{r: io.TeeReader(bufio.NewReaderSize(r, 64<<10), h), h: h, left: size - sha256.Size}
}

// bytes reads n bytes. A file that is shorter is no layer's.
func (d *layerReader) bytes(n uint64) []byte {
	if d.err != nil || d.left < 0 || n > uint64(d.left) {
		d.err = errLayerFile
		return nil
	}
	b := make([]byte, n)
	d.full(b)
	return b
}

func (d *layerReader) full(b []byte) {
	if d.err == nil && int64(len(b)) > d.left {
		d.err = errLayerFile
	}
	if d.err == nil {
		d.left -= int64(len(b))
		_, d.err = io.ReadFull(d.r, b)
	}
}

func (d *layerReader) uint(size int) uint64 {
	var b [8]byte
	d.full(b[:size])
	return binary.LittleEndian.Uint64(b[:])
}

// head reads what precedes the index, and the index's length.
func (d *layerReader) head() (l *savedLayer, index uint64) {
	if magic := d.bytes(uint64(len(layerMagic) + 1)); !bytes.Equal(magic, append([]byte(layerMagic), layerVersion)) {
		d.err = errLayerFile
	}
	l = &savedLayer{}
	d.full(l.commit[:])
	l.blob = string(d.bytes(d.uint(2)))
	return l, d.uint(8)
}

// readLayerFile reads a file of size bytes. It fails for one that was torn by a
// power cut, or that another version of kedge wrote; the layer then counts as
// absent.
func readLayerFile(r io.Reader, size int64) (*savedLayer, error) {
	d := newLayerReader(r, size)
	l, n := d.head()
	l.index = d.bytes(n)
	n = d.uint(8)
	if d.err != nil || n > uint64(d.left/recordLen) || int64(n)*recordLen != d.left {
		return nil, errLayerFile
	}
	l.records = make([]record, n)
	for i := range l.records {
		r := &l.records[i]
		d.full(r.content[:])
		d.full(r.header[:])
		d.full(r.object[:])
	}
	want := d.h.Sum(nil)
	got := make([]byte, len(want))
	if d.err != nil {
		return nil, d.err
	}
	if _, err := io.ReadFull(d.r, got); err != nil || !bytes.Equal(got, want) {
		return nil, errLayerFile
	}
	return l, nil
}

// savedIndex is the index in a layer's file.
type savedIndex struct {
	io.Reader
	io.Closer
	size int64
}

// openIndex finds the index in a file of size bytes, which it closes in the end.
func openIndex(f io.ReadSeekCloser, size int64) (*savedIndex, error) {
	d := newLayerReader(f, size)
	l, n := d.head()
	if d.err != nil || n > uint64(d.left) {
		return nil, errors.Join(errLayerFile, f.Close())
	}
	start := int64(len(layerMagic) + 1 + len(l.commit) + 2 + len(l.blob) + 8)
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &savedIndex{f, f, int64(n)}, nil
}
