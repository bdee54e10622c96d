package fstree

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func file(content string) *Inode {
	var d Digest
	copy(d[:], content)
	return &Inode{Mode: unix.S_IFREG | 0o644, Size: int64(len(content)), Content: d}
}

func symlink(target string) *Inode {
	return &Inode{Mode: unix.S_IFLNK | 0o777, Target: target}
}

func list(t *Tree) []string {
	var out []string
	_ = t.Walk(func(path string, n *Inode) error {
		switch {
		case n.IsDir():
			out = append(out, fmt.Sprintf("%s/ %o", path, n.Mode&0o7777))
		case n.IsSymlink():
			out = append(out, path+" -> "+n.Target)
		default:
			out = append(out, path+" = "+strings.TrimRight(string(n.Content[:]), "\x00"))
		}
		return nil
	})
	return out
}

func add(path string, n *Inode) Entry { return Entry{Path: path, Inode: n} }

func TestApply(t *testing.T) {
	lower := []Entry{
		add("etc", NewDir(0o755)), add("etc/a", file("a1")), add("etc/b", file("b1")),
		add("lib", symlink("usr/lib")), add("usr", NewDir(0o755)), add("usr/lib", NewDir(0o755)), add("usr/lib/x", file("x1")),
	}
	for _, tc := range []struct {
		name  string
		upper []Entry
		want  []string
		fails string
	}{
		{
			name: "a whiteout hides the lower file and not the layer's own, wherever it stands",
			upper: []Entry{
				add("etc/a", file("a2")), {Path: "etc/a", Kind: Whiteout}, {Path: "etc/b", Kind: Whiteout},
			},
			want: []string{"/ 755", "etc/ 755", "etc/a = a2", "lib -> usr/lib", "usr/ 755", "usr/lib/ 755", "usr/lib/x = x1"},
		},
		{
			name:  "an opaque directory keeps only what the layer adds",
			upper: []Entry{add("etc/c", file("c")), {Path: "etc", Kind: Opaque}},
			want:  []string{"/ 755", "etc/ 755", "etc/c = c", "lib -> usr/lib", "usr/ 755", "usr/lib/ 755", "usr/lib/x = x1"},
		},
		{
			name:  "a directory over a directory changes its metadata and keeps its children",
			upper: []Entry{add("etc", NewDir(0o700)), add("", NewDir(0o711))},
			want:  []string{"/ 711", "etc/ 700", "etc/a = a1", "etc/b = b1", "lib -> usr/lib", "usr/ 755", "usr/lib/ 755", "usr/lib/x = x1"},
		},
		{
			name:  "a file replaces a directory whole, and a directory a file",
			upper: []Entry{add("usr", file("u")), add("etc/a", NewDir(0o750)), add("etc/a/z", file("z"))},
			want:  []string{"/ 755", "etc/ 755", "etc/a/ 750", "etc/a/z = z", "etc/b = b1", "lib -> usr/lib", "usr = u"},
		},
		{
			name:  "the last of duplicate entries counts",
			upper: []Entry{add("etc/a", file("2")), add("etc/a", file("3"))},
			want:  []string{"/ 755", "etc/ 755", "etc/a = 3", "etc/b = b1", "lib -> usr/lib", "usr/ 755", "usr/lib/ 755", "usr/lib/x = x1"},
		},
		{
			name:  "missing parents appear, and a lower symlink as parent is replaced as overlayfs shows it",
			upper: []Entry{add("a/b/c", file("c")), add("lib/y", file("y"))},
			want: []string{
				"/ 755", "a/ 755", "a/b/ 755", "a/b/c = c", "etc/ 755", "etc/a = a1", "etc/b = b1",
				"lib/ 755", "lib/y = y", "usr/ 755", "usr/lib/ 755", "usr/lib/x = x1",
			},
		},
		{
			name:  "hard links reach lower layers",
			upper: []Entry{{Path: "etc/l", LinkTo: "usr/lib/x", Kind: Hardlink}},
			want:  []string{"/ 755", "etc/ 755", "etc/a = a1", "etc/b = b1", "etc/l = x1", "lib -> usr/lib", "usr/ 755", "usr/lib/ 755", "usr/lib/x = x1"},
		},
		{name: "hard link to nothing", upper: []Entry{{Path: "l", LinkTo: "nothing", Kind: Hardlink}}, fails: "does not exist"},
		{name: "hard link to a directory", upper: []Entry{{Path: "l", LinkTo: "etc", Kind: Hardlink}}, fails: "hard link to the directory"},
		{name: "through the layer's own symlink", upper: []Entry{add("s", symlink("/etc")), add("s/passwd", file("evil"))}, fails: "a symlink of the same layer"},
		{name: "the root as a file", upper: []Entry{add("", file("x"))}, fails: "must be a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree := New()
			if err := tree.Apply(NewLayer(lower...)); err != nil {
				t.Fatal(err)
			}
			err := tree.Apply(NewLayer(tc.upper...))
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("got error %v, want one that says %q", err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tree.Freeze()
			if d := cmp.Diff(tc.want, list(tree)); d != "" {
				t.Errorf("merged tree (-want +got):\n%s", d)
			}
		})
	}
}

