package ocibridge_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// TestChunked imports images that ostree-ext made, in the layouts of today and
// of 2025, and compares the commit's tree with what `ostree ls` said of the
// commit that they were made from.
func TestChunked(t *testing.T) {
	want := readLs(t, "testdata/chunked/chunked.ls")
	for _, tag := range []string{"chunked", "chunked-2025", "derived"} {
		t.Run(tag, func(t *testing.T) {
			store := storetest.NewMem()
			img := mustImport(t, "oci:testdata/chunked/oci:"+tag, options(t), store)
			commit, err := os.ReadFile("testdata/chunked/commit")
			if err != nil {
				t.Fatal(err)
			}
			if got := img.OSTree.Commit.String(); got != strings.TrimSpace(string(commit)) {
				t.Errorf("commit %s, want %s", got, commit)
			}
			got := lsTree(t, img.OSTree.Tree, store)
			for path, line := range want {
				if got[path] != line {
					t.Errorf("%s\n got %s\nwant %s", path, got[path], line)
				}
				delete(got, path)
			}
			for path := range got {
				t.Errorf("%s is not in the commit", path)
			}
			if img.Tree.Lookup("usr/etc") != nil || img.Tree.Lookup("etc") == nil {
				t.Error("the image's tree must have /etc, not /usr/etc")
			}
			if derived := tag == "derived"; derived != (img.Layers[len(img.Layers)-1].Role == ocibridge.Derived) {
				t.Errorf("the last layer is %s", img.Layers[len(img.Layers)-1].Role)
			}
		})
	}
}

var lsLine = regexp.MustCompile(`^(.)(\d+) (\d+) (\d+) +(\d+) ([0-9a-f]{64}(?: [0-9a-f]{64})?) \{ .* \} (/.*)$`)

// readLs reads the output of `ostree ls -R -C -X`: per path its type,
// permissions, owner, size, link target and checksums, which cover the rest.
func readLs(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := make(map[string]string)
	for s := bufio.NewScanner(f); s.Scan(); {
		m := lsLine.FindStringSubmatch(s.Text())
		if m == nil {
			t.Fatalf("%s: line %q", file, s.Text())
		}
		path, target, _ := strings.Cut(m[7], " -> ")
		out[path] = fmt.Sprintf("%s%s %s %s %s %q %s", m[1], m[2], m[3], m[4], m[5], target, m[6])
	}
	return out
}

// lsTree lists a tree in the form of readLs, with the checksums that a
// repository would have for it.
func lsTree(t *testing.T, tree *fstree.Tree, store ocibridge.Store) map[string]string {
	t.Helper()
	out := make(map[string]string)
	line := func(path, kind string, n *fstree.Inode, sums ...any) {
		out[path] = fmt.Sprintf("%s%05o %d %d %d %q %s", kind, n.Mode&0o7777, n.UID, n.GID, n.Size, n.Target, fmt.Sprint(sums...))
	}
	var dir func(path string, n *fstree.Inode) (tree, meta object.Checksum)
	dir = func(path string, n *fstree.Inode) (object.Checksum, object.Checksum) {
		var files []object.FileEntry
		var dirs []object.DirEntry
		for _, e := range n.Entries() {
			p := path + "/" + e.Name
			if e.Inode.IsDir() {
				tree, meta := dir(p, e.Inode)
				dirs = append(dirs, object.DirEntry{Name: e.Name, Tree: tree, Meta: meta})
				continue
			}
			sum := fileChecksum(t, e.Inode, store)
			line(p, map[bool]string{true: "l", false: "-"}[e.Inode.IsSymlink()], e.Inode, sum)
			files = append(files, object.FileEntry{Name: e.Name, Checksum: sum})
		}
		tree := object.Sum(object.EncodeDirtree(files, dirs))
		meta := object.Sum(object.EncodeDirmeta(n.UID, n.GID, n.Mode, n.Xattrs))
		if path == "" {
			path = "/"
		}
		line(path, "d", n, tree, " ", meta)
		return tree, meta
	}
	dir("", tree.Root)
	return out
}

func fileChecksum(t *testing.T, n *fstree.Inode, store ocibridge.Store) object.Checksum {
	t.Helper()
	data := object.FileHeader(n.UID, n.GID, n.Mode, n.Target, n.Xattrs)
	if n.IsRegular() {
		r, err := store.OpenContent(n.Content)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, content...)
	}
	return object.Sum(data)
}

