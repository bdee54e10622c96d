package composefs

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// diskTree makes the same small tree on disk and in memory, and returns the
// bytes of its files by their path.
func diskTree(t *testing.T, dir string) (*fstree.Tree, map[string][]byte) {
	t.Helper()
	tree := fstree.New()
	bodies := make(map[string][]byte)
	rng := rand.New(rand.NewPCG(1, 2))
	fail := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	meta := func(path string, n *fstree.Inode) {
		name := filepath.Join(dir, path)
		n.UID, n.GID = pick(&generator{Rand: rng}, 0, 0, uint32(1000), 70000), uint32(rng.IntN(3))
		xattrs := []fstree.Xattr{{Name: xattrSELinux, Value: fmt.Sprintf("system_u:object_r:t%d_t:s0\x00", rng.IntN(3))}}
		if rng.IntN(4) == 0 && !n.IsSymlink() {
			xattrs = append(xattrs, fstree.Xattr{Name: "user.note", Value: strings.Repeat("n", 1+rng.IntN(300))})
		}
		for _, x := range xattrs {
			fail(unix.Lsetxattr(name, x.Name, []byte(x.Value), 0))
		}
		n.Xattrs = tree.Intern(xattrs)
		fail(os.Lchown(name, int(n.UID), int(n.GID)))
		if !n.IsSymlink() {
			fail(unix.Chmod(name, n.Mode&^unix.S_IFMT)) // chown takes setuid off
		}
	}
	var fill func(path string, d *fstree.Inode, depth int)
	fill = func(path string, d *fstree.Inode, depth int) {
		for i := range 3 + rng.IntN(9) {
			name := fmt.Sprintf("%c%d", 'a'+rune(rng.IntN(26)), i)
			p := filepath.Join(path, name)
			full := filepath.Join(dir, p)
			var n *fstree.Inode
			switch k := rng.IntN(8); {
			case k < 2 && depth < 4:
				n = fstree.NewDir(0o755 &^ uint32(rng.IntN(64)))
				fail(os.Mkdir(full, 0o700))
				fill(p, n, depth+1)
			case k == 2:
				n = &fstree.Inode{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("../x", 1+rng.IntN(20))}
				fail(os.Symlink(n.Target, full))
			default:
				body := make([]byte, pick(&generator{Rand: rng}, 0, 1, 64, 65, 5000, 600_000))
				copy(body, fmt.Sprint(i, path))
				n = &fstree.Inode{Mode: unix.S_IFREG | pick[uint32](&generator{Rand: rng}, 0o644, 0o755, 0o4755, 0o600), Size: int64(len(body)), MtimeSec: 5}
				fail(os.WriteFile(full, body, 0o600))
				bodies[p] = body
			}
			meta(p, n)
			d.Set(name, n)
		}
	}
	for _, top := range []string{"usr", "opt"} {
		d := fstree.NewDir(0o755)
		fail(os.Mkdir(filepath.Join(dir, top), 0o755))
		fill(top, d, 0)
		meta(top, d)
		tree.Root.Set(top, d)
	}
	meta("", tree.Root)
	return tree, bodies
}

