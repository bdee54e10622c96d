package gvariant

import (
	"encoding/binary"
	"slices"
)

// String encodes type s. The string must be UTF-8 without NUL bytes.
func String(s string) Value { return Value{"s", append([]byte(s), 0)} }

// Bytes encodes type ay: raw bytes.
func Bytes(b []byte) Value { return Value{"ay", b} }

// ByteString encodes type ay as GLib's "bytestring": s and a NUL byte.
func ByteString(s string) Value { return Value{"ay", append([]byte(s), 0)} }

// Bool encodes type b.
func Bool(b bool) Value {
	if b {
		return Value{"b", []byte{1}}
	}
	return Value{"b", []byte{0}}
}

// Uint32 encodes type u.
func Uint32(u uint32) Value { return Value{"u", binary.LittleEndian.AppendUint32(nil, u)} }

// Uint64 encodes type t.
func Uint64(u uint64) Value { return Value{"t", binary.LittleEndian.AppendUint64(nil, u)} }

// Variant encodes type v: a value with its own type.
func Variant(v Value) Value {
	out := slices.Grow([]byte(nil), len(v.Data)+1+len(v.Type))
	out = append(out, v.Data...)
	out = append(out, 0)
	return Value{"v", append(out, v.Type...)}
}

// Strings encodes type as.
func Strings(list []string) Value {
	vals := make([]Value, len(list))
	for i, s := range list {
		vals[i] = String(s)
	}
	return Array("s", vals)
}

// Array encodes an array of values that all have the type elem.
func Array(elem string, vals []Value) Value {
	l := layoutOf(elem)
	total := 0
	for _, v := range vals {
		total = alignUp(total, l.align) + len(v.Data)
	}
	width := 0
	if l.size == 0 && len(vals) > 0 {
		width = offsetSizeFor(total, len(vals))
	}
	out := make([]byte, 0, total+width*len(vals))
	ends := make([]int, 0, len(vals))
	for _, v := range vals {
		out = pad(out, l.align)
		out = append(out, v.Data...)
		ends = append(ends, len(out))
	}
	if width > 0 {
		for _, e := range ends {
			out = appendOffset(out, e, width)
		}
	}
	return Value{"a" + elem, out}
}

// Tuple encodes a tuple.
func Tuple(vals ...Value) Value {
	typ := []byte{'('}
	for _, v := range vals {
		typ = append(typ, v.Type...)
	}
	return Value{string(append(typ, ')')), structure(vals)}
}

// DictEntry encodes a dictionary entry.
func DictEntry(key, val Value) Value {
	return Value{"{" + key.Type + val.Type + "}", structure([]Value{key, val})}
}

func structure(vals []Value) []byte {
	var out []byte
	var ends []int
	align, fixed := 1, true
	for i, v := range vals {
		l := layoutOf(v.Type)
		align = max(align, l.align)
		out = pad(out, l.align)
		out = append(out, v.Data...)
		if l.size == 0 {
			fixed = false
			if i < len(vals)-1 {
				ends = append(ends, len(out))
			}
		}
	}
	if fixed {
		if out = pad(out, align); len(out) == 0 {
			out = []byte{0}
		}
		return out
	}
	width := offsetSizeFor(len(out), len(ends))
	for _, e := range slices.Backward(ends) {
		out = appendOffset(out, e, width)
	}
	return out
}

func pad(b []byte, align int) []byte {
	for len(b)%align != 0 {
		b = append(b, 0)
	}
	return b
}

func appendOffset(b []byte, off, width int) []byte {
	for range width {
		b = append(b, byte(off))
		off >>= 8
	}
	return b
}
