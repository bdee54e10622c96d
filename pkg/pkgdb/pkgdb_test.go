package pkgdb

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/pkg/fault"
)

func root(files ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		m[files[i]] = &fstest.MapFile{Data: []byte(files[i+1]), Mode: 0o644}
	}
	return m
}

const status = `Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.41-12
Description: a library
 with more lines
 .
 Version: 9 is not one

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: half
Status: install ok half-configured
Architecture: all
Version: 2:1-1
`

func TestReadDpkg(t *testing.T) {
	libc := Package{Name: "libc6", Version: "2.41-12", Arch: "amd64"}
	half := Package{Name: "half", Version: "2:1-1", Arch: "all", State: "half-configured"}
	for name, tc := range map[string]struct {
		root fstest.MapFS
		want []Package
	}{
		"status":       {root("var/lib/dpkg/status", status), []Package{half, libc}},
		"in /usr":      {root("usr/lib/sysimage/dpkg/status", status, "var/lib/dpkg/status", ""), []Package{half, libc}},
		"one by one":   {root("var/lib/dpkg/status.d/libc6", strings.SplitN(status, "Description", 2)[0], "var/lib/dpkg/status.d/libc6.md5sums", "Package: no\n"), []Package{libc}},
		"rpm beside":   {root("var/lib/dpkg/status", status, "usr/lib/sysimage/rpm/rpmdb.sqlite", ""), []Package{half, libc}},
		"no packages":  {root("var/lib/dpkg/status", ""), nil},
		"line endings": {root("var/lib/dpkg/status", "Package: a\nStatus: install ok installed\nVersion: 1\n \n\nPackage: b\nStatus: install ok installed\nVersion: 1"), []Package{{Name: "a", Version: "1"}, {Name: "b", Version: "1"}}},
	} {
		db, err := Read(tc.root)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, db.Packages); diff != "" || db.Kind != Dpkg {
			t.Errorf("%s (%s): %s", name, db.Kind, diff)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		root fstest.MapFS
		kind fault.Kind
	}{
		"nothing":       {root("etc/passwd", ""), fault.NotFound},
		"no database":   {root("usr/share/rpm/rpmdb.sqlite", "SQLite"), fault.Corrupt},
		"zeros":         {root("usr/share/rpm/Packages", strings.Repeat("\x00", 8192)), fault.Corrupt},
		"a directory":   {root("usr/share/rpm/Packages.db/file", "x"), fault.Corrupt},
		"long name":     {root("var/lib/dpkg/status", "Package: "+strings.Repeat("a", 2000)+"\n"), fault.Corrupt},
		"long line":     {root("var/lib/dpkg/status", "Package: a\nDepends: "+strings.Repeat("a, ", maxField)), fault.Corrupt},
		"many packages": {root("var/lib/dpkg/status", strings.Repeat("Package: a\nStatus: x x installed\n\n", maxPackages+2)), fault.Corrupt},
	} {
		if _, err := Read(tc.root); fault.KindOf(err) != tc.kind {
			t.Errorf("%s: %v, want %v", name, err, tc.kind)
		}
	}
}

func TestDiff(t *testing.T) {
	list := func(words ...string) *Database {
		db := &Database{Kind: RPM}
		for _, w := range words {
			f := strings.Split(w, " ")
			db.Packages = append(db.Packages, Package{Name: f[0], Version: f[1], Arch: f[2]})
		}
		return db
	}
	a := list("bash 5.2-1 x", "gone 1-1 x", "kernel 5-1 x", "kernel 6-1 x", "same 1-1 x", "moved 1-1 noarch", "down 2:1-1 x", "multi 1-1 x", "multi 1-1 y", "rebuilt 1-1 x")
	b := list("bash 5.3~rc1-1 x", "come 1-1 x", "kernel 6-1 x", "kernel 7-1 x", "same 1-1 x", "moved 2-1 x", "down 3-1 x", "multi 2-1 x", "multi 2-1 y", "rebuilt 1-1 y")
	got, err := Diff(a, b)
	want := []Change{
		{"bash", "x", Upgraded, "5.2-1", "5.3~rc1-1"},
		{"come", "x", Added, "", "1-1"},
		{"down", "x", Downgraded, "2:1-1", "3-1"},
		{"gone", "x", Removed, "1-1", ""},
		{"kernel", "x", Upgraded, "5-1", "7-1"},
		{"moved", "x", Upgraded, "1-1", "2-1"},
		{"multi", "x", Upgraded, "1-1", "2-1"},
		{"multi", "y", Upgraded, "1-1", "2-1"},
		{"rebuilt", "x", Removed, "1-1", ""},
		{"rebuilt", "y", Added, "", "1-1"},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	if got, err := Diff(a, a); err != nil || len(got) != 0 {
		t.Errorf("a database differs from itself: %+v (%v)", got, err)
	}
	if _, err := Diff(a, &Database{Kind: Dpkg}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("databases of two kinds: %v", err)
	}
}

// header makes a header of the tags that are read.
func header(name, version string) []byte {
	var index, data []byte
	for _, e := range []struct {
		tag  uint32
		text string
	}{{tagName, name}, {tagVersion, version}, {tagRelease, "1"}, {tagArch, "noarch"}} {
		index = binary.BigEndian.AppendUint32(index, e.tag)
		index = binary.BigEndian.AppendUint32(index, typeString)
		index = binary.BigEndian.AppendUint32(index, uint32(len(data)))
		index = binary.BigEndian.AppendUint32(index, 1)
		data = append(append(data, e.text...), 0)
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(len(index)/16))
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	return append(append(out, index...), data...)
}

// small are databases of one package in each of rpm's own formats.
func smallNDB() []byte {
	b := make([]byte, 4096)
	copy(b, "RpmP")
	binary.LittleEndian.PutUint32(b[12:], 1)
	for at := 32; at < 4096; at += 16 {
		copy(b[at:], "Slot")
	}
	binary.LittleEndian.PutUint32(b[36:], 1)
	binary.LittleEndian.PutUint32(b[40:], 4096/16)
	h := header("lab", "1.0")
	b = append(b, "BlbS\x01\x00\x00\x00\x00\x00\x00\x00"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h)))
	return append(b, h...)
}

