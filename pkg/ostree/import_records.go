package ostree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
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

// recordList is a sorted list of records that need not be in memory.
type recordList struct {
	n   int
	all iter.Seq[record]
}

func listOf(r []record) recordList { return recordList{len(r), slices.Values(r)} }

// recordsOf returns the records of a layer's contents. The set has nearly all of
// them, in their order; of a large layer there is no room for a second list.
func (s *objectSet) recordsOf(l *ContainerLayer, t *layerTree) recordList {
	used := make([]bool, len(s.list))
	out := recordList{}
	use := func(n *fstree.Inode) {
		if !n.IsRegular() || n.Size == 0 {
			return
		}
		if i := s.find(n); !used[i] {
			used[i] = true
			out.n++
		}
	}
	var unsorted records
	for _, o := range l.Objects {
		if o.Unsorted {
			// No header leads to this object; it only has the content.
			unsorted.add(record{contentOf(o.Inode), hashHeader(o.Checksum[:]), o.Checksum})
			continue
		}
		use(o.Inode)
	}
	if t != nil {
		eachFile(t.tree.Root, nil, use)
	}
	unsorted.sort()
	out.n += len(unsorted.list)
	out.all = func(yield func(record) bool) {
		rest := unsorted.list
		for i := range s.list {
			if !used[i] {
				continue
			}
			r := s.record(i)
			for len(rest) > 0 && rest[0].compare(&r) < 0 {
				if !yield(rest[0]) {
					return
				}
				rest = rest[1:]
			}
			if !yield(r) {
				return
			}
		}
		for _, r := range rest {
			if !yield(r) {
				return
			}
		}
	}
	return out
}

// record returns what the record of an item says.
func (s *objectSet) record(i int) record {
	it := &s.list[i]
	return record{it.content(), s.headers[it.header].hash, it.object}
}

// of returns the records of a content.
func (s *objectSet) of(d fstree.Digest) (out []record) {
	i, _ := slices.BinarySearchFunc(s.list, d, func(it item, d fstree.Digest) int {
		c := it.content()
		return bytes.Compare(c[:], d[:])
	})
	for ; i < len(s.list) && s.list[i].content() == d; i++ {
		out = append(out, s.record(i))
	}
	return out
}

// sumRecords tells lists apart.
func sumRecords(list recordList) (out [sha256.Size]byte) {
	h := sha256.New()
	for r := range list.all {
		r.write(h)
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