// chunkedSpec is an image of a commit layer and a chunk; change may damage
// either before it is closed.
func chunkedSpec(t *testing.T, l layout, change func(commit, chunk *chunkWriter)) imageSpec {
	t.Helper()
	chunk := newChunk(t, l)
	label := chunk.label("bin_t")
	files := []object.FileEntry{
		{Name: "a", Checksum: chunk.file("usr/a", "content", 0o4755, label)},
		{Name: "empty", Checksum: chunk.file("usr/empty", "", 0o644, chunk.label("empty_t"))},
		{Name: "link", Checksum: chunk.symlink("a", label)},
		{Name: "plain", Checksum: chunk.file("usr/plain", "no xattrs", 0o600, nil)},
	}
	files = append(files, object.FileEntry{Name: "same", Checksum: files[0].Checksum}, object.FileEntry{Name: "vacant", Checksum: files[1].Checksum})
	commit := newChunk(t, l)
	commitOf(t, commit, files)
	if change != nil {
		change(commit, chunk)
	}
	a, b := commit.blob(), chunk.blob()
	return imageSpec{
		layers: []blob{a, b},
		labels: map[string]string{"ostree.bootable": "1", "ostree.final-diffid": b.diffID.String()},
	}
}

// TestChunkedLayouts imports what no current tool writes: all three layouts of
// xattrs, of which the first is in no fixture.
func TestChunkedLayouts(t *testing.T) {
	for _, l := range []layout{regularFiles, hardLinks, xattrsDir} {
		spec := chunkedSpec(t, l, nil)
		spec.layers = append(spec.layers, gzipLayer(tarOf(t, map[string]string{"etc/x": "derived"}, tar.Header{Name: "etc/x"}, tar.Header{Name: "usr/.wh.plain"})))
		img := mustImport(t, writeLayout(t, spec), options(t), storetest.NewMem())
		base := img.OSTree.Tree
		a := base.Lookup("usr/a")
		if v, _ := a.Xattrs.Get("security.selinux"); v != "bin_t\x00" || a.Mode != unix.S_IFREG|0o4755 || a.UID != 7 || a.GID != 8 || a.Content != sha("content") {
			t.Errorf("layout %d: usr/a is %+v with %q", l, a, a.Xattrs.All())
		}
		if base.Lookup("usr/same") != a || !a.Linked || base.Lookup("usr/vacant") == base.Lookup("usr/empty") {
			t.Errorf("layout %d: names of one object must be one inode, but for empty files", l)
		}
		if base.Lookup("usr/link").Target != "a" || base.Lookup("usr/plain").Xattrs != nil {
			t.Errorf("layout %d: link or plain is wrong", l)
		}
		if base.Lookup("usr/etc") == nil || base.Lookup("usr/plain") == nil || !img.OSTree.Exact {
			t.Errorf("layout %d: the base must stay as its commit has it", l)
		}
		if img.Tree.Lookup("etc/x") == nil || img.Tree.Lookup("usr/plain") != nil || img.Tree.Lookup("usr/etc") != nil {
			t.Errorf("layout %d: the derived layer is not on top", l)
		}
	}
}

// TestUnsortedXattrs imports an object whose checksum libostree before 2024.10
// made, with the label last.
func TestUnsortedXattrs(t *testing.T) {
	chunk := newChunk(t, regularFiles)
	// a(ayay) of user.z and security.selinux in this order: two elements with
	// their framing offsets.
	first := object.EncodeXattrs(chunk.tree.Intern([]fstree.Xattr{{Name: "user.z", Value: "v"}}))
	second := chunk.label("bin_t")
	first, second = first[:len(first)-1], second[:len(second)-1]
	raw := append(bytes.Clone(first), second...)
	raw = append(raw, byte(len(first)), byte(len(first)+len(second)))
	files := []object.FileEntry{{Name: "odd", Checksum: chunk.file("usr/odd", "odd", 0o644, raw)}}
	commit := newChunk(t, regularFiles)
	commitOf(t, commit, files)
	a, b := commit.blob(), chunk.blob()
	img := mustImport(t, writeLayout(t, imageSpec{
		layers: []blob{a, b}, labels: map[string]string{"ostree.bootable": "1", "ostree.final-diffid": b.diffID.String()},
	}), options(t), storetest.NewMem())
	n := img.OSTree.Tree.Lookup("usr/odd")
	if len(n.Xattrs.All()) != 2 || n.Content != sha("odd") {
		t.Errorf("usr/odd is %+v", n)
	}
	if img.OSTree.Exact || !img.Layers[1].Objects.Files[0].Unsorted {
		t.Error("the commit's checksums cannot be reproduced, and the image does not say so")
	}
}

