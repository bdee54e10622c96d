package composefs

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// systemTree makes a tree like a host image's: 150,000 inodes, of which most
// are external files with their own digest and one of a few labels.
func systemTree() *Tree {
	t := &Tree{}
	label := func(i int) *fstree.Xattrs {
		return t.intern.Intern([]fstree.Xattr{{Name: xattrSELinux, Value: fmt.Sprintf("system_u:object_r:type%d_t:s0", i%40)}})
	}
	dir := func() *Inode { return &Inode{Mode: unix.S_IFDIR | 0o755, Xattrs: label(0), MtimeSec: 1_700_000_000} }
	t.Root = dir()
	inodes := 1
	for i := 0; inodes < 150_000; i++ {
		d := dir()
		t.Root.Entries = append(t.Root.Entries, Dirent{Name: fmt.Sprintf("dir%05d", i), Inode: d})
		inodes++
		for j := range 14 {
			n := &Inode{Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: uint64(1000 + i*j), Xattrs: label(i), MtimeSec: 1_700_000_000 + int64(i%7)}
			switch {
			case j == 0:
				n.Mode, n.Payload = unix.S_IFLNK|0o777, "../lib/target-of-this-link.so.1"
			case j == 1:
				n.Content, n.Size = "inline", 6
			default:
				var digest [32]byte
				binary.LittleEndian.PutUint64(digest[:], uint64(i*14+j)*0x9e3779b97f4a7c15)
				n.Digest = Digest(digest[:])
				hex := n.Digest.String()
				n.Payload = hex[:2] + "/" + hex[2:]
			}
			d.Entries = append(d.Entries, Dirent{Name: fmt.Sprintf("file-name-%02d.conf", j), Inode: n})
			inodes++
		}
	}
	return t
}

func BenchmarkWriteImage(b *testing.B) {
	t := systemTree()
	b.ReportAllocs()
	for b.Loop() {
		info, err := WriteImage(io.Discard, t, V1)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(info.Size)
	}
}

func BenchmarkReadImage(b *testing.B) {
	data := writeImageOf(b, systemTree(), V1)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ReadImage(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerity(b *testing.B) {
	for _, alg := range []Algorithm{SHA256, SHA512} {
		b.Run(alg.String(), func(b *testing.B) {
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			v := fsverity.New(alg)
			for b.Loop() {
				_, _ = v.Write(buf)
			}
		})
	}
}

// TestWriteImageMemory holds the writer to what a host can spare.
func TestWriteImageMemory(t *testing.T) {
	tree := systemTree()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if _, err := WriteImage(io.Discard, tree, V1); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(tree)
	used := (after.TotalAlloc - before.TotalAlloc) >> 20
	t.Logf("%d MiB allocated in all beside the tree", used)
	if used > 150 {
		t.Errorf("writing 150,000 inodes allocates %d MiB in all, want at most 150", used)
	}
}
