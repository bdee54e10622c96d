package ostree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func objectList(t testing.TB, r *Repo) []string {
	t.Helper()
	var out []string
	check(t, r.Objects(context.Background(), func(n object.Name) error {
		out = append(out, n.String())
		return nil
	}))
	slices.Sort(out)
	return out
}

func TestPruneKeepsWhatRefsAndCallersNeed(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	kept, deployed, gone := commitRef(t, r, "kept", "kept"), commitRef(t, r, "deployed", "deployed"), commitRef(t, r, "gone", "gone")
	txn := must[*Txn](t)(r.Txn(context.Background()))
	check(t, txn.SetRef("deployed", Checksum{}), txn.SetRef("gone", Checksum{}),
		txn.PutCommitMeta(kept, nil), txn.PutCommitMeta(gone, nil), txn.Commit())
	before := objectList(t, r)
	dry := must[PruneResult](t)(r.Prune(context.Background(), PruneOptions{Keep: []Checksum{deployed}, DryRun: true}))
	if got := objectList(t, r); !slices.Equal(got, before) {
		t.Error("a dry run deleted objects")
	}
	res := must[PruneResult](t)(r.Prune(context.Background(), PruneOptions{Keep: []Checksum{deployed}}))
	if res != dry || res.Pruned != 4 || res.Total != len(before) || res.Freed == 0 {
		t.Errorf("pruned %+v, dry run said %+v; want 4 of %d objects", res, dry, len(before))
	}
	for c, want := range map[Checksum]bool{kept: true, deployed: true, gone: false} {
		if got := must[bool](t)(r.HasObject(object.Name{Checksum: c, Type: object.TypeCommit})); got != want {
			t.Errorf("commit %s is there: %v, want %v", c, got, want)
		}
	}
	if d := must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{})).Damage; len(d) > 0 {
		t.Errorf("damage after prune: %v", d)
	}
}

// Prune and ostree prune leave the same objects, with parents and without.
func TestPrunesLikeOstree(t *testing.T) {
	lab.Need(t, "ostree")
	for _, depth := range []string{"0", "1", "-1"} {
		r, path := emptyRepo(t, BareUser)
		src := t.TempDir()
		for _, v := range []string{"one", "two", "three"} {
			check(t, os.WriteFile(filepath.Join(src, "f"), []byte(v), 0o644))
			run(t, "ostree", "commit", "--repo="+path, "-b", "os", "--tree=dir="+src)
		}
		copied := filepath.Join(t.TempDir(), "copy")
		run(t, "cp", "-a", path, copied)
		run(t, "ostree", "prune", "--repo="+copied, "--refs-only", "--depth="+depth)
		theirs := must[*Repo](t)(Open(copied))
		defer theirs.Close()
		opts := PruneOptions{Depth: map[string]int{"0": 0, "1": 1, "-1": -1}[depth]}
		must[PruneResult](t)(r.Prune(context.Background(), opts))
		if got, want := objectList(t, r), objectList(t, theirs); !slices.Equal(got, want) {
			t.Errorf("depth %s: objects left %v, ostree leaves %v", depth, got, want)
		}
	}
}

func TestPruneDeletesNothingWhereSomethingIsMissing(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	c := commitRef(t, r, "broken", "x")
	commitRef(t, r, "other", "y")
	commit := must[*object.Commit](t)(r.ReadCommit(c))
	check(t, os.Remove(filepath.Join(path, "objects", object.Name{Checksum: commit.Tree, Type: object.TypeDirtree}.Path(false))))
	before := objectList(t, r)
	if _, err := r.Prune(context.Background(), PruneOptions{}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("prune of an incomplete repository: %v, want an error of kind Corrupt", err)
	}
	if got := objectList(t, r); !slices.Equal(got, before) {
		t.Error("prune of an incomplete repository deleted objects")
	}
}

func TestFsckFindsEveryDamage(t *testing.T) {
	lab.NeedRoot(t)
	dir := sampleTree(t)
	for _, mode := range []Mode{Bare, BareUser, Archive} {
		t.Run(mode.String(), func(t *testing.T) {
			r, path := emptyRepo(t, mode)
			sum := commitDir(t, withoutSync(t, r), dir, "ref", DirOptions{})
			checked := 0
			res := must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{Progress: func(done, total int) { checked = max(checked, done) }}))
			if len(res.Damage) > 0 || res.Objects == 0 || checked != res.Objects {
				t.Fatalf("fsck of a sound repository: %+v, progress up to %d", res, checked)
			}
			commit := must[*object.Commit](t)(r.ReadCommit(sum))
			usr := must[Checksum](t)(lookupDir(r, commit.Tree, "usr"))
			lib := must[Checksum](t)(lookupDir(r, usr, "lib"))
			files, _, err := r.ReadDirtree(lib)
			check(t, err)
			want := map[object.Name]DamageKind{}
			for i, kind := range []DamageKind{Corrupted, Missing} {
				n := object.Name{Checksum: files[i].Checksum, Type: object.TypeFile}
				p := filepath.Join(path, "objects", n.Path(mode == Archive))
				want[n] = kind
				if kind == Missing {
					check(t, os.Remove(p))
					continue
				}
				data := must[[]byte](t)(os.ReadFile(p))
				data[len(data)-20] ^= 1
				f := must[*os.File](t)(os.OpenFile(p, os.O_WRONLY, 0))
				_, err := f.WriteAt(data[len(data)-20:len(data)-19], int64(len(data)-20))
				check(t, err, f.Close())
			}
			n := object.Name{Checksum: commit.Meta, Type: object.TypeDirmeta}
			check(t, os.WriteFile(filepath.Join(path, "objects", n.Path(false)), []byte("garbage"), 0o644))
			want[n] = Corrupted
			res = must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{Mark: true}))
			for _, d := range res.Damage {
				kind, ok := want[d.Object]
				if mode == Archive && d.Kind == Malformed && kind == Corrupted {
					kind = Malformed // a flipped bit may break the deflate stream itself
				}
				if !ok || kind != d.Kind || !slices.Equal(d.Commits, []Checksum{sum}) {
					t.Errorf("damage %s %s of %v (%v), want %s of %s", d.Object, d.Kind, d.Commits, d.Err, kind, sum)
				}
			}
			if len(res.Damage) != len(want) {
				t.Errorf("%d objects are damaged, want %d: %v", len(res.Damage), len(want), res.Damage)
			}
			if !must[bool](t)(r.IsPartial(sum)) {
				t.Error("the damaged commit is not marked")
			}
			res = must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{}))
			if !slices.Equal(res.Partial, []Checksum{sum}) {
				t.Errorf("partial commits %v, want %s", res.Partial, sum)
			}
		})
	}
}