func TestDamagedChunks(t *testing.T) {
	someSum := object.Sum([]byte("x"))
	tests := []struct {
		name   string
		change func(commit, chunk *chunkWriter)
		kind   fault.Kind
		says   string
	}{
		{"content of another checksum", func(_, c *chunkWriter) {
			c.xattrs(someSum, nil)
			c.entry(tar.Header{Name: objectPath(someSum, "file")}, []byte("y"))
		}, fault.Untrusted, "checksum"},
		{"metadata of another checksum", func(c, _ *chunkWriter) {
			c.entry(tar.Header{Name: objectPath(someSum, "dirtree")}, []byte("y"))
		}, fault.Untrusted, "checksum"},
		{"xattrs of another checksum", func(_, c *chunkWriter) {
			c.entry(tar.Header{Name: objectPath(someSum, "file-xattrs")}, nil)
		}, fault.Untrusted, "checksum"},
		{"file without xattrs", func(_, c *chunkWriter) {
			c.entry(tar.Header{Name: objectPath(someSum, "file")}, []byte("x"))
		}, fault.Corrupt, "xattrs"},
		{"xattrs without a file", func(_, c *chunkWriter) { c.xattrs(someSum, nil) }, fault.Corrupt, "missing"},
		{"xattrs of another file", func(_, c *chunkWriter) {
			c.xattrs(object.Sum(nil), nil)
			c.entry(tar.Header{Name: objectPath(someSum, "file")}, []byte("x"))
		}, fault.Corrupt, "xattrs"},
		{"link to unknown xattrs", func(_, c *chunkWriter) {
			c.entry(tar.Header{Name: objectPath(someSum, "file-xattrs-link"), Typeflag: tar.TypeLink, Linkname: objectPath(someSum, "file-xattrs")}, nil)
		}, fault.Corrupt, "not brought"},
		{"metadata in a chunk", func(_, c *chunkWriter) { c.meta("dirtree", object.EncodeDirtree(nil, nil)) }, fault.Corrupt, "metadata"},
		{"second commit", func(c, _ *chunkWriter) { c.meta("commit", (&object.Commit{}).Encode()) }, fault.Corrupt, "second"},
		{"object with an odd name", func(_, c *chunkWriter) {
			c.entry(tar.Header{Name: objectsDir + "zz/abc.file"}, nil)
		}, fault.Corrupt, "name"},
		{"object that is a device", func(_, c *chunkWriter) {
			c.xattrs(someSum, nil)
			c.entry(tar.Header{Name: objectPath(someSum, "file"), Typeflag: tar.TypeChar}, nil)
		}, fault.Corrupt, "type"},
		{"metadata of 11 MiB", func(c, _ *chunkWriter) { c.meta("dirtree", make([]byte, 11<<20)) }, fault.Corrupt, "limit"},
		{"path out of the tree", func(_, c *chunkWriter) { c.entry(tar.Header{Name: "sysroot/ostree/repo/../../x"}, nil) }, fault.Corrupt, ".."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := importRef(t, writeLayout(t, chunkedSpec(t, regularFiles, tt.change)), options(t), storetest.NewMem())
			if fault.KindOf(err) != tt.kind || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%v (%v), want %v, speaking of %q", err, fault.KindOf(err), tt.kind, tt.says)
			}
		})
	}
	t.Run("content that no layer has", func(t *testing.T) {
		c := newChunk(t, regularFiles)
		commitOf(t, c, []object.FileEntry{{Name: "a", Checksum: someSum}})
		b := c.blob()
		_, err := importRef(t, writeLayout(t, imageSpec{layers: []blob{b}, labels: map[string]string{"ostree.bootable": "1", "ostree.final-diffid": b.diffID.String()}}), options(t), storetest.NewMem())
		if fault.KindOf(err) != fault.Corrupt || !strings.Contains(fmt.Sprint(err), "/usr/a") {
			t.Errorf("%v (%v), want corrupt, naming /usr/a", err, fault.KindOf(err))
		}
	})
	t.Run("no commit", func(t *testing.T) {
		b := newChunk(t, regularFiles).blob()
		_, err := importRef(t, writeLayout(t, imageSpec{layers: []blob{b}, labels: map[string]string{"ostree.bootable": "1", "ostree.final-diffid": b.diffID.String()}}), options(t), storetest.NewMem())
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%v (%v), want corrupt", err, fault.KindOf(err))
		}
	})
}

// TestChunkReuse: a chunk that is in the store is not fetched again for another
// image that shares it.
func TestChunkReuse(t *testing.T) {
	reg := newRegistry(t)
	spec := chunkedSpec(t, regularFiles, nil)
	first := reg.push("os/a:1", spec)
	spec.layers = append(spec.layers, smallLayer(t, "derived"))
	second := reg.push("os/a:2", spec)
	store := storetest.NewMem()
	mustImport(t, first, options(t, reg.host), store)
	before := len(reg.requests)
	img := mustImport(t, second, options(t, reg.host), store)
	if got := len(reg.requests) - before; got != 2 {
		t.Errorf("%d blobs were asked for, want config and derived layer", got)
	}
	if img.Tree.Lookup("usr/a") == nil || img.Tree.Lookup("derived") == nil {
		t.Error("the merged tree lacks files")
	}
}
