package lab

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// logOf is a write log of these entries: sector, data; nil data is a flush.
func logOf(t *testing.T, entries ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	sector := func(numbers ...any) {
		at := b.Len()
		for _, n := range numbers {
			_ = binary.Write(&b, binary.LittleEndian, n)
		}
		b.Write(make([]byte, 512-(b.Len()-at)))
	}
	sector(uint64(logMagic), uint64(logVersion), uint64(len(entries)), uint32(512))
	for i, data := range entries {
		if data == nil {
			sector(uint64(0), uint64(0), uint64(logFlush), uint64(0))
			continue
		}
		sector(uint64(i), uint64(len(data)/512), uint64(0), uint64(0))
		b.Write(data)
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sectors(n int, fill byte) []byte { return bytes.Repeat([]byte{fill}, n*512) }

func TestReplay(t *testing.T) {
	log, err := OpenWriteLog(logOf(t, sectors(1, 'a'), nil, sectors(2, 'b'), sectors(1, 'c'), nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if cuts := log.FlushCuts(0, len(log.Entries)); len(cuts) != 3 || cuts[1].Flushed != 2 || cuts[2].Flushed != 5 {
		t.Errorf("cuts after flushes: %v, want those after 0, 2 and 5 entries", cuts)
	}
	if m, err := log.Marks(3 * 512); err != nil || len(m) != 1 || m[0].Entry != 3 {
		t.Errorf("marks %v (%v), want the write to sector 3", m, err)
	}
	disk, cut := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(disk, sectors(5, '.'), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := NewReplayer(log, disk)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range []struct {
		Cut
		want string // of each sector the byte
	}{
		{Cut{Flushed: 0, Kept: []Piece{{Entry: 0, Size: 512}}}, "a...."},
		{Cut{Flushed: 2, Kept: []Piece{{Entry: 2, From: 512, Size: 512}}}, "a..b."},
		{Cut{Flushed: 2, Kept: []Piece{{Entry: 2, Size: 1024}, {Entry: 3, Size: 512}}}, "a.bc."},
		{Cut{Flushed: 6}, "a.bc."},
	} {
		if err := r.Make(t.Context(), c.Cut, cut); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(cut)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for s := range slices.Chunk(b, 512) {
			got = append(got, s[0])
		}
		if string(got) != c.want {
			t.Errorf("the disk of %v is %q, want %q", c.Cut, got, c.want)
		}
	}
	if err := r.Forward(1); err == nil {
		t.Error("the log was replayed backwards")
	}
}

func TestRandomCutsKeepWhatWasFlushed(t *testing.T) {
	log, err := OpenWriteLog(logOf(t, sectors(16, 'a'), sectors(16, 'b'), nil, sectors(16, 'c'), sectors(1, 'd'), sectors(1, 'e')))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var torn, partial bool
	for _, c := range log.RandomCuts(0, len(log.Entries), 200, rand.New(rand.NewPCG(1, 1))) {
		if c.Flushed != 0 && c.Flushed != 3 {
			t.Fatalf("cut %v is not at a flush", c)
		}
		for _, p := range c.Kept {
			if p.Entry < c.Flushed || c.Flushed == 0 && p.Entry > 1 {
				t.Fatalf("cut %v has a write that no power cut leaves", c)
			}
			torn = torn || p.Size == tornAt && p.From > 0
			partial = partial || p.Entry == 5 && len(c.Kept) == 1
		}
	}
	if !torn || !partial {
		t.Errorf("no cut has a torn write (%t) or a late one alone (%t)", torn, partial)
	}
}

func TestNoWriteLog(t *testing.T) {
	whole, err := os.ReadFile(logOf(t, sectors(1, 'a')))
	if err != nil {
		t.Fatal(err)
	}
	discard := slices.Clone(whole)
	discard[512+16] = logDiscard
	for what, b := range map[string][]byte{"empty": nil, "a short one": whole[:520], "other bytes": sectors(4, 'x'), "a discard": discard} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := OpenWriteLog(path); err == nil {
			l.Close()
			t.Errorf("%s was read as a write log", what)
		}
	}
}