func lookupDir(r *Repo, dirtree Checksum, name string) (Checksum, error) {
	_, dirs, err := r.ReadDirtree(dirtree)
	for _, d := range dirs {
		if d.Name == name {
			return d.Tree, nil
		}
	}
	return Checksum{}, errors.Join(err, os.ErrNotExist)
}

func TestFsckFindsARefToNothing(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	c := commitRef(t, r, "a/ref", "x")
	check(t, os.Remove(filepath.Join(path, "objects", object.Name{Checksum: c, Type: object.TypeCommit}.Path(false))))
	res := must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{}))
	if len(res.Damage) != 1 || res.Damage[0].Kind != Missing || !slices.Equal(res.Damage[0].Refs, []string{"a/ref"}) {
		t.Errorf("damage %+v, want the missing commit of a/ref", res.Damage)
	}
}

// A repository that somebody prepared must not lead out of itself.
func TestSymlinksInTheRepositoryAreNotFollowed(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	c := commitRef(t, r, "r", "x")
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, []byte(strings.Repeat("a", 64)), 0o644))
	for _, n := range []object.Name{{Checksum: c, Type: object.TypeCommit}, {Checksum: must[*object.Commit](t)(r.ReadCommit(c)).Tree, Type: object.TypeDirtree}} {
		p := filepath.Join(path, "objects", n.Path(false))
		check(t, os.Remove(p), os.Symlink(secret, p))
		if _, err := r.ReadMeta(n); !errors.Is(err, unix.ELOOP) {
			t.Errorf("object that is a symlink: %v, want ELOOP", err)
		}
	}
	check(t, os.Symlink(secret, filepath.Join(path, "refs/heads/out")))
	if c, err := r.ResolveRev("out"); err == nil {
		t.Errorf("a ref that leads out of the repository resolves to %s", c)
	}
	check(t, unix.Mkfifo(filepath.Join(path, "refs/heads/fifo"), 0o644))
	if _, err := r.Refs(""); err == nil {
		t.Error("a ref that leads out of the repository is listed")
	}
}

func TestConfig(t *testing.T) {
	in := "# a comment\n[core]\nrepo_version=1\nmode = bare\nforeign=kept\n\n[remote \"x\"]\nurl=http://a\\sb\n"
	c := must[*Config](t)(ParseConfig([]byte(in)))
	if string(c.Encode()) != in {
		t.Errorf("configuration came back as %q", c.Encode())
	}
	if v := c.Text("remote \"x\"", "url", ""); v != "http://a b" {
		t.Errorf("url %q", v)
	}
	got := string(c.Set("core", "mode", "archive-z2").Set("core", "new", "1").Set("sysroot", "readonly", "true").Encode())
	want := "# a comment\n[core]\nrepo_version=1\nmode=archive-z2\nforeign=kept\nnew=1\n\n[remote \"x\"]\nurl=http://a\\sb\n\n[sysroot]\nreadonly=true\n"
	if got != want {
		t.Errorf("after Set:\n%s\nwant\n%s", got, want)
	}
	for _, bad := range []string{"key=before group\n", "[core]\nno equals sign\n", "[core]\n=x\n", "[a]\n\x00=1\n"} {
		if _, err := ParseConfig([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for in, want := range map[string]uint64{
		"[core]\n": 30, "[core]\nmin-free-space-percent=5\n": 50, "[core]\nmin-free-space-percent=0\n": 0,
		"[core]\nmin-free-space-size=2MB\n": 2 << 20, "[core]\nmin-free-space-size=0MB\nmin-free-space-percent=7\n": 70,
	} {
		if got, err := must[*Config](t)(ParseConfig([]byte(in))).minFree(1000); err != nil || got != want {
			t.Errorf("%q: %d bytes must stay free (%v), want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"min-free-space-percent=100", "min-free-space-percent=x", "min-free-space-size=5", "min-free-space-size=5KB"} {
		if _, err := must[*Config](t)(ParseConfig([]byte("[core]\n" + in + "\n"))).minFree(1000); err == nil {
			t.Errorf("%s was accepted", in)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("[core]\nmode=bare\n"))
	f.Add([]byte("# c\n\n[a]\nb = c\n[a]\nb=d"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		again, err := ParseConfig(c.Set("core", "mode", "bare").Encode())
		if err != nil {
			t.Fatalf("configuration with a key set cannot be read: %v", err)
		}
		if v, ok := again.Get("core", "mode"); !ok || v != "bare" {
			t.Errorf("a key that was set reads %q", v)
		}
	})
}
