package ostree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
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

// sumRecords tells sets of sorted records apart.
func sumRecords(list []record) (out [sha256.Size]byte) {
	h := sha256.New()
	for i := range list {
		list[i].write(h)
	}
	h.Sum(out[:0])
	return out
}

func (r *record) write(w io.Writer) {
	_, _ = w.Write(r.content[:])
	_, _ = w.Write(r.header[:])
	_, _ = w.Write(r.object[:])
}

// layerFileName turns a diffID into the name of its file.
func layerFileName(diffID string) (string, error) {
	sum, ok := strings.CutPrefix(diffID, "sha256:")
	if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 2*sha256.Size || strings.ToLower(sum) != sum {
		return "", fmt.Errorf("diffID %q is not a sha256 digest", diffID)
	}
	return "sha256-" + sum, nil
}
