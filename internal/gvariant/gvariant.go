// Package gvariant encodes and decodes GVariant, the serialisation of GLib
// that libostree hashes and stores
// (https://docs.gtk.org/glib/gvariant-format-version-1.html).
//
// Decoding accepts normal form only: bytes that GLib would read with default
// values filled in are an error here, because a checksum must have exactly one
// meaning. The package never panics on foreign bytes, allocates in proportion
// to its input and bounds nesting. Numbers inside a container are little
// endian, as every host that kedge runs on writes them; where libostree swaps
// a number to big endian, the caller does.
package gvariant

import (
	"errors"
	"fmt"
)

// maxDepth bounds the nesting of types and of variants in variants, as GLib
// does with G_VARIANT_MAX_RECURSION_DEPTH.
const maxDepth = 64

// ErrNotNormal is wrapped by every error about bytes that are not in normal
// form for their type.
var ErrNotNormal = errors.New("not a GVariant in normal form")

func notNormal(typ, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrNotNormal, typ, fmt.Sprintf(format, args...))
}

// Value is a serialised value with its type.
type Value struct {
	Type string
	Data []byte
}

// layout is what the serialisation of a type depends on: its alignment in
// bytes, and its size where every value has the same one (else 0).
type layout struct {
	align, size int
}

func alignUp(n, align int) int { return (n + align - 1) &^ (align - 1) }

// nextType splits the first complete type off a type string.
func nextType(s string, depth int) (typ, rest string, err error) {
	if depth > maxDepth {
		return "", "", fmt.Errorf("GVariant type %.32q is nested too deep", s)
	}
	if s == "" {
		return "", "", errors.New("GVariant type string is empty")
	}
	switch s[0] {
	case 'b', 'y', 'n', 'q', 'i', 'u', 'x', 't', 'h', 'd', 's', 'o', 'g', 'v':
		return s[:1], s[1:], nil
	case 'a', 'm':
		_, rest, err = nextType(s[1:], depth+1)
		if err != nil {
			return "", "", err
		}
	case '(':
		rest = s[1:]
		for rest != "" && rest[0] != ')' {
			if _, rest, err = nextType(rest, depth+1); err != nil {
				return "", "", err
			}
		}
		if rest == "" {
			return "", "", fmt.Errorf("GVariant type %.32q has an open tuple", s)
		}
		rest = rest[1:]
	case '{':
		if len(s) < 2 || !isBasic(s[1]) {
			return "", "", fmt.Errorf("GVariant type %.32q: a dictionary key must be a basic type", s)
		}
		if _, rest, err = nextType(s[2:], depth+1); err != nil {
			return "", "", err
		}
		if rest == "" || rest[0] != '}' {
			return "", "", fmt.Errorf("GVariant type %.32q has an open dictionary entry", s)
		}
		rest = rest[1:]
	default:
		return "", "", fmt.Errorf("GVariant type %.32q: unknown character %q", s, s[0])
	}
	return s[:len(s)-len(rest)], rest, nil
}

func isBasic(c byte) bool {
	switch c {
	case 'b', 'y', 'n', 'q', 'i', 'u', 'x', 't', 'h', 'd', 's', 'o', 'g':
		return true
	}
	return false
}

// CheckType reports whether s is exactly one complete, definite type.
func CheckType(s string) error {
	_, rest, err := nextType(s, 0)
	if err == nil && rest != "" {
		err = fmt.Errorf("GVariant type %.32q is more than one type", s)
	}
	return err
}

// members returns the types inside a tuple or dictionary entry type.
func members(typ string) []string {
	var out []string
	for rest := typ[1 : len(typ)-1]; rest != ""; {
		t, r, err := nextType(rest, 0)
		if err != nil {
			return nil
		}
		out = append(out, t)
		rest = r
	}
	return out
}

// layoutOf returns the layout of a valid type.
func layoutOf(typ string) layout {
	switch typ[0] {
	case 'b', 'y':
		return layout{1, 1}
	case 'n', 'q':
		return layout{2, 2}
	case 'i', 'u', 'h':
		return layout{4, 4}
	case 'x', 't', 'd':
		return layout{8, 8}
	case 's', 'o', 'g':
		return layout{1, 0}
	case 'v':
		return layout{8, 0}
	case 'a', 'm':
		return layout{layoutOf(typ[1:]).align, 0}
	}
	l := layout{align: 1}
	fixed, size := true, 0
	for _, m := range members(typ) {
		ml := layoutOf(m)
		l.align = max(l.align, ml.align)
		if ml.size == 0 {
			fixed = false
		}
		size = alignUp(size, ml.align) + ml.size
	}
	if fixed {
		l.size = max(1, alignUp(size, l.align))
	}
	return l
}

// offsetSize returns the width of the framing offsets of a container that is
// total bytes long, offsets included.
func offsetSize(total int) int {
	switch {
	case total == 0:
		return 0
	case total <= 0xff:
		return 1
	case total <= 0xffff:
		return 2
	case uint64(total) <= 0xffffffff:
		return 4
	}
	return 8
}

// offsetSizeFor returns the width that the serialiser chooses for n offsets
// after a body of that many bytes.
func offsetSizeFor(body, n int) int {
	for _, w := range []int{1, 2, 4} {
		if offsetSize(body+n*w) <= w {
			return w
		}
	}
	return 8
}