func TestApplyLeavesTheLayerAsItWas(t *testing.T) {
	l := NewLayer(add("d", NewDir(0o755)), add("d/f", file("1")), Entry{Path: "d/g", LinkTo: "d/f", Kind: Hardlink})
	for range 2 {
		tree := New()
		if err := tree.Apply(l); err != nil {
			t.Fatal(err)
		}
		if !tree.Lookup("d/f").Linked {
			t.Error("a file with two names is marked Linked")
		}
	}
	for e := range l.All() {
		if e.Inode != nil && (e.Inode.Len() != 0 || e.Inode.Linked) {
			t.Errorf("Apply changed %s of the layer it merged", e.Path)
		}
	}
}

// A wide directory in any order of insertions and removals lists the same
// names in order as a map would.
func TestDirectoryAgainstMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dir, want := NewDir(0o755), map[string]*Inode{}
	for i := range 20000 {
		name := fmt.Sprintf("%03d", rng.IntN(500))
		switch rng.IntN(4) {
		case 0:
			dir.Remove(name)
			delete(want, name)
		case 1:
			if dir.Lookup(name) != want[name] {
				t.Fatalf("step %d: look-up of %s differs from the map", i, name)
			}
			if rng.IntN(50) == 0 {
				dir.Entries()
			}
		default:
			n := file(name)
			dir.Set(name, n)
			want[name] = n
		}
	}
	if len(dir.Entries()) != len(want) {
		t.Fatalf("got %d names, want %d", len(dir.Entries()), len(want))
	}
	for i, e := range dir.Entries() {
		if want[e.Name] != e.Inode {
			t.Errorf("%s: not the inode set last", e.Name)
		}
		if i > 0 && dir.Entries()[i-1].Name >= e.Name {
			t.Errorf("%s is out of order", e.Name)
		}
	}
}

func TestResolve(t *testing.T) {
	tree := New()
	if err := tree.Apply(NewLayer(
		add("usr/lib/os-release", file("os")), add("etc/os-release", symlink("../usr/lib/os-release")),
		add("lib", symlink("usr/lib")), add("up", symlink("../../../usr")), add("abs", symlink("/lib/os-release")),
		add("loop", symlink("loop")), add("dangling", symlink("nowhere")),
	)); err != nil {
		t.Fatal(err)
	}
	want := tree.Lookup("usr/lib/os-release")
	for _, p := range []string{"etc/os-release", "/lib/os-release", "up/lib/os-release", "abs", "lib/../lib/./os-release"} {
		if tree.Resolve(p) != want {
			t.Errorf("%s does not resolve to usr/lib/os-release", p)
		}
	}
	for _, p := range []string{"loop", "dangling", "usr/lib/os-release/x", "none"} {
		if n := tree.Resolve(p); n != nil {
			t.Errorf("%s resolves to %v, want nothing", p, n)
		}
	}
}