func smallBDB() []byte {
	b := make([]byte, 1024)
	order := binary.LittleEndian
	order.PutUint32(b[12:], bdbHashMagic)
	order.PutUint32(b[20:], 512)
	b[25] = bdbPageHashMeta
	order.PutUint32(b[32:], 1)
	p := b[512:]
	p[25] = bdbPageHash
	order.PutUint16(p[20:], 2)
	h := append([]byte{bdbItemInline}, header("lab", "1.0")...)
	order.PutUint16(p[26:], 512-5)
	copy(p[512-5:], "\x01\x01\x00\x00\x00")
	order.PutUint16(p[28:], uint16(512-5-len(h)))
	copy(p[512-5-len(h):], h)
	return b
}

func smallSQLite() []byte {
	const size = 1024
	b := make([]byte, 2*size)
	copy(b, sqliteMagic)
	binary.BigEndian.PutUint16(b[16:], size)
	leaf := func(page []byte, at int, row []byte) {
		cell := append([]byte{byte(0x80 | len(row)>>7), byte(len(row) & 0x7f), 1}, row...)
		page[at] = leafTable
		binary.BigEndian.PutUint16(page[at+3:], 1)
		binary.BigEndian.PutUint16(page[at+8:], uint16(len(page)-len(cell)))
		copy(page[len(page)-len(cell):], cell)
	}
	row := append([]byte{6, 23, 29, 29, 1, 13}, "tablePackagesPackages\x02"...)
	leaf(b[:size], 100, row)
	h := header("lab", "1.0")
	typ := 12 + 2*len(h)
	leaf(b[size:], 0, append([]byte{4, 0, byte(0x80 | typ>>7), byte(typ & 0x7f)}, h...))
	return b
}

func TestSmallDatabases(t *testing.T) {
	want := []Package{{Name: "lab", Version: "1.0-1", Arch: "noarch"}}
	for name, b := range map[string][]byte{"rpmdb.sqlite": smallSQLite(), "Packages.db": smallNDB(), "Packages": smallBDB()} {
		m := root("var/lib/rpm/"+name, string(b))
		db, err := Read(m)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, db.Packages); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// FuzzRPM: whatever a file holds, reading it ends, with no more headers than
// bytes.
func FuzzRPM(f *testing.F) {
	for _, b := range [][]byte{smallSQLite(), smallNDB(), smallBDB()} {
		f.Add(b, []byte{})
	}
	f.Fuzz(func(t *testing.T, b, wal []byte) {
		for _, format := range rpmFiles {
			total := 0
			_ = format.read(memory(b), memory(wal), func(h []byte) error {
				total += len(h)
				_, _ = parseHeader(h)
				return nil
			})
			if total > len(b)+len(wal) {
				t.Errorf("%s: headers of %d bytes in a file of %d", format.name, total, len(b))
			}
		}
	})
}

func memory(b []byte) *source {
	return &source{strings.NewReader(string(b)), int64(len(b)), func() {}}
}

func FuzzStatus(f *testing.F) {
	f.Add(status)
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ReadStatus(strings.NewReader(text))
		if err == nil && len(list) > len(text) {
			t.Errorf("%d packages in %d bytes", len(list), len(text))
		}
	})
}

func ExampleDiff() {
	changes, err := Diff(
		&Database{Kind: Dpkg, Packages: []Package{{Name: "vim", Version: "2:9.0-1", Arch: "amd64"}}},
		&Database{Kind: Dpkg, Packages: []Package{{Name: "vim", Version: "2:9.1-1", Arch: "amd64"}}})
	fmt.Println(changes, err)
	// Output: [{vim amd64 upgraded 2:9.0-1 2:9.1-1}] <nil>
}