// TestFromOSTreeOracle compares the image and its digest with those that
// libostree makes of the same commit.
func TestFromOSTreeOracle(t *testing.T) {
	lab.NeedRoot(t)
	work := t.TempDir()
	source := filepath.Join(work, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, bodies := diskTree(t, source)
	ostree := func(args ...string) string {
		t.Helper()
		cmd := oracle(t, "ostree", append(args, "--repo="+filepath.Join(work, "repo"))...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("ostree %v: %v: %s", args, err, stderr.String())
		}
		return string(out)
	}
	ostree("init", "--mode=bare")
	ostree("config", "set", "core.fsync", "false")
	ostree("commit", "--branch=b", "--tree=dir="+source, "--generate-composefs-metadata")
	checksums := make(map[string][32]byte)
	for _, m := range regexp.MustCompile(`(?m)^-.* ([0-9a-f]{64}) /(.*)$`).FindAllStringSubmatch(ostree("ls", "-R", "-C", "b"), -1) {
		sum, _ := hex.DecodeString(m[1])
		checksums[m[2]] = [32]byte(sum)
	}
	image := func(withVerity bool) ([]byte, ImageInfo) {
		t.Helper()
		cfs, err := FromOSTree(tree, func(path string, _ *fstree.Inode) (OSTreeFile, error) {
			sum, ok := checksums[path]
			if !ok {
				return OSTreeFile{}, fmt.Errorf("no checksum")
			}
			f := OSTreeFile{Checksum: sum}
			if withVerity {
				f.Verity = digestOf(SHA256, bodies[path])
			}
			return f, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		info, err := WriteImage(&b, cfs, Default)
		if err != nil {
			t.Fatal(err)
		}
		wantView(t, b.Bytes(), ViewOSTree(objectsOf(tree, checksums), func(n *fstree.Inode) (Digest, error) {
			for path, sum := range checksums {
				if sum == n.Content && withVerity {
					return digestOf(SHA256, bodies[path]), nil
				}
			}
			return "", nil
		}), Default)
		return b.Bytes(), info
	}
	for _, tc := range []struct {
		option string
		verity bool
	}{{"--composefs", true}, {"--composefs-noverity", false}} {
		name := filepath.Join(work, tc.option)
		ostree("checkout", tc.option, "b", name)
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := image(tc.verity); !bytes.Equal(got, want) {
			t.Errorf("%s: %s", tc.option, firstDifference(got, want))
		}
	}
	_, info := image(true)
	digest := regexp.MustCompile(`0x|, |byte |[\[\]\s]`).ReplaceAllString(ostree("show", "--print-metadata-key=ostree.composefs.digest.v0", "b"), "")
	if info.Digest.String() != digest {
		t.Errorf("the image has digest %s, ostree.composefs.digest.v0 is %s", info.Digest, digest)
	}
}

// objectsOf returns a tree whose contents are the checksums of its file objects,
// as the tree of a commit has it.
func objectsOf(t *fstree.Tree, checksums map[string][32]byte) *fstree.Tree {
	out := &fstree.Tree{}
	at := make(map[string]*fstree.Inode)
	_ = t.Walk(func(path string, n *fstree.Inode) error {
		made := n.WithMeta(func(c *fstree.Inode) {
			if n.IsRegular() {
				c.Content = checksums[path]
			}
		})
		if at[path] = made; path == "" {
			out.Root = made
			return nil
		}
		i := strings.LastIndexByte(path, '/')
		at[path[:max(i, 0)]].Set(path[i+1:], made)
		return nil
	})
	return out
}

// wantView expects the image of a view to be the same as that of the tree.
func wantView(t *testing.T, want []byte, src Source, o ImageOptions) {
	t.Helper()
	var b bytes.Buffer
	if _, err := WriteImage(&b, src, o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("written without a tree of its own: %s", firstDifference(b.Bytes(), want))
	}
}

// TestView writes random trees as they are, and by way of a Tree.
func TestView(t *testing.T) {
	for seed := range uint64(200) {
		c := &plainer{places: make(map[fstree.Digest]place), links: make(map[*Inode]*fstree.Inode)}
		from := randomTree(seed)
		tree := fstree.New()
		tree.Root = c.inode(from.Root)
		c.fill(tree.Root, from.Root)
		tree.Freeze()
		file := func(_ string, n *fstree.Inode) (File, error) {
			if p := c.places[n.Content]; p.inline != "" {
				return File{Content: p.inline}, nil
			}
			return File{Digest: testDigest(SHA512, n.Content[0]), stored: true}, nil
		}
		whole, err := FromTree(tree, file)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range []ImageOptions{Default, V1} {
			var want bytes.Buffer
			if _, err := WriteImage(&want, whole, o); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			wantView(t, want.Bytes(), View(tree, file), o)
		}
	}
}

func TestFromTree(t *testing.T) {
	in := fstree.New()
	file := &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: 3, MtimeSec: 7, Linked: true}
	in.Root.Set("b", file)
	in.Root.Set("a", fstree.NewDir(0o700))
	in.Root.Lookup("a").Set("first", file)
	in.Root.Set("empty", &fstree.Inode{Mode: unix.S_IFREG | 0o600})
	asked := 0
	out, err := FromTree(in, func(path string, _ *fstree.Inode) (File, error) {
		asked++
		if path != "a/first" {
			t.Errorf("asked for %s", path)
		}
		return Object(Digest(strings.Repeat("\xab", 32))), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if asked != 1 {
		t.Errorf("asked %d times for one inode", asked)
	}
	hex := strings.Repeat("ab", 32)
	const line = " 3 %s100644 2 0 0 0 7.0 %s - " // its own entry and the hard link
	want := "/ 0 40755 1 0 0 0 0.0 - - -\n" +
		"/a 0 40700 1 0 0 0 0.0 - - -\n" +
		"/a/first" + fmt.Sprintf(line, "", hex[:2]+"/"+hex[2:]) + hex + "\n" +
		"/b" + fmt.Sprintf(line, "@", "/a/first") + hex + "\n" +
		"/empty 0 100600 1 0 0 0 0.0 - - -\n"
	if got := dumpOf(t, out); got != want {
		t.Errorf("the tree is\n%swant\n%s", got, want)
	}
}

func TestFromOSTreeRefusesDevices(t *testing.T) {
	in := fstree.New()
	in.Root.Set("null", &fstree.Inode{Mode: unix.S_IFCHR | 0o666, Rdev: 259})
	if _, err := FromOSTree(in, nil); err == nil || !strings.Contains(err.Error(), "null") {
		t.Errorf("a device: %v, want an error that names it", err)
	}
}
