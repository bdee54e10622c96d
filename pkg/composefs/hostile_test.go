package composefs

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
)

// smallImage is an image with one of everything, and the offset of each inode
// by its path.
func smallImage(t testing.TB) ([]byte, map[string]int64) {
	t.Helper()
	const dump = rootLine +
		"/d 0 40755 2 0 0 0 0.0 - - - user.a=1 user.b=2\n" +
		"/d/f 3 100644 1 0 0 0 0.0 - abc - user.a=1 user.b=2\n" +
		"/d/x 70000 100644 1 0 0 0 0.0 ab/cd - " + hex64 + "\n" +
		"/l 4 120777 1 0 0 0 0.0 d/ff - -\n" +
		"/s 0 40755 2 0 0 0 0.0 - - -\n"
	tree, err := ReadDump(strings.NewReader(dump))
	if err != nil {
		t.Fatal(err)
	}
	f, err := flatten(tree, V1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLayout(f)
	if err != nil {
		t.Fatal(err)
	}
	at := make(map[string]int64)
	for i := range l.nodes {
		at[l.path(uint32(i))] = l.nodes[i].pos()
	}
	return writeImageOf(t, tree, V1), at
}

const hex64 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// TestReadImageRefuses damages an image in one place each.
func TestReadImageRefuses(t *testing.T) {
	good, at := smallImage(t)
	if _, _, err := ReadImage(good); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	nid := func(path string) uint64 { return uint64(at[path] / slotSize) }
	dirents := at["/d"] + compactSize + xattrHeader + 8 // behind two shared xattrs
	if got := le.Uint64(good[dirents:]); got != nid("/d") {
		t.Fatalf("the entries of /d are not at %d", dirents)
	}
	for _, tc := range []struct {
		name   string
		damage func(b []byte) []byte
		want   string
	}{
		{"nothing at all", func([]byte) []byte { return nil }, "too short"},
		{"cut in the header", func(b []byte) []byte { return b[:1100] }, "too short"},
		{"cut in the middle", func(b []byte) []byte { return b[:len(b)-blockSize] }, "blocks in"},
		{"longer than it says", func(b []byte) []byte { return append(b, b[:blockSize]...) }, "blocks in"},
		{"some other file", func(b []byte) []byte { b[0]++; return b }, "not a composefs image"},
		{"a later version", func(b []byte) []byte { b[12] = 3; return b }, "version 3"},
		{"no superblock", func(b []byte) []byte { b[superOffset]++; return b }, "superblock"},
		{"another block size", func(b []byte) []byte { b[superOffset+12] = 9; return b }, "block size"},
		{"a feature of EROFS", func(b []byte) []byte { b[superOffset+80] = 1; return b }, "features 0x1"},
		{"a root that is a file", func(b []byte) []byte { le.PutUint16(b[superOffset+14:], uint16(nid("/d/f"))); return b }, "root is no directory"},
		{"a root beyond the end", func(b []byte) []byte { le.PutUint16(b[superOffset+14:], 0xffff); return b }, "beyond"},
		{"a directory in itself", func(b []byte) []byte { le.PutUint64(b[dirents+24:], nid("/d")); return b }, "directory with two names"},
		{"a directory in two", func(b []byte) []byte { le.PutUint64(b[dirents+24:], nid("/s")); return b }, "directory with two names"},
		{"an inode beyond the end", func(b []byte) []byte { le.PutUint64(b[dirents+24:], 1<<60); return b }, "beyond"},
		{"a file without a type", func(b []byte) []byte { b[at["/d/f"]+5] = 0; return b }, "no file type"},
		{"names out of order", func(b []byte) []byte { return swapNames(b, dirents) }, "stands after"},
		{"a name with a slash", func(b []byte) []byte { b[dirents+4*direntSize+3] = '/'; return b }, "slash"},
		{"names that overlap the entries", func(b []byte) []byte { b[dirents+direntSize+8] = 1; return b }, "out of order"},
		{"no entries", func(b []byte) []byte { b[dirents+8] = 0; return b }, "start at 0"},
		{"a tail across blocks", func(b []byte) []byte { le.PutUint32(b[at["/d/f"]+8:], 3000); return b }, "block boundary"},
		{"data beyond the end", func(b []byte) []byte { le.PutUint32(b[at["/d/f"]+8:], 1<<31); return b }, "bytes of data in an image"},
		{"compressed data", func(b []byte) []byte { b[at["/d/f"]] = 3 << 1; return b }, "data layout 3"},
		{"a symlink to nothing", func(b []byte) []byte { b[at["/l"]+8] = 0; return b }, "symlink target of 0 bytes"},
		{"a symlink with a NUL", func(b []byte) []byte { b[at["/l"]+compactSize] = 0; return b }, "NUL"},
		{"xattrs beyond the end", func(b []byte) []byte { le.PutUint16(b[at["/d/f"]+2:], 0xffff); return b }, "overlap"},
		{"more shared xattrs than there is room for", func(b []byte) []byte { b[at["/d/f"]+compactSize+4] = 3; return b }, "shared xattrs in"},
		{"a shared xattr beyond the end", func(b []byte) []byte {
			le.PutUint32(b[at["/d/f"]+compactSize+xattrHeader:], 1<<31)
			return b
		}, "shared xattr"},
		{"an xattr longer than its room", func(b []byte) []byte { b[at["/d/x"]+compactSize+xattrHeader] = 0xff; return b }, "are left"},
		{"an xattr prefix that is not known", func(b []byte) []byte { b[at["/d/x"]+compactSize+xattrHeader+1] = 0x80; return b }, "prefix number 128"},
		{"a digest of another kind", func(b []byte) []byte {
			i := bytes.Index(b, []byte{0, 36, 0, 1})
			b[i+3] = 2
			return b
		}, "metacopy"},
	} {
		_, _, err := ReadImage(tc.damage(bytes.Clone(good)))
		if err == nil || fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error of kind corrupt with %q", tc.name, err, tc.want)
		}
	}
}

