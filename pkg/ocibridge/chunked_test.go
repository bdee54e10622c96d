package ocibridge_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

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
