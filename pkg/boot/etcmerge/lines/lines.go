// Package lines merges those files of /etc that are lists, a line an entry, and
// that a machine and its image both add to: passwd, group, shadow, gshadow,
// subuid, subgid, fstab. The formats are those of passwd(5), group(5),
// shadow(5), gshadow(5), subuid(5), subgid(5) and fstab(5).
//
// The machine's lines keep their order and their bytes. What the image adds
// comes behind the line that it follows in the image. A line that the machine
// changed, added or took away is never overruled: where the image has something
// else to say of it, that is a Conflict, and the machine's line stays.
//
// A file with a line that is not understood, such as the "+" of NIS, is not
// merged at all.
package lines

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// MaxSize is the size above which a file is not merged, in bytes.
const MaxSize = 16 << 20

// Conflict is an entry of which both sides have made something different.
type Conflict struct {
	Key string // the user, group, range or mount point
	Why string
}

// String returns the conflict as users read it.
func (c Conflict) String() string { return c.Key + ": " + c.Why }

// Format is one kind of file.
type Format struct {
	fields   int
	comments bool // "#" begins a comment
	split    func(line string) []string
	key      func(f []string) string
	check    func(f []string) error
	// clash says why an entry of the image cannot stand beside one of the
	// machine's with another key; "" where it can. May be nil.
	clash func(ours, theirs []string) string
	// sets are the fields that are lists of names, and merge as sets.
	sets []int
	// secret: its lines are not shown.
	secret bool
}

var formats = map[string]*Format{
	"passwd":  {fields: 7, split: colons, key: first, check: numbers(2, 3), clash: sameNumber(2, "uid")},
	"group":   {fields: 4, split: colons, key: first, check: numbers(2), clash: sameNumber(2, "gid"), sets: []int{3}},
	"shadow":  {fields: 9, split: colons, key: first, secret: true},
	"gshadow": {fields: 4, split: colons, key: first, secret: true, sets: []int{2, 3}},
	"subuid":  {fields: 3, split: colons, key: whole, check: numbers(1, 2), clash: overlap},
	"subgid":  {fields: 3, split: colons, key: whole, check: numbers(1, 2), clash: overlap},
	"fstab":   {fields: 6, comments: true, split: strings.Fields, key: mountPoint},
}

// For returns the format of a path below /etc; nil where its lines are not
// known to be entries.
func For(path string) *Format { return formats[path] }

// Merge merges three versions of a file; a version that is not there is empty.
// An error says why the file is not merged.
func (f *Format) Merge(base, local, image []byte) ([]byte, []Conflict, error) {
	b, err := f.parse(base)
	if err != nil {
		return nil, nil, fmt.Errorf("the old image's: %w", err)
	}
	l, err := f.parse(local)
	if err != nil {
		return nil, nil, fmt.Errorf("the machine's: %w", err)
	}
	i, err := f.parse(image)
	if err != nil {
		return nil, nil, fmt.Errorf("the image's: %w", err)
	}
	switch {
	case bytes.Equal(local, base), bytes.Equal(local, image):
		return image, nil, nil
	case bytes.Equal(image, base):
		return local, nil, nil
	}
	m := &merge{f: f, base: b, local: l, image: i}
	m.old()
	m.added()
	return m.text(), m.conflicts, nil
}

// merge is one merge under way.
type merge struct {
	f                  *Format
	base, local, image *file
	out                []entry
	conflicts          []Conflict
}

func (m *merge) conflict(key, format string, args ...any) {
	m.conflicts = append(m.conflicts, Conflict{key, fmt.Sprintf(format, args...)})
}

// old decides each line that the machine has.
func (m *merge) old() {
	for _, e := range m.local.entries {
		if e.key == "" {
			m.out = append(m.out, e)
			continue
		}
		b, i := m.base.find(e.key), m.image.find(e.key)
		switch {
		case i == nil && b == nil: // the machine's own
		case i == nil && e.line == b.line:
			continue
		case i == nil:
			m.conflict(e.key, "changed on the machine, gone from the image; it stays")
		case b != nil && e.line == b.line:
			e = m.renewed(e, *i)
		case e.line == i.line, b != nil && i.line == b.line:
		default:
			e = m.both(b, e, *i)
		}
		m.out = append(m.out, e)
	}
}

