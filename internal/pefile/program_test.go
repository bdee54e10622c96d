package pefile_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/pefile"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
)

// sums signs with the digest itself.
type sums struct{ digest [sha256.Size]byte }

func (s *sums) TableSize() int { return sha256.Size }

func (s *sums) Table(digest [sha256.Size]byte) ([]byte, error) {
	s.digest = digest
	return digest[:], nil
}

func parse(data []byte) (*pefile.Program, error) {
	return pefile.Parse(bytes.NewReader(data), int64(len(data)))
}

func text(s string) *io.SectionReader {
	return io.NewSectionReader(strings.NewReader(s), 0, int64(len(s)))
}

// Places of the programs that loadertest makes.
const (
	atOptional = 0x40 + 24
	atTable    = atOptional + 112 + 8*16
)

// TestRebuild replaces what stands behind the code and reads it back.
func TestRebuild(t *testing.T) {
	data := loadertest.PE(".text", "code", ".cmdline", "old", ".reloc", "relocations", ".linux", "kernel")
	p, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Rebuild(func(name string) bool { return name == ".text" || name == ".reloc" }, []pefile.Payload{
		{Name: ".cmdline", Data: text(strings.Repeat("new ", 3000))}, {Name: ".linux", Data: text("kernel"), Memory: 10000},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s := &sums{}
	n, err := d.WriteSigned(&out, s)
	if err != nil || n != int64(out.Len()) {
		t.Fatalf("wrote %d of %d bytes, %v", out.Len(), n, err)
	}
	made := out.Bytes()
	for name, want := range map[string]string{".text": "code", ".reloc": "relocations", ".cmdline": strings.Repeat("new ", 3000)} {
		if got, ok := pefile.Find(made, name, 1<<20); !ok || string(got) != want {
			t.Errorf("section %s is %.40q (%v)", name, got, ok)
		}
	}
	// Code stays where it was in memory; the rest follows, and the last is as large
	// as it was told.
	var addresses []uint32
	for i := range 4 {
		addresses = append(addresses, binary.LittleEndian.Uint32(made[atTable+40*i+12:]))
	}
	if want := []uint32{0x1000, 0x3000, 0x4000, 0x7000}; !slices.Equal(addresses, want) {
		t.Errorf("the sections are at %x in memory, want %x", addresses, want)
	}
	if size := pefile.MemorySize(bytes.NewReader(made)); size != 0xa000 {
		t.Errorf("it takes %x bytes in memory", size)
	}
	// The digest is of all but the checksum, the table's place, and the table.
	start := len(made) - sha256.Size
	if at := binary.LittleEndian.Uint32(made[atOptional+112+32:]); int(at) != start {
		t.Errorf("the certificate table is told at %d and is at %d", at, start)
	}
	h := sha256.New()
	h.Write(made[:atOptional+64])
	h.Write(made[atOptional+68 : atOptional+112+32])
	h.Write(made[atOptional+112+40 : start])
	if !bytes.Equal(h.Sum(nil), s.digest[:]) || !bytes.Equal(made[start:], s.digest[:]) {
		t.Error("another digest was signed")
	}
	if _, err := parse(made); err != nil {
		t.Error(err)
	}
	if _, err := p.Rebuild(func(string) bool { return true }, []pefile.Payload{{Name: ".more", Data: text("x")}}); err == nil {
		t.Error("a section was added for which there may be no place")
	}
}

// TestParseRefuses: what is damaged, and what two readers would read differently.
func TestParseRefuses(t *testing.T) {
	good := loadertest.PE(".text", "code", ".linux", "kernel")
	put32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[at:], v) }
	}
	for name, c := range map[string]struct {
		damage func([]byte)
		words  string
	}{
		"no program":         {func(b []byte) { b[0] = 'X' }, "not a PE file"},
		"header far away":    {put32(0x3c, 1<<30), "not a PE file"},
		"32 bits":            {func(b []byte) { b[atOptional] = 0x0b; b[atOptional+1] = 1 }, "not a 64-bit program"},
		"short header":       {func(b []byte) { b[0x40+20] = 100 }, ""},
		"no directories":     {put32(atOptional+108, 4), "no place for a signature"},
		"many directories":   {put32(atOptional+108, 1<<31), "no place for a signature"},
		"no alignment":       {put32(atOptional+32, 0), "alignments"},
		"odd alignment":      {put32(atOptional+36, 24), "alignments"},
		"huge alignment":     {put32(atOptional+32, 1<<30), "alignments"},
		"header of nothing":  {put32(atOptional+60, 8), "a header of 8 bytes"},
		"header beyond":      {put32(atOptional+60, 1<<16), "a header of 65536 bytes"},
		"in the header":      {put32(atTable+20, 8), "overlaps the header"},
		"in the file":        {put32(atTable+40+20, 400), "overlap"},
		"beyond the end":     {put32(atTable+40+20, 1<<20), "ends behind the end"},
		"in memory":          {put32(atTable+40+12, 0x1000), "not behind the one before it in memory"},
		"huge in memory":     {put32(atTable+40+8, 1<<31), "not behind the one before it in memory"},
		"not aligned":        {put32(atTable+40+12, 0x2001), "not behind the one before it in memory"},
		"very many sections": {func(b []byte) { b[0x40+6] = 97 }, ""},
	} {
		data := bytes.Clone(good)
		c.damage(data)
		if _, err := parse(data); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
	if _, err := pefile.Parse(bytes.NewReader(good), pefile.MaxSize+1); err == nil {
		t.Error("a file of more than a gigabyte was taken")
	}
}

// FuzzRebuild: of whatever can be parsed another program can be made, or an error
// says why not; what was made can be parsed and has the payload.
func FuzzRebuild(f *testing.F) {
	f.Add(loadertest.PE(".text", "code", ".linux", "kernel"))
	f.Add(loadertest.UKI("composefs=abc", "kernel", "initrd"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parse(data)
		if err != nil {
			return
		}
		d, err := p.Rebuild(func(name string) bool { return name != ".linux" }, []pefile.Payload{{Name: ".linux", Data: text("another")}})
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := d.WriteSigned(&out, &sums{}); err != nil {
			t.Fatal(err)
		}
		if _, err := parse(out.Bytes()); err != nil {
			t.Fatalf("what was made: %v", err)
		}
		if got, _ := pefile.Find(out.Bytes(), ".linux", 1<<10); string(got) != "another" {
			t.Errorf("the payload is %q", got)
		}
	})
}
