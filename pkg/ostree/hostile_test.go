package ostree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// putRaw puts bytes where an object belongs, as a hostile repository would.
func putRaw(t testing.TB, r *Repo, typ object.Type, data []byte) Checksum {
	t.Helper()
	sum := object.Sum(data)
	p := filepath.Join(r.Path(), "objects", object.Name{Checksum: sum, Type: typ}.Path(r.Mode() == Archive))
	check(t, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o644))
	return sum
}

func TestDirectoriesNestedWithoutEndAreRefused(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	meta := putRaw(t, r, object.TypeDirmeta, object.EncodeDirmeta(uint32(os.Geteuid()), uint32(os.Getegid()), unix.S_IFDIR|0o755, nil))
	tree := putRaw(t, r, object.TypeDirtree, object.EncodeDirtree(nil, nil))
	for range maxDirDepth + 10 {
		tree = putRaw(t, r, object.TypeDirtree, object.EncodeDirtree(nil, []object.DirEntry{{Name: "d", Tree: tree, Meta: meta}}))
	}
	c := putRaw(t, r, object.TypeCommit, (&object.Commit{Tree: tree, Meta: meta}).Encode())
	ctx := context.Background()
	if _, err := r.ReadTree(ctx, c); !errors.Is(err, errTooDeep) {
		t.Errorf("ReadTree: %v, want it to be refused", err)
	}
	root := must[*os.Root](t)(os.OpenRoot(filepath.Dir(path)))
	defer root.Close()
	if err := r.Checkout(ctx, c, root, "out", CheckoutOptions{}); !errors.Is(err, errTooDeep) && !errors.Is(err, unix.EMFILE) {
		t.Errorf("Checkout: %v, want it to be refused", err)
	}
	if err := r.Reachable(ctx, make(ObjectSet), []Checksum{c}, 0); !errors.Is(err, errTooDeep) {
		t.Errorf("Reachable: %v, want it to be refused", err)
	}
}

func TestHostileNamesNeverReachTheFileSystem(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	base := filepath.Dir(path)
	meta := putRaw(t, r, object.TypeDirmeta, object.EncodeDirmeta(0, 0, unix.S_IFDIR|0o755, nil))
	empty := putRaw(t, r, object.TypeDirtree, object.EncodeDirtree(nil, nil))
	root := must[*os.Root](t)(os.OpenRoot(base))
	defer root.Close()
	for _, name := range []string{"..", "../out", "a/b", "/abs", ".", ""} {
		tree := putRaw(t, r, object.TypeDirtree, object.EncodeDirtree(nil, []object.DirEntry{{Name: name, Tree: empty, Meta: meta}}))
		c := putRaw(t, r, object.TypeCommit, (&object.Commit{Tree: tree, Meta: meta}).Encode())
		err := r.Checkout(context.Background(), c, root, "checkout", CheckoutOptions{})
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("directory named %q: %v, want an error of kind Corrupt", name, err)
		}
		if got := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(base, "checkout"))); len(got) > 0 {
			t.Errorf("directory named %q left %v", name, got)
		}
		check(t, os.RemoveAll(filepath.Join(base, "checkout")))
	}
	commit := must[*object.Commit](t)(r.ReadCommit(commitRef(t, r, "r", "x")))
	files, _, err := r.ReadDirtree(commit.Tree)
	check(t, err)
	tree := putRaw(t, r, object.TypeDirtree, object.EncodeDirtree([]object.FileEntry{{Name: whiteoutPrefix + "..", Checksum: files[0].Checksum}}, nil))
	c := putRaw(t, r, object.TypeCommit, (&object.Commit{Tree: tree, Meta: meta}).Encode())
	var ne *object.NameError
	if err := r.Checkout(context.Background(), c, root, "white", CheckoutOptions{}); !errors.As(err, &ne) {
		t.Errorf("whiteout of \"..\": %v, want a NameError", err)
	}
}

func TestMetadataTooLargeIsNotRead(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	n := object.Name{Checksum: Checksum{1}, Type: object.TypeDirtree}
	p := filepath.Join(path, "objects", n.Path(false))
	check(t, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, nil, 0o644), os.Truncate(p, object.MaxMetadata+1))
	if _, err := r.ReadMeta(n); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("a dirtree of more than 128 MiB: %v, want it to be refused", err)
	}
}