// renewed decides a line that only the image changed.
func (m *merge) renewed(ours, theirs entry) entry {
	if ours.line == theirs.line {
		return ours
	}
	if why := m.clashes(theirs); why != "" {
		m.conflict(ours.key, "the image's new line is not taken: %s", why)
		return ours
	}
	return theirs
}

// both decides a line that both sides changed, or added. Lists of names become
// what both made of them; everything else must be the same.
func (m *merge) both(b *entry, ours, theirs entry) entry {
	out := slices.Clone(ours.fields)
	for n, field := range ours.fields {
		old := ""
		if b != nil {
			old = b.fields[n]
		}
		switch {
		case field == theirs.fields[n], b != nil && theirs.fields[n] == old:
		case slices.Contains(m.f.sets, n):
			out[n] = mergeSet(old, field, theirs.fields[n])
		default:
			m.differ(ours, theirs)
			return ours
		}
	}
	if len(m.f.sets) == 0 {
		// Not a list: a line is one decision, and the machine made one.
		m.differ(ours, theirs)
		return ours
	}
	if !slices.Equal(out, ours.fields) {
		ours.fields, ours.line = out, strings.Join(out, ":")
	}
	return ours
}

// added decides each line that only the image has.
func (m *merge) added() {
	place := make(map[string]int, len(m.out))
	for n, e := range m.out {
		place[e.key] = n
	}
	before := -1 // the place of the line that precedes it in the image
	behind := map[int][]entry{}
	for _, i := range m.image.entries {
		if i.key == "" {
			continue
		}
		if at, ok := place[i.key]; ok {
			before = at
			continue
		}
		if b := m.base.find(i.key); b != nil {
			if b.line != i.line {
				m.conflict(i.key, "removed on the machine, changed in the image; it stays away")
			}
			continue
		}
		if why := m.clashes(i); why != "" {
			m.conflict(i.key, "new in the image and not taken: %s", why)
			continue
		}
		behind[before] = append(behind[before], i)
	}
	var out []entry
	for n, e := range m.out {
		out = append(append(out, e), behind[n]...)
	}
	m.out = append(out, behind[-1]...)
}

// clashes says why an entry of the image cannot stand beside those of the
// machine's that the image does not have just so.
func (m *merge) clashes(theirs entry) string {
	if m.f.clash == nil {
		return ""
	}
	for _, ours := range m.local.entries {
		if ours.key == "" || ours.key == theirs.key {
			continue
		}
		if i := m.image.find(ours.key); i != nil && i.line == ours.line {
			continue
		}
		if b := m.base.find(ours.key); b != nil && b.line == ours.line {
			continue // the image's former line: what becomes of it is the image's
		}
		if why := m.f.clash(ours.fields, theirs.fields); why != "" {
			return why
		}
	}
	return ""
}

func (m *merge) text() []byte {
	var b bytes.Buffer
	for _, e := range m.out {
		b.WriteString(e.line)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// differ reports an entry of which the machine's stays. What is in the files of
// passwords is nobody's business.
func (m *merge) differ(ours, theirs entry) {
	if m.f.secret {
		m.conflict(ours.key, "the machine's line and the image's differ; the machine's stays")
		return
	}
	m.conflict(ours.key, "the machine has %q, the image %q; the machine's stays", ours.line, theirs.line)
}

// mergeSet merges lists of names: those of ours, without what theirs took away,
// with what theirs added.
func mergeSet(base, ours, theirs string) string {
	b, o, t := names(base), names(ours), names(theirs)
	out := slices.DeleteFunc(slices.Clone(o), func(n string) bool {
		return slices.Contains(b, n) && !slices.Contains(t, n)
	})
	for _, n := range t {
		if !slices.Contains(b, n) && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return strings.Join(out, ",")
}

func names(list string) []string {
	return slices.DeleteFunc(strings.Split(list, ","), func(n string) bool { return n == "" })
}
