package gvariant

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// Children splits a container into its elements: those of an array, the
// members of a tuple or dictionary entry, the value inside a variant or a
// maybe. It checks the framing; each child is checked when it is split itself
// (or all at once by Check).
func (v Value) Children() ([]Value, error) {
	if err := CheckType(v.Type); err != nil {
		return nil, err
	}
	return v.children()
}

func (v Value) children() ([]Value, error) {
	switch v.Type[0] {
	case 'a':
		return v.elements()
	case '(', '{':
		return StructOf(v.Type).Split(nil, v.Data)
	case 'v':
		return v.inner()
	case 'm':
		return v.maybe()
	}
	return nil, notNormal(v.Type, "is not a container")
}

func (v Value) elements() ([]Value, error) {
	var out []Value
	err := v.Each(func(e Value) error {
		out = append(out, e)
		return nil
	})
	return out, err
}

// Each calls fn for every element of an array, in order, and stops at the
// first error. The array's type must be valid.
func (v Value) Each(fn func(Value) error) error {
	if len(v.Type) < 2 || v.Type[0] != 'a' {
		return notNormal(v.Type, "is not an array")
	}
	elem, data := v.Type[1:], v.Data
	l := layoutOf(elem)
	if len(data) == 0 {
		return nil
	}
	if l.size > 0 {
		if len(data)%l.size != 0 {
			return notNormal(v.Type, "%d bytes are no multiple of %d", len(data), l.size)
		}
		for i := 0; i < len(data); i += l.size {
			if err := fn(Value{elem, data[i : i+l.size : i+l.size]}); err != nil {
				return err
			}
		}
		return nil
	}
	width := offsetSize(len(data))
	if len(data) < width {
		return notNormal(v.Type, "too short for its framing")
	}
	body := readOffset(data[len(data)-width:])
	if body > uint64(len(data)-width) || (len(data)-int(body))%width != 0 {
		return notNormal(v.Type, "the framing offsets do not fit")
	}
	offsets := data[body:]
	n := len(offsets) / width
	if offsetSizeFor(int(body), n) != width {
		return notNormal(v.Type, "the framing offsets are wider than needed")
	}
	start := 0
	for i := range n {
		aligned := alignUp(start, l.align)
		end := readOffset(offsets[i*width : (i+1)*width])
		if end > body || uint64(aligned) > end || !zero(data[start:aligned]) {
			return notNormal(v.Type, "element %d has wrong bounds or padding", i)
		}
		if err := fn(Value{elem, data[aligned:end:end]}); err != nil {
			return err
		}
		start = int(end)
	}
	return nil
}

// Struct is a tuple or dictionary entry type taken apart once, for values that
// come in numbers.
type Struct struct {
	typ     string
	types   []string
	layouts []layout
	own     layout
	framed  int
}

// StructOf takes a valid tuple or dictionary entry type apart.
func StructOf(typ string) *Struct {
	s := &Struct{typ: typ, types: members(typ), own: layoutOf(typ)}
	for i, t := range s.types {
		s.layouts = append(s.layouts, layoutOf(t))
		if s.layouts[i].size == 0 && i < len(s.types)-1 {
			s.framed++
		}
	}
	return s
}

// Split appends the members serialised in data to out.
func (s *Struct) Split(out []Value, data []byte) ([]Value, error) {
	if s.own.size > 0 && len(data) != s.own.size {
		return nil, notNormal(s.typ, "%d bytes instead of %d", len(data), s.own.size)
	}
	width := offsetSize(len(data))
	body := len(data) - s.framed*width
	if body < 0 || (s.framed > 0 && offsetSizeFor(body, s.framed) != width) {
		return nil, notNormal(s.typ, "the framing offsets do not fit")
	}
	start, next := 0, len(data)
	for i, t := range s.types {
		aligned := alignUp(start, s.layouts[i].align)
		var end int
		switch {
		case s.layouts[i].size > 0:
			end = aligned + s.layouts[i].size
		case i == len(s.types)-1:
			end = body
		default:
			next -= width
			off := readOffset(data[next : next+width])
			if off > uint64(body) {
				return nil, notNormal(s.typ, "member %d ends outside", i)
			}
			end = int(off)
		}
		if aligned > end || end > body || !zero(data[start:aligned]) {
			return nil, notNormal(s.typ, "member %d has wrong bounds or padding", i)
		}
		out = append(out, Value{t, data[aligned:end:end]})
		start = end
	}
	if start > body || !zero(data[start:body]) || (s.own.size == 0 && start != body) {
		return nil, notNormal(s.typ, "bytes are left over")
	}
	return out, nil
}

