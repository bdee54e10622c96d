package ostree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// record says that the content with that sha256, behind the file header with
// that hash, is that file object.
type record struct {
	content fstree.Digest
	header  headerHash
	object  object.Checksum
}

// headerHash is the beginning of the sha256 of object.FileHeader.
type headerHash [16]byte

func hashHeader(header []byte) headerHash {
	sum := sha256.Sum256(header)
	return headerHash(sum[:16])
}

const recordLen = sha256.Size + 16 + sha256.Size

func (r *record) compare(o *record) int {
	if c := bytes.Compare(r.content[:], o.content[:]); c != 0 {
		return c
	}
	return bytes.Compare(r.header[:], o.header[:])
}

// records is a set of records: sorted when it is searched, 80 bytes each.
type records struct {
	list   []record
	sorted bool
}

func (s *records) add(r ...record) {
	s.list = append(slices.Grow(s.list, len(r)), r...)
	s.sorted = false
}

func (s *records) sort() {
	if s.sorted {
		return
	}
	slices.SortFunc(s.list, func(a, b record) int { return a.compare(&b) })
	s.list = slices.CompactFunc(s.list, func(a, b record) bool { return a.compare(&b) == 0 })
	s.sorted = true
}

// of returns the records of a content.
func (s *records) of(d fstree.Digest) []record {
	s.sort()
	i, _ := slices.BinarySearchFunc(s.list, d, func(r record, d fstree.Digest) int { return bytes.Compare(r.content[:], d[:]) })
	j := i
	for j < len(s.list) && s.list[j].content == d {
		j++
	}
	return s.list[i:j]
}

// savedLayer is what kedge keeps of an imported layer, beside the repository
// (layers/<diffID>) and in the staging directory.
//
// The file is: "kedge layer\n", the version in one byte, the layer commit (32
// bytes, zero while staged), the blob's digest (length in two bytes and text),
// the index (length in eight bytes and bytes), the records (their number in
// eight bytes, then content sha256, header hash and object checksum of each),
// and the sha256 of all that. Integers are little-endian.
type savedLayer struct {
	commit  object.Checksum
	blob    string
	index   []byte
	records []record // sorted

	stored bool // read from kedge's state directory
}

// equal compares what two layers of the same index say of their contents.
func (l *savedLayer) equal(o *savedLayer) bool {
	return l.commit == o.commit && l.blob == o.blob && slices.Equal(l.records, o.records)
}

const (
	layerMagic   = "kedge layer\n"
	layerVersion = 1
)

var errLayerFile = errors.New("not a layer file of this version of kedge")

func (l *savedLayer) encode() []byte {
	b := make([]byte, 0, len(layerMagic)+128+len(l.index)+len(l.records)*recordLen)
	b = append(append(b, layerMagic...), layerVersion)
	b = append(b, l.commit[:]...)
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(l.blob))), l.blob...)
	b = append(binary.LittleEndian.AppendUint64(b, uint64(len(l.index))), l.index...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(l.records)))
	for i := range l.records {
		r := &l.records[i]
		b = append(append(append(b, r.content[:]...), r.header[:]...), r.object[:]...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeLayerFile fails for a file that was torn by a power cut, or that
// another version of kedge wrote; the layer then counts as absent. The index
// shares data's memory.
func decodeLayerFile(data []byte) (*savedLayer, error) {
	body := len(data) - sha256.Size
	if body < 0 || sha256.Sum256(data[:body]) != [sha256.Size]byte(data[body:]) {
		return nil, errLayerFile
	}
	data, ok := bytes.CutPrefix(data[:body], append([]byte(layerMagic), layerVersion))
	take := func(n uint64) []byte {
		if uint64(len(data)) < n {
			ok, n = false, uint64(len(data))
		}
		head := data[:n]
		data = data[n:]
		return head
	}
	l := &savedLayer{}
	copy(l.commit[:], take(sha256.Size))
	l.blob = string(take(uint64(binary.LittleEndian.Uint16(padded(take(2), 2)))))
	l.index = take(binary.LittleEndian.Uint64(padded(take(8), 8)))
	n := binary.LittleEndian.Uint64(padded(take(8), 8))
	if !ok || n > uint64(len(data)/recordLen) || n*recordLen != uint64(len(data)) {
		return nil, errLayerFile
	}
	l.records = make([]record, n)
	for i := range l.records {
		r := &l.records[i]
		copy(r.content[:], take(sha256.Size))
		copy(r.header[:], take(16))
		copy(r.object[:], take(sha256.Size))
	}
	return l, nil
}

func padded(b []byte, n int) []byte { return append(slices.Clone(b), make([]byte, n-len(b))...) }

// layerFileName turns a diffID into the name of its file.
func layerFileName(diffID string) (string, error) {
	sum, ok := strings.CutPrefix(diffID, "sha256:")
	if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 2*sha256.Size || strings.ToLower(sum) != sum {
		return "", fmt.Errorf("diffID %q is not a sha256 digest", diffID)
	}
	return "sha256-" + sum, nil
}
