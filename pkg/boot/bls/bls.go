// Package bls reads and writes Boot Loader Specification Type 1 entries as
// libostree does: its field order, its file names, its boot counting suffix.
// It does no I/O. Format: ostree-bootconfig-parser.c and
// https://uapi-group.org/specifications/specs/boot_loader_specification/.
package bls

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Entry is one boot entry. Keys that are not known are kept, in their order,
// behind the known ones.
type Entry struct {
	fields  []field
	initrds []string
}

type field struct{ key, value string }

// order is the order in which libostree writes the keys it knows.
var order = []string{"title", "version", "options", "devicetree", "linux"}

// Parse reads an entry. It never fails: lines that are not "key value" are
// comments to a boot loader. Of a key that stands twice the last counts, but
// for initrd, which may be repeated.
func Parse(text string) *Entry {
	e := &Entry{}
	for l := range strings.SplitSeq(text, "\n") {
		if l == "" || !isAlpha(l[0]) {
			continue
		}
		i := strings.IndexAny(l, " \t")
		if i < 0 {
			continue
		}
		if key, value := l[:i], l[i+1:]; key == "initrd" {
			e.initrds = append(e.initrds, value)
		} else {
			e.Set(key, value)
		}
	}
	return e
}

func isAlpha(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// Encode returns the entry's text with the keys in libostree's order.
func (e *Entry) Encode() []byte { return e.EncodeIn(order) }

// EncodeIn returns the entry's text with the keys of an order first; the others
// follow as they came. initrd, where the order lacks it, stands between.
func (e *Entry) EncodeIn(order []string) []byte {
	var b strings.Builder
	initrds := func() {
		for _, v := range e.initrds {
			fmt.Fprintf(&b, "initrd %s\n", v)
		}
	}
	for _, k := range order {
		if k == "initrd" {
			initrds()
		} else if v, ok := e.Get(k); ok {
			fmt.Fprintf(&b, "%s %s\n", k, v)
		}
	}
	if !slices.Contains(order, "initrd") {
		initrds()
	}
	for _, f := range e.fields {
		if !slices.Contains(order, f.key) {
			fmt.Fprintf(&b, "%s %s\n", f.key, f.value)
		}
	}
	return []byte(b.String())
}

// Clone returns a copy that can be changed on its own. Of nil it is empty.
func (e *Entry) Clone() *Entry {
	if e == nil {
		return &Entry{}
	}
	return &Entry{fields: slices.Clone(e.fields), initrds: slices.Clone(e.initrds)}
}

// Get returns the value of a key other than initrd.
func (e *Entry) Get(key string) (string, bool) {
	if e != nil {
		for _, f := range e.fields {
			if f.key == key {
				return f.value, true
			}
		}
	}
	return "", false
}

// Value is Get where a key that is not there and an empty one are the same.
func (e *Entry) Value(key string) string {
	v, _ := e.Get(key)
	return v
}

// Set gives a key other than initrd its value.
func (e *Entry) Set(key, value string) {
	for i := range e.fields {
		if e.fields[i].key == key {
			e.fields[i].value = value
			return
		}
	}
	e.fields = append(e.fields, field{key, value})
}

// Delete removes a key other than initrd.
func (e *Entry) Delete(key string) {
	e.fields = slices.DeleteFunc(e.fields, func(f field) bool { return f.key == key })
}

// Initrds returns the initrd values: the deployment's own, then overlays.
func (e *Entry) Initrds() []string {
	if e == nil {
		return nil
	}
	return e.initrds
}

// SetInitrds replaces the initrd values.
func (e *Entry) SetInitrds(values []string) { e.initrds = slices.Clone(values) }

// Extra returns the keys beside those that a deployment's entry is rebuilt
// from; they go with the deployment ("x-options-source-…" of bootc).
func (e *Entry) Extra() []string {
	var keys []string
	if e != nil {
		for _, f := range e.fields {
			if !slices.Contains(order, f.key) {
				keys = append(keys, f.key)
			}
		}
	}
	return keys
}

// Counter is the boot counting suffix of an entry's file name: "+LEFT" or
// "+LEFT-DONE" before ".conf".
type Counter struct {
	Left, Done uint64
}

// Name is an entry's file name taken apart.
type Name struct {
	Base    string   // "ostree-2"
	Counter *Counter // nil where the entry is not counted
}

// ParseName takes a file name of an entry apart; false where it does not end
// with ".conf". A suffix that is no counter belongs to the base.
func ParseName(file string) (Name, bool) {
	base, ok := strings.CutSuffix(file, ".conf")
	if !ok || base == "" {
		return Name{}, false
	}
	i := strings.LastIndexByte(base, '+')
	if i < 0 {
		return Name{Base: base}, true
	}
	left, done, counted := strings.Cut(base[i+1:], "-")
	var c Counter
	var err error
	if c.Left, err = strconv.ParseUint(left, 10, 32); err != nil {
		return Name{Base: base}, true
	}
	if counted {
		if c.Done, err = strconv.ParseUint(done, 10, 32); err != nil {
			return Name{Base: base}, true
		}
	}
	return Name{Base: base[:i], Counter: &c}, true
}

// CounterOf returns the counter in a file name of an entry; nil for none.
func CounterOf(file string) *Counter {
	name, _ := ParseName(file)
	return name.Counter
}

// CompareVersions orders two version values as glibc's strverscmp does: runs
// of digits count as numbers.
func CompareVersions(a, b string) int {
	for i := 0; i < len(a) || i < len(b); i++ {
		if i < len(a) && i < len(b) && a[i] == b[i] {
			continue
		}
		start := i
		for start > 0 && isDigit(a[start-1]) {
			start--
		}
		x, y := digits(a[start:]), digits(b[start:])
		if x == "" || y == "" {
			return strings.Compare(a[i:], b[i:])
		}
		if x[0] == '0' || y[0] == '0' {
			return compareFractions(x, y, a[i:], b[i:])
		}
		if len(x) != len(y) {
			return cmp.Compare(len(x), len(y))
		}
		return strings.Compare(a[i:], b[i:])
	}
	return 0
}

// compareFractions orders runs of digits of which one begins with a zero: they
// count as what stands behind a decimal point, and of zeros alone the fewer are
// the greater.
func compareFractions(x, y, restA, restB string) int {
	switch {
	case x == y:
	case strings.HasPrefix(x, y) && strings.Trim(y, "0") == "":
		return -1
	case strings.HasPrefix(y, x) && strings.Trim(x, "0") == "":
		return 1
	}
	return strings.Compare(restA, restB)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func digits(s string) string {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return s[:n]
}
