package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode/utf16"
)

// fat reads a FAT32 file system as a firmware does: by its first allocation
// table, and nothing is repaired. Source: Microsoft's FAT specification 1.03.
type fat struct {
	table   []byte
	data    []byte // from cluster 2 on
	cluster int    // bytes
	root    uint32
}

// fatFile is a name in a directory.
type fatFile struct {
	name  string
	dir   bool
	first uint32 // cluster
	size  int
}

const endOfChain = 0x0ffffff8

func openFAT(image string) (*fat, error) {
	b, err := os.ReadFile(image)
	if err != nil {
		return nil, err
	}
	u16 := func(at int) int { return int(binary.LittleEndian.Uint16(b[at:])) }
	u32 := func(at int) int { return int(binary.LittleEndian.Uint32(b[at:])) }
	sector, reserved, tables, size := u16(11), u16(14), int(b[16]), u32(36)
	if sector != 512 || b[510] != 0x55 || b[511] != 0xaa || size == 0 {
		return nil, errors.New("no FAT32 file system")
	}
	start := reserved * sector
	return &fat{
		table: b[start : start+size*sector], data: b[start+tables*size*sector:],
		cluster: int(b[13]) * sector, root: uint32(u32(44)),
	}, nil
}

// chain reads the clusters from the first on: size bytes, or all with a size of -1.
func (f *fat) chain(first uint32, size int) ([]byte, error) {
	var out []byte
	for c := first; size < 0 || len(out) < size; {
		at := (int(c) - 2) * f.cluster
		if c < 2 || at+f.cluster > len(f.data) || len(out) > len(f.data) {
			return nil, fmt.Errorf("a chain of clusters from %d leads to %d", first, c)
		}
		out = append(out, f.data[at:at+f.cluster]...)
		c = binary.LittleEndian.Uint32(f.table[4*c:]) & 0x0fffffff
		if c >= endOfChain {
			break
		}
	}
	if size < 0 {
		return out, nil
	}
	if len(out) < size {
		return nil, fmt.Errorf("a chain of clusters from %d has %d bytes, want %d", first, len(out), size)
	}
	return out[:size], nil
}

// list reads a directory by its first cluster.
func (f *fat) list(first uint32) ([]fatFile, error) {
	b, err := f.chain(first, -1)
	if err != nil {
		return nil, err
	}
	var files []fatFile
	var long []uint16
	var sum byte
	for ; len(b) >= 32 && b[0] != 0; b = b[32:] {
		e := b[:32]
		switch {
		case e[0] == 0xe5:
			long = nil
		case e[11] == 0x0f:
			if e[0]&0x40 != 0 {
				long, sum = nil, e[13]
			}
			var part []uint16
			for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
				for at := r[0]; at < r[1]; at += 2 {
					part = append(part, binary.LittleEndian.Uint16(e[at:]))
				}
			}
			long = append(part, long...)
		case e[11]&8 == 0:
			name := strings.TrimRight(string(e[:8]), " ")
			if ext := strings.TrimRight(string(e[8:11]), " "); ext != "" {
				name += "." + ext
			}
			if len(long) > 0 && sum == shortSum(e[:11]) {
				name, _, _ = strings.Cut(string(utf16.Decode(long)), "\x00")
			}
			long = nil
			files = append(files, fatFile{
				name: name, dir: e[11]&16 != 0, size: int(binary.LittleEndian.Uint32(e[28:])),
				first: uint32(binary.LittleEndian.Uint16(e[20:]))<<16 | uint32(binary.LittleEndian.Uint16(e[26:])),
			})
		}
	}
	return files, nil
}

// shortSum ties a long name to its short one.
func shortSum(short []byte) (sum byte) {
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// find returns what a path names; names have no case.
func (f *fat) find(path string) (fatFile, error) {
	at := fatFile{dir: true, first: f.root}
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		files, err := f.list(at.first)
		if err != nil {
			return fatFile{}, fmt.Errorf("%s: %w", path, err)
		}
		found := false
		for _, file := range files {
			if found = strings.EqualFold(file.name, name); found {
				at = file
				break
			}
		}
		if !found {
			return fatFile{}, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
	}
	return at, nil
}

// read reads a file.
func (f *fat) read(path string) ([]byte, error) {
	file, err := f.find(path)
	if err != nil {
		return nil, err
	}
	b, err := f.chain(file.first, file.size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
