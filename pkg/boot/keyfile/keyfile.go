// Package keyfile reads and writes GLib key files (the Desktop Entry
// specification's syntax) without losing anything: comments, order, blank
// lines and keys it does not know stay as they are. A deployment's origin and
// a repository's config are such files.
package keyfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// File is a key file. The zero File is empty and ready for use.
type File struct {
	lines []line
}

type lineKind uint8

const (
	other lineKind = iota // comment or blank
	group
	entry
)

// line is one line of the file. raw is what stands there, without the newline;
// group is the group that the line is in, or opens.
type line struct {
	kind       lineKind
	group, key string
	value      string // still escaped
	raw        string
}

// maxSize bounds a key file; an origin is a few hundred bytes.
const maxSize = 1 << 20

// Parse reads a key file. What GLib refuses is a Corrupt error that names the
// line.
func Parse(text string) (*File, error) {
	if len(text) > maxSize {
		return nil, fault.New(fault.Corrupt, "", "key file of %d bytes; at most %d are read", len(text), maxSize)
	}
	f := &File{}
	current, opened := "", false
	text = strings.TrimSuffix(text, "\n")
	if text == "" {
		return f, nil
	}
	for i, raw := range strings.Split(text, "\n") {
		l := line{raw: raw, group: current}
		s := strings.TrimSpace(raw)
		switch {
		case s == "" || s[0] == '#':
		case s[0] == '[':
			if len(s) < 3 || s[len(s)-1] != ']' || strings.ContainsAny(s[1:len(s)-1], "[]") {
				return nil, fault.New(fault.Corrupt, "", "line %d: %q is not a group", i+1, s)
			}
			current, opened = s[1:len(s)-1], true
			l.kind, l.group = group, current
		default:
			key, value, ok := strings.Cut(s, "=")
			key = strings.TrimRight(key, " \t")
			if !ok || key == "" || !opened {
				return nil, fault.New(fault.Corrupt, "", "line %d: %q is neither a group nor a key of one", i+1, s)
			}
			l.kind, l.key, l.value = entry, key, strings.TrimLeft(value, " \t")
		}
		f.lines = append(f.lines, l)
	}
	return f, nil
}

// Encode returns the file's text. What Parse read comes back byte for byte,
// but for a missing last newline.
func (f *File) Encode() []byte {
	var b strings.Builder
	for _, l := range f.lines {
		b.WriteString(l.raw)
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// Clone returns a copy that can be changed on its own. Of nil it is empty.
func (f *File) Clone() *File {
	if f == nil {
		return &File{}
	}
	return &File{lines: slices.Clone(f.lines)}
}

// find returns the line of a key, the last where there are several, or -1.
func (f *File) find(grp, key string) int {
	if f == nil {
		return -1
	}
	for i := len(f.lines) - 1; i >= 0; i-- {
		if l := f.lines[i]; l.kind == entry && l.group == grp && l.key == key {
			return i
		}
	}
	return -1
}

// Get returns the string at a key, unescaped.
func (f *File) Get(grp, key string) (string, bool) {
	i := f.find(grp, key)
	if i < 0 {
		return "", false
	}
	return unescape(f.lines[i].value), true
}

// Bool returns the boolean at a key; a missing or malformed one is def.
func (f *File) Bool(grp, key string, def bool) bool {
	switch v, _ := f.Get(grp, key); v {
	case "true", "1", "yes":
		return true
	case "false", "0", "no":
		return false
	}
	return def
}

// List returns the string list at a key: items that end with ";".
func (f *File) List(grp, key string) ([]string, bool) {
	i := f.find(grp, key)
	if i < 0 {
		return nil, false
	}
	var list []string
	var item strings.Builder
	v := f.lines[i].value
	for j := 0; j < len(v); j++ {
		switch {
		case v[j] == ';':
			list = append(list, unescape(item.String()))
			item.Reset()
			continue
		case v[j] == '\\' && j+1 < len(v):
			if v[j+1] != ';' {
				item.WriteByte('\\')
			}
			j++
		}
		item.WriteByte(v[j])
	}
	if item.Len() > 0 {
		list = append(list, unescape(item.String()))
	}
	return list, true
}

// Set writes a string. A new key goes to the end of its group, a new group to
// the end of the file.
func (f *File) Set(grp, key, value string) { f.setRaw(grp, key, escape(value)) }

// SetList writes a string list.
func (f *File) SetList(grp, key string, list []string) {
	var b strings.Builder
	for _, s := range list {
		b.WriteString(strings.ReplaceAll(escape(s), ";", `\;`))
		b.WriteByte(';')
	}
	f.setRaw(grp, key, b.String())
}

func (f *File) setRaw(grp, key, value string) {
	l := line{kind: entry, group: grp, key: key, value: value, raw: key + "=" + value}
	if i := f.find(grp, key); i >= 0 {
		f.lines[i] = l
		return
	}
	last := -1
	for i, x := range f.lines {
		if x.kind != other && x.group == grp {
			last = i
		}
	}
	if last < 0 {
		if len(f.lines) > 0 {
			f.lines = append(f.lines, line{group: f.lines[len(f.lines)-1].group})
		}
		f.lines = append(f.lines, line{kind: group, group: grp, raw: "[" + grp + "]"})
		last = len(f.lines) - 1
	}
	f.lines = slices.Insert(f.lines, last+1, l)
}

// Delete removes a key, and its group when nothing is left in it.
func (f *File) Delete(grp, key string) {
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool {
		return l.kind == entry && l.group == grp && l.key == key
	})
	if f.HasGroup(grp) && len(f.Keys(grp)) == 0 {
		f.DeleteGroup(grp)
	}
}

// DeleteGroup removes a group with its keys and comments.
func (f *File) DeleteGroup(grp string) {
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool { return l.group == grp })
	if k := len(f.lines); k > 0 && f.lines[k-1].raw == "" {
		f.lines = f.lines[:k-1]
	}
}

// HasGroup reports whether the file has the group.
func (f *File) HasGroup(grp string) bool { return slices.Contains(f.Groups(), grp) }

// Groups returns the names of the groups in the order of the file.
func (f *File) Groups() []string {
	if f == nil {
		return nil
	}
	var names []string
	for _, l := range f.lines {
		if l.kind == group && !slices.Contains(names, l.group) {
			names = append(names, l.group)
		}
	}
	return names
}

// Keys returns the keys of a group in the order of the file.
func (f *File) Keys(grp string) []string {
	if f == nil {
		return nil
	}
	var names []string
	for _, l := range f.lines {
		if l.kind == entry && l.group == grp && !slices.Contains(names, l.key) {
			names = append(names, l.key)
		}
	}
	return names
}

// escape writes a string as GLib does: backslashes, line ends and tabs, and
// the white space at its start.
func escape(s string) string {
	var b strings.Builder
	leading := true
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			b.WriteString(`\\`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == ' ' && leading:
			b.WriteString(`\s`)
		case c == '\t' && leading:
			b.WriteString(`\t`)
		default:
			b.WriteByte(c)
		}
		leading = leading && (c == ' ' || c == '\t')
	}
	return b.String()
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case 's':
			b.WriteByte(' ')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\':
			b.WriteByte('\\')
		default:
			fmt.Fprintf(&b, `\%c`, s[i])
		}
	}
	return b.String()
}
