package object_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// realRepo returns a bare-user repository that libostree wrote.
func realRepo(t *testing.T) (repo, commit string) {
	t.Helper()
	lab.Need(t, "ostree")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for i := range 300 {
		d := filepath.Join(tree, fmt.Sprintf("dir%d", i%7), strings.Repeat("n", 1+i%40))
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%d", i)), bytes.Repeat([]byte{byte(i)}, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(tree, "dir0", fmt.Sprintf("many-%d", i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("dir0/über", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lsetxattr(filepath.Join(tree, "dir1"), "user.one", []byte("1\x00"), 0); err != nil {
		t.Skipf("the file system has no user xattrs: %v", err)
	}
	repo = filepath.Join(dir, "repo")
	run(t, "ostree", "init", "--repo", repo, "--mode=bare-user")
	commit = run(t, "ostree", "commit", "--repo", repo, "-b", "os/x", "--tree=dir="+tree, "-s", "subject", "-m", "body\nof it",
		"--add-metadata-string=version=1.2", "--add-metadata=n=uint32 7", "--add-metadata=l=['a','bc']",
		"--add-metadata=d={'k': <'v'>, 'b': <true>}", "--add-metadata=m=@a{ss} {'x': 'y'}", "--add-metadata=odd=(@mx nothing, [(1, 'x')])")
	return repo, commit
}

// Every object that libostree wrote decodes and encodes to the same bytes.
func TestRealObjectsRoundTrip(t *testing.T) {
	repo, commit := realRepo(t)
	count := map[object.Type]int{}
	tree := fstree.New()
	paths, err := filepath.Glob(filepath.Join(repo, "objects/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		n, ok := object.ParsePath(filepath.Base(filepath.Dir(p)), filepath.Base(p), false)
		if !ok {
			t.Errorf("%s is not taken for an object", p)
			continue
		}
		if want := strings.TrimPrefix(p, filepath.Join(repo, "objects")+"/"); n.Path(false) != want {
			t.Errorf("path of %s: %s, libostree has %s", n, n.Path(false), want)
		}
		count[n.Type]++
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		var again []byte
		switch n.Type {
		case object.TypeDirtree:
			files, dirs, err := object.DecodeDirtree(data)
			if err != nil {
				t.Errorf("%s: %v", n, err)
				continue
			}
			again = object.EncodeDirtree(files, dirs)
		case object.TypeDirmeta:
			m, err := object.DecodeDirmeta(data)
			if err != nil {
				t.Errorf("%s: %v", n, err)
				continue
			}
			again = object.EncodeDirmeta(m.UID, m.GID, m.Mode, tree.Intern(m.Xattrs))
		case object.TypeCommit:
			c, err := object.DecodeCommit(data)
			if err != nil {
				t.Errorf("%s: %v", n, err)
				continue
			}
			again = c.Encode()
		case object.TypeFile:
			raw := make([]byte, 4096)
			size, err := unix.Lgetxattr(p, "user.ostreemeta", raw)
			if err != nil {
				t.Fatal(err)
			}
			m, err := object.DecodeFileMeta(raw[:size])
			if err != nil {
				t.Errorf("%s: %v", n, err)
				continue
			}
			if got := object.EncodeFileMeta(m.UID, m.GID, m.Mode, tree.Intern(m.Xattrs)); !bytes.Equal(got, raw[:size]) {
				t.Errorf("%s: user.ostreemeta encodes as %x, libostree wrote %x", n, got, raw[:size])
			}
			target := ""
			if m.Mode&unix.S_IFMT == unix.S_IFLNK {
				target, data = strings.TrimSuffix(string(data), "\x00"), nil
			}
			h := sha256.New()
			h.Write(object.FileHeader(m.UID, m.GID, m.Mode, target, tree.Intern(m.Xattrs)))
			h.Write(data)
			if got := object.Checksum(h.Sum(nil)); got != n.Checksum {
				t.Errorf("content checksum %s, libostree says %s", got, n.Checksum)
			}
			continue
		default:
			continue
		}
		if !bytes.Equal(again, data) {
			t.Errorf("%s does not encode to what it was", n)
		}
		if object.Sum(again) != n.Checksum {
			t.Errorf("%s has the checksum %s", n, object.Sum(again))
		}
	}
	for _, typ := range []object.Type{object.TypeFile, object.TypeDirtree, object.TypeDirmeta, object.TypeCommit} {
		if count[typ] == 0 {
			t.Errorf("the repository of libostree had no %s", typ)
		}
	}
	c, err := object.ParseChecksum(commit)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(repo, "objects", object.Name{Checksum: c, Type: object.TypeCommit}.Path(false)))
	if err != nil {
		t.Fatal(err)
	}
	co, err := object.DecodeCommit(data)
	if err != nil {
		t.Fatal(err)
	}
	if co.Subject != "subject" || co.Body != "body\nof it" || co.Time == 0 || !co.Parent.IsZero() {
		t.Errorf("commit decoded as %+v", co)
	}
	if v, ok := co.Metadata.Text("version"); !ok || v != "1.2" {
		t.Errorf("metadata version: %q, %v", v, ok)
	}
	if v, ok := co.Metadata.Texts("l"); !ok || len(v) != 2 || v[1] != "bc" {
		t.Errorf("metadata l: %q, %v", v, ok)
	}
	if v, ok := co.Metadata.Dict("d"); !ok || len(v) != 2 {
		t.Errorf("metadata d: %v, %v", v, ok)
	}
	if v, ok := co.Metadata.Map("m"); !ok || v["x"] != "y" {
		t.Errorf("metadata m: %v, %v", v, ok)
	}
}