// TestReadImageLinkToStub reads an image with a hard link to one of the
// whiteouts that composefs adds: the whiteout must stay as what it leads to.
func TestReadImageLinkToStub(t *testing.T) {
	b, at := smallImage(t)
	dirents := at["/d"] + compactSize + xattrHeader + 8
	binary.LittleEndian.PutUint64(b[dirents+2*direntSize:], uint64(at["/d4"]/slotSize))
	tree, _, err := ReadImage(b)
	if err != nil {
		t.Fatal(err)
	}
	if n := tree.Lookup("/d/f"); n == nil || !n.isWhiteout() || tree.Lookup("/d4") != n {
		t.Errorf("/d/f is %+v", n)
	}
	dumpOf(t, tree)
}

// swapNames exchanges the inodes' names "f" and "x" of a directory's entries.
func swapNames(b []byte, dirents int64) []byte {
	names := b[dirents+4*direntSize:]
	i, j := bytes.IndexByte(names, 'f'), bytes.IndexByte(names, 'x')
	names[i], names[j] = names[j], names[i]
	return b
}

// TestReadImageBounds reads images that try to make the reader work more than
// their length allows.
func TestReadImageBounds(t *testing.T) {
	le := binary.LittleEndian
	const blocks = 1024
	base := func() []byte {
		b := make([]byte, blocks*blockSize)
		le.PutUint32(b[0:], headerMagic)
		le.PutUint32(b[4:], headerVersion)
		s := b[superOffset:]
		le.PutUint32(s[0:], superMagic)
		s[12] = 12
		le.PutUint16(s[14:], 36)
		le.PutUint32(s[36:], blocks)
		return b
	}
	inode := func(b []byte, nid, ino int, mode uint16, icount uint16, size, block uint32) {
		i := b[nid*slotSize:]
		le.PutUint16(i[2:], icount)
		le.PutUint16(i[4:], mode)
		le.PutUint32(i[8:], size)
		le.PutUint32(i[16:], block)
		le.PutUint32(i[20:], uint32(ino))
	}
	// fill makes block the entries of a directory whose children are the
	// inodes from nid on; it returns how many there are.
	fill := func(b []byte, block, nid, step int) int {
		const count = 200
		d := b[block*blockSize:]
		for i := range count {
			le.PutUint64(d[i*direntSize:], uint64(nid+i*step))
			le.PutUint16(d[i*direntSize+8:], uint16(count*direntSize+3*i))
			copy(d[count*direntSize+3*i:], []byte{'a' + byte(i/100), 'a' + byte(i/10%10), 'a' + byte(i%10)})
		}
		return count
	}
	for _, tc := range []struct {
		name  string
		build func(b []byte)
		want  string
	}{
		{"directories that share their entries", func(b []byte) {
			inode(b, 36, 0, 0o40755, 0, blockSize, 3)
			for i := range fill(b, 3, 1000, 1) {
				inode(b, 1000+i, 1+i, 0o40755, 0, 900*blockSize, 5)
			}
		}, "inodes overlap"},
		{"files that share their data", func(b []byte) {
			inode(b, 36, 0, 0o40755, 0, blockSize, 3)
			for i := range fill(b, 3, 1000, 1) {
				inode(b, 1000+i, 1+i, 0o100644, 0, 900*blockSize, 5)
			}
		}, "inodes overlap"},
		{"xattrs that reach over other inodes", func(b []byte) {
			inode(b, 36, 0, 0o40755, 0, blockSize, 3)
			for i := range fill(b, 3, 1000, 1) {
				inode(b, 1000+i, 1+i, 0o100644, 60_000, 0, 0)
			}
		}, ""},
		{"large shared xattrs over and over", func(b []byte) {
			inode(b, 36, 0, 0o40755, 0, blockSize, 3)
			for i := range 50 {
				at := 100*blockSize + i*8
				b[at], b[at+1], b[at+4] = 1, 1, 'n'
				le.PutUint16(b[at+2:], 60_000)
			}
			for i := range fill(b, 3, 1000, 40) {
				nid := 1000 + 40*i
				inode(b, nid, 1+i, 0o100644, 251, 0, 0)
				x := b[nid*slotSize+compactSize:]
				x[4] = 250
				for j := range 250 {
					le.PutUint32(x[xattrHeader+4*j:], uint32(100*blockSize/4+2*((i+j)%50)))
				}
			}
		}, "too many bytes of shared xattrs"},
	} {
		b := base()
		tc.build(b)
		start := time.Now()
		_, _, err := ReadImage(b)
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s: took %v", tc.name, took)
		}
		if err == nil || fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error of kind corrupt with %q", tc.name, err, tc.want)
		}
		t.Logf("%s: %v", tc.name, err)
	}
}

func FuzzReadImage(f *testing.F) {
	small, _ := smallImage(f)
	f.Add(small)
	names, _ := filepath.Glob("testdata/rs/*.erofs")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, name := range []string{"whiteouts", "hardlinks", "xattrs-prefixes", "devices"} {
		tree, err := ReadDump(bytes.NewReader(readTestdata(f, "trees/"+name+".dump")))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(writeImageOf(f, tree, V0))
		f.Add(writeImageOf(f, tree, V1))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) > 1<<20 {
			return
		}
		tree, _, err := ReadImage(image)
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Fatalf("an error of kind %v: %v", fault.KindOf(err), err)
			}
			return
		}
		_, _ = WriteImage(io.Discard, tree, Default) // it may be beyond the limits, and must not crash
		dump := dumpOf(t, tree)
		again, err := ReadDump(strings.NewReader(dump))
		if err != nil {
			return // beyond the limits of the dump format
		}
		if twice := dumpOf(t, again); twice != dump {
			t.Fatalf("the dump of an image is not the same when read and written again:\n%s\n%s", dump, twice)
		}
	})
}