func (v Value) inner() ([]Value, error) {
	i := bytes.LastIndexByte(v.Data, 0)
	if i < 0 {
		return nil, notNormal(v.Type, "has no type")
	}
	typ := string(v.Data[i+1:])
	if err := CheckType(typ); err != nil {
		return nil, notNormal(v.Type, "%s", err)
	}
	l := layoutOf(typ)
	if l.size > 0 && i != l.size {
		return nil, notNormal(v.Type, "%d bytes of the type %s", i, typ)
	}
	return []Value{{typ, v.Data[:i:i]}}, nil
}

func (v Value) maybe() ([]Value, error) {
	if len(v.Data) == 0 {
		return nil, nil
	}
	elem := v.Type[1:]
	if l := layoutOf(elem); l.size > 0 {
		if len(v.Data) != l.size {
			return nil, notNormal(v.Type, "%d bytes", len(v.Data))
		}
		return []Value{{elem, v.Data}}, nil
	}
	last := len(v.Data) - 1
	if v.Data[last] != 0 {
		return nil, notNormal(v.Type, "has no end mark")
	}
	return []Value{{elem, v.Data[:last:last]}}, nil
}

// Check reports whether v is in normal form, everything inside it included.
func (v Value) Check() error {
	if err := CheckType(v.Type); err != nil {
		return err
	}
	return v.check(0)
}

func (v Value) check(depth int) error {
	if depth > maxDepth {
		return notNormal(v.Type, "nested too deep")
	}
	switch v.Type[0] {
	case 'b':
		if len(v.Data) != 1 || v.Data[0] > 1 {
			return notNormal(v.Type, "is neither 0 nor 1")
		}
		return nil
	case 's', 'o', 'g':
		_, err := v.Str()
		return err
	case 'a':
		if layoutOf(v.Type[1:]).size > 0 && v.Type[1] != 'b' && isBasic(v.Type[1]) {
			_, err := v.arrayLen()
			return err
		}
		return v.Each(func(e Value) error { return e.check(depth + 1) })
	case '(', '{', 'v', 'm':
	default:
		if len(v.Data) != layoutOf(v.Type).size {
			return notNormal(v.Type, "%d bytes", len(v.Data))
		}
		return nil
	}
	list, err := v.children()
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := c.check(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

func (v Value) arrayLen() (int, error) {
	size := layoutOf(v.Type[1:]).size
	if len(v.Data)%size != 0 {
		return 0, notNormal(v.Type, "%d bytes are no multiple of %d", len(v.Data), size)
	}
	return len(v.Data) / size, nil
}

// Str decodes a value of the type s, o or g.
func (v Value) Str() (string, error) {
	last := len(v.Data) - 1
	switch {
	case v.Type != "s" && v.Type != "o" && v.Type != "g":
		return "", notNormal(v.Type, "is not a string")
	case last < 0 || bytes.IndexByte(v.Data, 0) != last:
		return "", notNormal(v.Type, "the string does not end in its only NUL byte")
	case !utf8.Valid(v.Data[:last]):
		return "", notNormal(v.Type, "the string is not UTF-8")
	}
	return string(v.Data[:last]), nil
}

// Bool decodes a value of the type b.
func (v Value) Bool() (bool, error) {
	if v.Type != "b" || len(v.Data) != 1 || v.Data[0] > 1 {
		return false, notNormal(v.Type, "is not a boolean")
	}
	return v.Data[0] == 1, nil
}

// Uint32 decodes a value of the type u.
func (v Value) Uint32() (uint32, error) {
	if v.Type != "u" || len(v.Data) != 4 {
		return 0, notNormal(v.Type, "is not a 32-bit number")
	}
	return binary.LittleEndian.Uint32(v.Data), nil
}

// Uint64 decodes a value of the type t.
func (v Value) Uint64() (uint64, error) {
	if v.Type != "t" || len(v.Data) != 8 {
		return 0, notNormal(v.Type, "is not a 64-bit number")
	}
	return binary.LittleEndian.Uint64(v.Data), nil
}

// Bytes decodes a value of the type ay. The slice belongs to v.
func (v Value) Bytes() ([]byte, error) {
	if v.Type != "ay" {
		return nil, notNormal(v.Type, "is not an array of bytes")
	}
	return v.Data, nil
}

// ByteString decodes a value of the type ay that ends in its only NUL byte.
func (v Value) ByteString() (string, error) {
	last := len(v.Data) - 1
	if v.Type != "ay" || last < 0 || bytes.IndexByte(v.Data, 0) != last {
		return "", notNormal(v.Type, "is not a byte string with its NUL byte")
	}
	return string(v.Data[:last]), nil
}

// Strings decodes a value of the type as.
func (v Value) Strings() ([]string, error) {
	if v.Type != "as" {
		return nil, notNormal(v.Type, "is not an array of strings")
	}
	list, err := v.elements()
	if err != nil {
		return nil, err
	}
	out := make([]string, len(list))
	for i, c := range list {
		if out[i], err = c.Str(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readOffset(b []byte) uint64 {
	var v uint64
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