func TestCloneIsIndependent(t *testing.T) {
	tree := New()
	for i := range 100 {
		tree.Root.Set(fmt.Sprint(i), file("x"))
	}
	tree.Root.Set("d", NewDir(0o700))
	before := list(tree)
	c := tree.Clone()
	if d := cmp.Diff(before, list(c)); d != "" {
		t.Fatalf("clone differs:\n%s", d)
	}
	c.Lookup("d").Set("new", file("n"))
	c.Root.Remove("5")
	c.Root.Set("6", file("other"))
	if d := cmp.Diff(before, list(tree)); d != "" {
		t.Errorf("a change of the clone reached the original:\n%s", d)
	}
}

func TestDiff(t *testing.T) {
	build := func(entries ...Entry) *Tree {
		tree := New()
		if err := tree.Apply(NewLayer(entries...)); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	later := file("same")
	later.MtimeSec = 5
	a := build(add("d/gone", file("1")), add("f", file("1")), add("same", file("same")), add("t", file("1")))
	b := build(add("e/new", file("1")), add("f", file("2")), add("same", later), add("t", symlink("x")))
	got := func(fields Field) []string {
		var out []string
		_ = Diff(a, b, fields, func(c Change) error {
			switch {
			case c.A == nil:
				out = append(out, "+"+c.Path)
			case c.B == nil:
				out = append(out, "-"+c.Path)
			default:
				out = append(out, c.Path+" "+c.Fields.String())
			}
			return nil
		})
		return out
	}
	want := []string{"-d", "-d/gone", "+e", "+e/new", "f content", "t type"}
	if d := cmp.Diff(want, got(AllFields&^FieldMtime)); d != "" {
		t.Errorf("without times (-want +got):\n%s", d)
	}
	want = []string{"-d", "-d/gone", "+e", "+e/new", "f content", "same mtime", "t type"}
	if d := cmp.Diff(want, got(AllFields)); d != "" {
		t.Errorf("with times (-want +got):\n%s", d)
	}
}

func TestInternGivesOnePointerForEqualSets(t *testing.T) {
	tree := New()
	a := tree.Intern([]Xattr{{"user.b", "2"}, {"user.a", "1"}})
	b := tree.Intern([]Xattr{{"user.a", "0"}, {"user.b", "2"}, {"user.a", "1"}})
	if a != b {
		t.Errorf("equal sets have two pointers: %v and %v", a, b)
	}
	if tree.Intern(nil) != nil || tree.Without(tree.Intern([]Xattr{{"user.a", "1"}}), "user.a") != nil {
		t.Error("the empty set is not nil")
	}
	if c := tree.With(a, "user.a", "9"); c == a {
		t.Error("With changed the set it was given")
	} else if v, _ := c.Get("user.a"); v != "9" {
		t.Errorf("With: user.a is %q, want 9", v)
	}
}

func TestMemoryPerInode(t *testing.T) {
	if s := unsafe.Sizeof(Inode{}); s > 112 {
		t.Errorf("an Inode takes %d bytes, want at most 112", s)
	}
	const dirs, files = 1500, 100
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tree := New()
	names := 0
	for i := range dirs {
		d := NewDir(0o755)
		tree.Root.Set(fmt.Sprintf("dir-%04d", i), d)
		for j := range files {
			name := fmt.Sprintf("file-%03d", (j*37)%files)
			names += len(name)
			d.Set(name, &Inode{Mode: unix.S_IFREG | 0o644, Xattrs: tree.Intern([]Xattr{{"security.selinux", "x"}})})
		}
	}
	tree.Freeze()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc-uint64(names)) / (dirs * files)
	t.Logf("%.0f bytes an inode plus names", per)
	if per > 250 {
		t.Errorf("a tree takes %.0f bytes an inode plus names, want at most 250", per)
	}
	runtime.KeepAlive(tree)
}
