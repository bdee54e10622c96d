package object

import (
	"errors"
	"slices"

	"github.com/kedge-os/kedge/internal/gvariant"
)

// Variant is a value of a Dict: a GVariant of any type.
type Variant = gvariant.Value

// Entry is a key of a Dict with its value.
type Entry struct {
	Key   string
	Value Variant
}

// Dict is a GVariant a{sv}: the metadata of a commit, the content of a
// .commitmeta object. Order and values of unknown types are kept.
type Dict []Entry

const dictType = "a{sv}"

var (
	entryShape = gvariant.StructOf("{sv}")
	pairShape  = gvariant.StructOf("{ss}")
)

func (d Dict) value() Variant {
	vals := make([]gvariant.Value, len(d))
	for i, e := range d {
		vals[i] = gvariant.DictEntry(gvariant.String(e.Key), gvariant.Variant(e.Value))
	}
	return gvariant.Array(dictType[1:], vals)
}

// Encode returns the serialised a{sv}.
func (d Dict) Encode() []byte { return d.value().Data }

// DecodeDict decodes an a{sv}.
func DecodeDict(data []byte) (Dict, error) {
	d, err := decodeDict(data)
	if err != nil {
		return nil, malformed("dictionary", "%w", err)
	}
	return d, nil
}

func decodeDict(data []byte) (Dict, error) {
	var d Dict
	err := gvariant.Value{Type: dictType, Data: data}.Each(func(v gvariant.Value) error {
		m, err := entryShape.Split(nil, v.Data)
		if err != nil {
			return err
		}
		key, err := m[0].Str()
		if err != nil {
			return err
		}
		if key == "" {
			return errors.New("a key is empty")
		}
		if err := m[1].Check(); err != nil {
			return err
		}
		inner, err := m[1].Children()
		if err != nil {
			return err
		}
		d = append(d, Entry{key, inner[0]})
		return nil
	})
	return d, err
}

// Get returns the value of a key. Of a key that occurs twice the first counts,
// as in GLib.
func (d Dict) Get(key string) (Variant, bool) {
	for _, e := range d {
		if e.Key == key {
			return e.Value, true
		}
	}
	return Variant{}, false
}

// Set gives a key a value, in its old place or at the end.
func (d *Dict) Set(key string, v Variant) {
	for i := range *d {
		if (*d)[i].Key == key {
			(*d)[i].Value = v
			return
		}
	}
	*d = append(*d, Entry{key, v})
}

// Delete takes a key out.
func (d *Dict) Delete(key string) {
	*d = slices.DeleteFunc(*d, func(e Entry) bool { return e.Key == key })
}

// Text returns the value of a key of the type s.
func (d Dict) Text(key string) (string, bool) {
	v, ok := d.Get(key)
	if !ok {
		return "", false
	}
	s, err := v.Str()
	return s, err == nil
}

// Bytes returns the value of a key of the type ay.
func (d Dict) Bytes(key string) ([]byte, bool) {
	v, _ := d.Get(key)
	return v.Data, v.Type == "ay"
}

// Bool returns the value of a key of the type b.
func (d Dict) Bool(key string) (value, ok bool) {
	v, _ := d.Get(key)
	value, err := v.Bool()
	return value, err == nil
}

// Uint64 returns the value of a key of the type t, in host order.
func (d Dict) Uint64(key string) (uint64, bool) {
	v, _ := d.Get(key)
	n, err := v.Uint64()
	return n, err == nil
}

// Texts returns the value of a key of the type as.
func (d Dict) Texts(key string) ([]string, bool) {
	v, _ := d.Get(key)
	list, err := v.Strings()
	return list, err == nil
}

// Dict returns the value of a key of the type a{sv}.
func (d Dict) Dict(key string) (Dict, bool) {
	v, ok := d.Get(key)
	if !ok || v.Type != dictType {
		return nil, false
	}
	inner, err := decodeDict(v.Data)
	return inner, err == nil
}

// Map returns the value of a key of the type a{ss}.
func (d Dict) Map(key string) (map[string]string, bool) {
	v, ok := d.Get(key)
	if !ok || v.Type != "a{ss}" {
		return nil, false
	}
	out := make(map[string]string)
	err := v.Each(func(e gvariant.Value) error {
		m, err := pairShape.Split(nil, e.Data)
		if err != nil {
			return err
		}
		k, err := m[0].Str()
		if err != nil {
			return err
		}
		out[k], err = m[1].Str()
		return err
	})
	return out, err == nil
}

// The constructors of the values that libostree and kedge write.

// Text makes a value of the type s.
func Text(s string) Variant { return gvariant.String(s) }

// Texts makes a value of the type as.
func Texts(list ...string) Variant { return gvariant.Strings(list) }

// Bytes makes a value of the type ay.
func Bytes(b []byte) Variant { return gvariant.Bytes(b) }

// Bool makes a value of the type b.
func Bool(b bool) Variant { return gvariant.Bool(b) }

// Uint32 makes a value of the type u, in host order.
func Uint32(u uint32) Variant { return gvariant.Uint32(u) }

// Uint64 makes a value of the type t, in host order.
func Uint64(u uint64) Variant { return gvariant.Uint64(u) }

// Nested makes a value of the type a{sv}.
func Nested(d Dict) Variant { return d.value() }

// Map makes a value of the type a{ss}, keys in bytewise order.
func Map(m map[string]string) Variant {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	vals := make([]gvariant.Value, len(keys))
	for i, k := range keys {
		vals[i] = gvariant.DictEntry(gvariant.String(k), gvariant.String(m[k]))
	}
	return gvariant.Array("{ss}", vals)
}