func TestArchiveContentMustHaveItsSize(t *testing.T) {
	for name, claim := range map[string]int64{"more": -1, "less": 1} {
		r, path := emptyRepo(t, Archive)
		c := commitRef(t, r, "r", "some content")
		commit := must[*object.Commit](t)(r.ReadCommit(c))
		files, _, err := r.ReadDirtree(commit.Tree)
		check(t, err)
		p := filepath.Join(path, "objects", object.Name{Checksum: files[0].Checksum, Type: object.TypeFile}.Path(true))
		data := must[[]byte](t)(os.ReadFile(p))
		data[15] = byte(int64(data[15]) + claim)
		check(t, os.WriteFile(p, data, 0o644))
		res := must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{}))
		if len(res.Damage) != 1 || res.Damage[0].Kind != Malformed {
			t.Errorf("archive object with %s content than its header says: %+v, want it malformed", name, res.Damage)
		}
	}
}

// A file system that fills up is an error of kind NoSpace, and what was staged
// is given back.
func TestTransactionOnAFullDisk(t *testing.T) {
	lab.NeedRoot(t)
	mnt := t.TempDir()
	if err := unix.Mount("kedge-test", mnt, "tmpfs", 0, "size=4m"); err != nil {
		lab.Skip(t, "cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(mnt, 0)) })
	r := must[*Repo](t)(Create(filepath.Join(mnt, "repo"), Bare))
	defer r.Close()
	r.config = r.config.Set("core", "min-free-space-percent", "0")
	txn := must[*Txn](t)(r.Txn(context.Background()))
	var err error
	for i := 0; i < 64 && err == nil; i++ {
		_, err = txn.PutFile(regular(strings.Repeat(string(rune('a'+i)), 400<<10)))
	}
	if fault.KindOf(err) != fault.NoSpace {
		t.Errorf("a full file system: %v, want an error of kind NoSpace", err)
	}
	check(t, txn.Abort())
	if left := tmpNames(t, r.Path()); len(left) > 0 {
		t.Errorf("after a full disk tmp/ has %v", left)
	}
}

// A repository as ostree-chunked layers are unpacked to: xattrs apart from the
// files. libostree refuses to write one, so it is made of a bare one.
func TestReadsBareSplitXattrs(t *testing.T) {
	lab.Need(t, "ostree")
	dir := sampleTree(t)
	r, path := emptyRepo(t, Bare)
	sum := commitDir(t, withoutSync(t, r), dir, "ref", DirOptions{})
	want := must[*fstree.Tree](t)(r.ReadTree(context.Background(), sum))
	check(t, r.Objects(context.Background(), func(n object.Name) error {
		if n.Type != object.TypeFile {
			return nil
		}
		m, rc, err := r.OpenFile(n.Checksum)
		check(t, err, rc.Close())
		p := filepath.Join(path, "objects", n.Path(false))
		for _, a := range m.Xattrs {
			check(t, unix.Lremovexattr(p, a.Name))
		}
		data := object.EncodeXattrs(new(fstree.Tree).Intern(m.Xattrs))
		xattrs := filepath.Join(path, "objects", object.Name{Checksum: object.Sum(data), Type: object.TypeFileXattrs}.Path(false))
		link := filepath.Join(path, "objects", object.Name{Checksum: n.Checksum, Type: object.TypeFileXattrsLink}.Path(false))
		check(t, os.MkdirAll(filepath.Dir(xattrs), 0o755))
		if _, err := os.Stat(xattrs); err != nil {
			check(t, os.WriteFile(xattrs, data, 0o644))
		}
		check(t, os.Link(xattrs, link))
		return nil
	}))
	config := filepath.Join(path, "config")
	text := string(must[[]byte](t)(os.ReadFile(config)))
	check(t, os.WriteFile(config, []byte(strings.Replace(text, "mode=bare", "mode=bare-split-xattrs", 1)), 0o644))
	run(t, "ostree", "fsck", "--repo="+path)
	split := must[*Repo](t)(Open(path))
	defer split.Close()
	if res := must[*FsckResult](t)(split.Fsck(context.Background(), FsckOptions{})); len(res.Damage) > 0 {
		t.Errorf("damage: %+v", res.Damage)
	}
	got := must[*fstree.Tree](t)(split.ReadTree(context.Background(), sum))
	check(t, got.Walk(func(p string, n *fstree.Inode) error {
		w := want.Lookup(p)
		if w == nil || w.Mode != n.Mode || w.UID != n.UID || len(w.Xattrs.All()) != len(n.Xattrs.All()) || w.Target != n.Target {
			t.Errorf("%s: %+v, want %+v", p, n, w)
		}
		return nil
	}))
}
