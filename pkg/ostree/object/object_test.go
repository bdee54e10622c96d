package object_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func sum(b byte) (c object.Checksum) {
	for i := range c {
		c[i] = b
	}
	return c
}

func TestParseChecksum(t *testing.T) {
	good := strings.Repeat("0a", 32)
	if c, err := object.ParseChecksum(good); err != nil || c.String() != good {
		t.Errorf("ParseChecksum(%s) = %s, %v", good, c, err)
	}
	for _, bad := range []string{"", good[1:], good + "0", strings.ToUpper(good), strings.Repeat("0g", 32)} {
		if _, err := object.ParseChecksum(bad); err == nil {
			t.Errorf("%q was accepted as a checksum", bad)
		}
	}
}

func TestDirtreeRefusesBadNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../x", "a\xff"} {
		data := object.EncodeDirtree([]object.FileEntry{{Name: name}}, nil)
		if _, _, err := object.DecodeDirtree(data); !errors.Is(err, object.ErrFormat) {
			t.Errorf("dirtree with a file named %q: %v, want ErrFormat", name, err)
		}
		data = object.EncodeDirtree(nil, []object.DirEntry{{Name: name}})
		if _, _, err := object.DecodeDirtree(data); !errors.Is(err, object.ErrFormat) {
			t.Errorf("dirtree with a directory named %q: %v, want ErrFormat", name, err)
		}
		var ne *object.NameError
		if err := object.CheckName(name); !errors.As(err, &ne) {
			t.Errorf("CheckName(%q) = %v, want a NameError", name, err)
		}
	}
	for what, data := range map[string][]byte{
		"out of order":              object.EncodeDirtree([]object.FileEntry{{Name: "b"}, {Name: "a"}}, nil),
		"with a name twice":         object.EncodeDirtree(nil, []object.DirEntry{{Name: "a"}, {Name: "a"}}),
		"with a file and dir alike": object.EncodeDirtree([]object.FileEntry{{Name: "a"}}, []object.DirEntry{{Name: "a"}}),
	} {
		if _, _, err := object.DecodeDirtree(data); !errors.Is(err, object.ErrFormat) {
			t.Errorf("dirtree %s: %v, want ErrFormat", what, err)
		}
	}
}

func TestFileHeaderRoundTrip(t *testing.T) {
	tree := fstree.New()
	x := tree.Intern([]fstree.Xattr{{Name: "security.selinux", Value: "a:b:c:s0\x00"}, {Name: "user.empty", Value: ""}})
	for _, want := range []object.Meta{
		{UID: 1, GID: 0xfffffffe, Mode: 0o104755, Xattrs: x.All()},
		{Mode: 0o120777, Target: "../lib/über", Xattrs: x.All()},
		{Mode: 0o100000},
	} {
		got, err := object.DecodeFileHeader(object.FileHeader(want.UID, want.GID, want.Mode, want.Target, tree.Intern(want.Xattrs))[8:])
		if err != nil {
			t.Errorf("%+v: %v", want, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("file header came back changed:\n%s", d)
		}
		got, size, err := object.DecodeArchiveHeader(object.ArchiveHeader(1<<40, want.UID, want.GID, want.Mode, want.Target, tree.Intern(want.Xattrs))[8:])
		if err != nil || size != 1<<40 {
			t.Errorf("%+v: size %d, %v", want, size, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("archive header came back changed:\n%s", d)
		}
	}
	for _, mode := range []uint32{0o040755, 0o060600, 0o1100644, 0} {
		if _, err := object.DecodeFileHeader(object.FileHeader(0, 0, mode, "", nil)[8:]); !errors.Is(err, object.ErrFormat) {
			t.Errorf("file header with mode %#o: %v, want ErrFormat", mode, err)
		}
	}
}

func TestDirmetaMustBeADirectorys(t *testing.T) {
	if _, err := object.DecodeDirmeta(object.EncodeDirmeta(0, 0, 0o100644, nil)); !errors.Is(err, object.ErrFormat) {
		t.Errorf("dirmeta with a file's mode: %v, want ErrFormat", err)
	}
}

func TestDictKeepsOrderAndUnknownTypes(t *testing.T) {
	d := object.Dict{
		{Key: "z", Value: object.Text("1")},
		{Key: "a", Value: object.Variant{Type: "(ii)", Data: make([]byte, 8)}},
		{Key: "n", Value: object.Nested(object.Dict{{Key: "in", Value: object.Bool(true)}})},
	}
	got, err := object.DecodeDict(d.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, got); diff != "" {
		t.Errorf("dictionary came back changed:\n%s", diff)
	}
	got.Set("z", object.Text("2"))
	got.Delete("a")
	if v, _ := got.Text("z"); v != "2" || got[0].Key != "z" || len(got) != 2 {
		t.Errorf("after Set and Delete: %v", got)
	}
}

func seeds() [][]byte {
	c := object.Commit{
		Metadata: object.Dict{{Key: "version", Value: object.Text("1")}, {Key: "l", Value: object.Texts("a", "b")}},
		Parent:   sum(1), Related: []object.Related{{Name: "r", Checksum: []byte{1}}},
		Subject: "s", Body: "b", Time: 1, Tree: sum(2), Meta: sum(3),
	}
	tree := fstree.New()
	x := tree.Intern([]fstree.Xattr{{Name: "user.a", Value: "1"}})
	return [][]byte{
		c.Encode(),
		object.EncodeDirtree([]object.FileEntry{{Name: "a", Checksum: sum(1)}, {Name: strings.Repeat("b", 200), Checksum: sum(2)}}, []object.DirEntry{{Name: "d", Tree: sum(1), Meta: sum(2)}}),
		object.EncodeDirmeta(1, 2, 0o040755, x),
		object.FileHeader(1, 2, 0o100644, "", x)[8:],
		object.ArchiveHeader(3, 1, 2, 0o120777, "t", x)[8:],
		object.EncodeXattrs(x),
		c.Metadata.Encode(),
	}
}

// What decodes must encode to the same bytes: two byte strings with one
// meaning would be two checksums.
func FuzzDecode(f *testing.F) {
	for i, s := range seeds() {
		f.Add(uint8(i), s)
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		tree := fstree.New()
		var again []byte
		switch kind % 7 {
		case 0:
			c, err := object.DecodeCommit(data)
			if err != nil {
				return
			}
			again = c.Encode()
		case 1:
			files, dirs, err := object.DecodeDirtree(data)
			if err != nil {
				return
			}
			again = object.EncodeDirtree(files, dirs)
		case 2:
			m, err := object.DecodeDirmeta(data)
			if err != nil {
				return
			}
			again = object.EncodeDirmeta(m.UID, m.GID, m.Mode, tree.Intern(m.Xattrs))
		case 3:
			m, err := object.DecodeFileHeader(data)
			if err != nil {
				return
			}
			again = object.FileHeader(m.UID, m.GID, m.Mode, m.Target, tree.Intern(m.Xattrs))[8:]
		case 4:
			m, size, err := object.DecodeArchiveHeader(data)
			if err != nil {
				return
			}
			again = object.ArchiveHeader(size, m.UID, m.GID, m.Mode, m.Target, tree.Intern(m.Xattrs))[8:]
		case 5:
			list, err := object.DecodeXattrs(data)
			if err != nil {
				return
			}
			again = object.EncodeXattrs(tree.Intern(list))
		case 6:
			d, err := object.DecodeDict(data)
			if err != nil {
				return
			}
			again = d.Encode()
		}
		if !bytes.Equal(data, again) {
			t.Errorf("kind %d: %x decodes but encodes as %x", kind%7, data, again)
		}
	})
}
