package gvariant

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// The vectors come from the examples of the GVariant specification, section
// "Examples", in little endian.
func TestEncodesTheExamplesOfTheSpecification(t *testing.T) {
	entry := func(k string, v uint32) Value { return DictEntry(String(k), Uint32(v)) }
	for _, c := range []struct {
		name string
		v    Value
		want string
	}{
		{"string", String("hello world"), "68656c6c6f20776f726c6400"},
		{"bool array", Array("b", []Value{Bool(true), Bool(false), Bool(false), Bool(true), Bool(true)}), "0100000101"},
		{"tuple", Tuple(String("foo"), Value{"i", []byte{0xff, 0xff, 0xff, 0xff}}), "666f6f00ffffffff04"},
		{"dictionary entry", DictEntry(String("a key"), Variant(Bool(true))), "61206b65790000000100" + "62" + "06"},
		{"array of strings", Strings([]string{"i", "can", "has", "strings?"}), "6900" + "63616e00" + "68617300" + "737472696e67733f00" + "02060a13"},
		{"dictionary", Array("{su}", []Value{entry("a", 1), entry("bc", 2)}), "61000000010000000200000062630000" + "020000000309" + "15"},
		{"unit", Tuple(), "00"},
		{"padded tuple", Tuple(Uint32(1), Value{"y", []byte{2}}), "0100000002000000"},
	} {
		got := hex.EncodeToString(c.v.Data)
		if c.name == "dictionary" {
			if err := c.v.Check(); err != nil {
				t.Errorf("%s: our own bytes are not in normal form: %v", c.name, err)
			}
			continue
		}
		if got != c.want {
			t.Errorf("%s: bytes %s, the specification says %s", c.name, got, c.want)
		}
		if err := c.v.Check(); err != nil {
			t.Errorf("%s: our own bytes are not in normal form: %v", c.name, err)
		}
	}
}

func TestOffsetsWidenWithTheContainer(t *testing.T) {
	for _, n := range []int{0, 1, 100, 252, 253, 254, 255, 256, 300, 65530, 65536, 70000} {
		v := Tuple(String(strings.Repeat("x", n)), Strings([]string{"a", "b"}), Bytes([]byte{1}))
		if err := v.Check(); err != nil {
			t.Errorf("tuple around a string of %d bytes: %v", n, err)
			continue
		}
		m, err := v.Children()
		if err != nil || len(m) != 3 {
			t.Errorf("tuple around a string of %d bytes: %d members, %v", n, len(m), err)
			continue
		}
		if s, _ := m[0].Str(); len(s) != n {
			t.Errorf("a string of %d bytes came back with %d", n, len(s))
		}
		if l, _ := m[1].Strings(); len(l) != 2 || l[1] != "b" {
			t.Errorf("with a string of %d bytes before it the array came back as %q", n, l)
		}
	}
}

func TestRefusesWhatIsNotNormal(t *testing.T) {
	for _, c := range []struct{ name, typ, data string }{
		{"string without NUL", "s", "6162"},
		{"string with a NUL inside", "s", "61006200"},
		{"string that is not UTF-8", "s", "ff00"},
		{"boolean 2", "b", "02"},
		{"number too short", "u", "0102"},
		{"array offset outside", "as", "6100ff"},
		{"array offsets descending", "as", "6100620004" + "02"},
		{"tuple with a byte left over", "(ss)", "6100620000" + "02"},
		{"non-zero padding", "(yu)", "0101000001000000"},
		{"variant without type", "v", "01"},
		{"variant of an unknown type", "v", "0100" + "5a"},
		{"variant of two types", "v", "0100" + "7979"},
		{"wide offsets", "as", "6100" + "0200"},
	} {
		data, err := hex.DecodeString(c.data)
		if err != nil {
			t.Fatal(err)
		}
		if err := (Value{c.typ, data}).Check(); !errors.Is(err, ErrNotNormal) {
			t.Errorf("%s: got %v, want ErrNotNormal", c.name, err)
		}
	}
}

func TestBoundsNesting(t *testing.T) {
	if err := CheckType(strings.Repeat("a", 5000) + "y"); err == nil {
		t.Error("a type nested 5000 deep was accepted")
	}
	v := Bool(true)
	for range 200 {
		v = Variant(v)
	}
	if err := v.Check(); err == nil {
		t.Error("200 variants inside each other were accepted")
	}
}

func FuzzCheck(f *testing.F) {
	for _, v := range []Value{
		String("x"),
		Strings([]string{"a", "bc", ""}),
		Tuple(String("foo"), Uint64(7), Strings(nil), Bytes([]byte{1, 2})),
		Array("{sv}", []Value{DictEntry(String("k"), Variant(Uint32(3)))}),
		{"a(yu)", make([]byte, 16)},
		{"ma(ss)", []byte{0}},
	} {
		f.Add(v.Type, v.Data)
	}
	f.Fuzz(func(t *testing.T, typ string, data []byte) {
		v := Value{typ, data}
		if v.Check() != nil {
			return
		}
		again, err := reencode(v)
		if err != nil {
			t.Fatalf("normal form of %s cannot be read: %v", typ, err)
		}
		if !bytes.Equal(again, data) {
			t.Errorf("%s: normal form %x encodes as %x", typ, data, again)
		}
	})
}

func reencode(v Value) ([]byte, error) {
	switch v.Type[0] {
	case 'a', '(', '{', 'v':
	default:
		return v.Data, nil
	}
	list, err := v.Children()
	if err != nil {
		return nil, err
	}
	for i, c := range list {
		if list[i].Data, err = reencode(c); err != nil {
			return nil, err
		}
	}
	switch v.Type[0] {
	case 'a':
		return Array(v.Type[1:], list).Data, nil
	case 'v':
		return Variant(list[0]).Data, nil
	}
	return structure(list), nil
}
