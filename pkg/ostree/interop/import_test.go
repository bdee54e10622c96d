package interop_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// store makes an Import an ocibridge.Store.
type store struct{ *ostree.Import }

func (s store) Begin(diffID string) (ocibridge.LayerWriter, error) { return s.Import.Begin(diffID) }

func openRepo(t testing.TB) *ostree.Repo {
	t.Helper()
	r, err := ostree.Create(filepath.Join(t.TempDir(), "repo"), ostree.Bare)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func openState(t testing.TB) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func newImport(t testing.TB, r *ostree.Repo, opts ostree.ImportOptions) *ostree.Import {
	t.Helper()
	im, err := r.NewImport(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestImportIsAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() ocibridge.Store {
		r := openRepo(t)
		var last *ostree.Import
		t.Cleanup(func() { _ = last.Close() })
		return func() ocibridge.Store {
			if last != nil { // one import at a time: the next process
				if err := last.Close(); err != nil {
					t.Fatal(err)
				}
			}
			last = newImport(t, r, ostree.ImportOptions{})
			return store{last}
		}
	})
}

// encodeLayer makes ocibridge's index of a layer that was read back.
func encodeLayer(l *ostree.ForeignLayer) ([]byte, error) {
	x := &ocibridge.Index{DiffID: l.DiffID, Role: map[ostree.LayerRole]ocibridge.Role{
		ostree.DerivedLayer: ocibridge.Derived, ostree.CommitLayer: ocibridge.OSTreeCommit, ostree.ChunkLayer: ocibridge.OSTreeChunk,
	}[l.Role], Layer: l.Entries}
	if l.Role != ostree.DerivedLayer {
		x.Objects = &ocibridge.ObjectLayer{CommitData: l.Commit, CommitMeta: l.Detached}
		if l.Commit != nil {
			x.Objects.Commit = object.Sum(l.Commit)
		}
		for _, m := range l.Meta {
			x.Objects.Meta = append(x.Objects.Meta, ocibridge.MetaObject(m))
		}
		for _, o := range l.Objects {
			x.Objects.Files = append(x.Objects.Files, ocibridge.FileObject(o))
		}
	}
	return ocibridge.EncodeIndex(x), nil
}

// container describes an imported image to WriteContainer.
func container(t testing.TB, img *ocibridge.Image, im *ostree.Import, ref string) ostree.Container {
	t.Helper()
	c := ostree.Container{ImageRef: ref, ManifestDigest: img.ManifestDigest, Manifest: img.Manifest, Config: img.Config}
	opts := ostree.PrepareOptions{Open: im.OpenContent}
	for _, l := range img.Layers {
		cl := ostree.ContainerLayer{Digest: l.Digest, DiffID: l.DiffID, Entries: l.Layer}
		switch l.Role {
		case ocibridge.OSTreeCommit:
			cl.Role = ostree.CommitLayer
		case ocibridge.OSTreeChunk:
			cl.Role = ostree.ChunkLayer
		default:
			opts.Derived = true
			opts.Layers = append(opts.Layers, l.Layer)
		}
		if l.Objects != nil {
			for _, f := range l.Objects.Files {
				cl.Objects = append(cl.Objects, ostree.LayerObject(f))
			}
		}
		c.Layers = append(c.Layers, cl)
	}
	if b := img.OSTree; b != nil {
		c.Base = &ostree.BaseCommit{Commit: b.CommitBytes, Tree: b.Tree}
		for _, m := range img.Layers[0].Objects.Meta {
			c.Base.Meta = append(c.Base.Meta, ostree.MetaObject(m))
		}
		if b.CommitMeta != nil {
			d, err := object.DecodeDict(b.CommitMeta)
			if err != nil {
				t.Fatal(err)
			}
			c.Base.Detached = d
		}
		opts.Base = b.Tree
	}
	var err error
	if c.Prepared, err = ostree.Prepare(img.Tree, opts); err != nil {
		t.Fatal(err)
	}
	return c
}

// bring imports an image reference into a repository and returns the merge
// commit and how many layers were fetched.
func bring(t testing.TB, r *ostree.Repo, opts ostree.ImportOptions, ref string) (object.Checksum, int) {
	t.Helper()
	im := newImport(t, r, opts)
	defer func() { _ = im.Close() }()
	root := t.TempDir()
	policy := filepath.Join(root, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	reference, err := ocibridge.ParseReference(ref, "")
	if err != nil {
		t.Fatal(err)
	}
	src, err := ocibridge.Open(t.Context(), reference, ocibridge.Options{Root: root, PolicyFile: policy})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	img, err := src.Import(t.Context(), store{im})
	if err != nil {
		t.Fatal(err)
	}
	commit, err := im.WriteContainer(t.Context(), container(t, img, im, ref))
	if err != nil {
		t.Fatal(err)
	}
	if im.Warning != nil {
		t.Error(im.Warning)
	}
	fetched := 0
	for _, l := range img.Layers {
		if l.Fetched {
			fetched++
		}
	}
	return commit, fetched
}

const fixture = "../../ocibridge/testdata/chunked/"

func fixtureRef(t testing.TB, tag string) string {
	t.Helper()
	dir, err := filepath.Abs(fixture + "oci")
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":" + tag
}

func tool(t testing.TB, argv ...string) string {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out, stderr.String())
	}
	return string(out)
}

func lines(t testing.TB, file string) []string {
	t.Helper()
	data, err := os.ReadFile(fixture + file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// TestChunkedImportEqualsOstreeExt holds the commits of ostree-chunked images
// against those that ostree-ext made of them.
func TestChunkedImportEqualsOstreeExt(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	for _, tag := range []string{"chunked", "derived"} {
		t.Run(tag, func(t *testing.T) {
			r := openRepo(t)
			commit, _ := bring(t, r, ostree.ImportOptions{Version: "1"}, fixtureRef(t, tag))
			tool(t, "ostree", "fsck", "--repo="+r.Path())
			got := strings.Split(strings.TrimSpace(tool(t, "ostree", "ls", "-R", "-C", "-X", "--repo="+r.Path(), commit.String())), "\n")
			for _, line := range lines(t, tag+"-merged.ls") {
				if i := slices.Index(got, line); i < 0 {
					t.Errorf("missing in the merge commit: %s", line)
				} else {
					got = slices.Delete(got, i, i+1)
				}
			}
			for _, line := range got {
				t.Errorf("too much in the merge commit: %s", line)
			}
			refs, err := r.Refs(ostree.LayerRefPrefix)
			if err != nil {
				t.Fatal(err)
			}
			chunked := lines(t, "chunked.refs")
			for _, line := range lines(t, tag+".refs") {
				ref, want, _ := strings.Cut(line, " ")
				got := refs[ref]
				// Derived layers carry ostree-ext's import time; only their names are fixed.
				if got.IsZero() || (slices.Contains(chunked, line) && got.String() != want) {
					t.Errorf("ref %s is %s, expected %s", ref, got, want)
				}
				delete(refs, ref)
			}
			for ref := range refs {
				t.Errorf("ref %s: ostree-ext makes no such ref", ref)
			}
		})
	}
}

// TestLayersAreFetchedOnce imports an image over its base.
func TestLayersAreFetchedOnce(t *testing.T) {
	lab.NeedRoot(t)
	r, opts := openRepo(t), ostree.ImportOptions{State: openState(t), Version: "1"}
	first, n := bring(t, r, opts, fixtureRef(t, "chunked"))
	if n != 5 {
		t.Errorf("%d layers fetched into an empty repository, expected 5", n)
	}
	if _, n = bring(t, r, opts, fixtureRef(t, "derived")); n != 1 {
		t.Errorf("%d layers fetched for one derived layer, expected 1", n)
	}
	again, n := bring(t, r, opts, fixtureRef(t, "chunked"))
	if n != 0 || again != first {
		t.Errorf("the same image again: %d layers fetched, commit %s; expected none, %s", n, again, first)
	}
}

// TestReuseOfOstreeExt has real ostree-ext import an image, and our import take
// its layers from the repository.
func TestReuseOfOstreeExt(t *testing.T) {
	lab.Need(t, "ostree", "skopeo")
	lab.NeedRoot(t)
	cli := ostreeExtCLI(t)
	for _, tag := range []string{"chunked", "derived"} {
		t.Run(tag, func(t *testing.T) {
			want, _ := bring(t, openRepo(t), ostree.ImportOptions{Version: "1"}, fixtureRef(t, tag))
			r := openRepo(t)
			tool(t, cli, "container", "image", "pull", "--quiet", r.Path(), "ostree-unverified-image:"+fixtureRef(t, tag))
			before, err := r.Refs(ostree.LayerRefPrefix)
			if err != nil {
				t.Fatal(err)
			}
			got, n := bring(t, r, ostree.ImportOptions{State: openState(t), EncodeLayer: encodeLayer, Version: "1"}, fixtureRef(t, tag))
			if n != 0 {
				t.Errorf("%d layers fetched that ostree-ext had imported", n)
			}
			if got != want {
				t.Errorf("merge commit %s, expected %s as from an empty repository", got, want)
			}
			after, err := r.Refs(ostree.LayerRefPrefix)
			if err != nil {
				t.Fatal(err)
			}
			for ref, c := range before {
				if after[ref] != c {
					t.Logf("%s moved from %s to %s", ref, c, after[ref])
				}
			}
			tool(t, "ostree", "fsck", "--repo="+r.Path())
		})
	}
}

// TestOstreeExtReuses has our import bring the base, and real ostree-ext find
// its layers.
func TestOstreeExtReuses(t *testing.T) {
	lab.Need(t, "ostree", "skopeo")
	lab.NeedRoot(t)
	cli := ostreeExtCLI(t)
	r := openRepo(t)
	bring(t, r, ostree.ImportOptions{Version: "1"}, fixtureRef(t, "derived"))
	before, err := r.Refs(ostree.LayerRefPrefix)
	if err != nil {
		t.Fatal(err)
	}
	images := tool(t, cli, "container", "image", "list", "--repo", r.Path())
	if want := fixtureRef(t, "derived"); !strings.Contains(images, want) {
		t.Errorf("ostree-ext lists the images %q, expected %s", images, want)
	}
	// Another name, so that it does not stop at "already present".
	dir := filepath.Join(t.TempDir(), "oci")
	tool(t, "cp", "-a", strings.TrimSuffix(strings.TrimPrefix(fixtureRef(t, ""), "oci:"), ":"), dir)
	ref := "oci:" + dir + ":derived"
	tool(t, cli, "container", "image", "pull", "--quiet", r.Path(), "ostree-unverified-image:"+ref)
	after, err := r.Refs(ostree.LayerRefPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range before {
		if after[name] != c {
			t.Errorf("ostree-ext moved %s from %s to %s instead of using it", name, c, after[name])
		}
	}
	got := tool(t, "ostree", "ls", "-R", "-C", "-X", "--repo="+r.Path(), ostree.ImageRef(ref))
	if want := strings.Join(lines(t, "derived-merged.ls"), "\n"); strings.TrimSpace(got) != want {
		t.Errorf("ostree-ext merges our layer commits to another tree:\n%s", got)
	}
}

func ostreeExtCLI(t testing.TB) string {
	t.Helper()
	lab.NeedCargo(t)
	cli, err := lab.Make(t.Context(), "chunked/build-cli.sh")
	if err != nil {
		t.Fatal(err)
	}
	return cli
}

// TestBaseImageEqualsOstree imports the lab's base image, 17,600 files with
// Debian's SELinux policy, and has the ostree program commit the same tar.
func TestBaseImageEqualsOstree(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	lab.Need(t, "ostree", "gzip")
	lab.NeedRoot(t)
	layout := lab.BaseImage(t)
	r := openRepo(t)
	commit, _ := bring(t, r, ostree.ImportOptions{}, "oci:"+layout+":"+lab.TagGzip)
	split, _ := bring(t, r, ostree.ImportOptions{}, "oci:"+layout+":"+lab.TagZstd20)
	wantTree := treeOf(t, r, commit)
	if got := treeOf(t, r, split); got != wantTree {
		t.Errorf("in twenty layers the image is the tree %s, in one it is %s", got, wantTree)
	}
	stored, err := r.ContainerManifest(commit)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := stored.Layers()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tar, root, theirs := filepath.Join(dir, "layer.tar"), filepath.Join(dir, "root"), filepath.Join(dir, "repo")
	tool(t, "sh", "-c", "gzip -dc "+filepath.Join(layout, "blobs/sha256", strings.TrimPrefix(layers[0].Digest, "sha256:"))+" >"+tar)
	tool(t, "ostree", "init", "--repo="+theirs, "--mode=bare")
	tool(t, "ostree", "commit", "--repo="+theirs, "--branch=layer", "--no-bindings", "--tar-autocreate-parents",
		"--tree=tar="+tar, `--tar-pathname-filter=^(\./)?etc(/|$),usr/etc\2`)
	tool(t, "ostree", "checkout", "--repo="+theirs, "-H", "layer", root)
	for _, name := range []string{"hostname", "resolv.conf"} {
		if st, err := os.Lstat(filepath.Join(root, "usr/etc", name)); err == nil && st.Size() == 0 {
			tool(t, "rm", filepath.Join(root, "usr/etc", name))
		}
	}
	want := strings.TrimSpace(tool(t, "ostree", "commit", "--repo="+theirs, "--branch=merge", "--no-bindings", "--tree=dir="+root, "--selinux-policy="+root))
	got := tool(t, "ostree", "ls", "-R", "-C", "--repo="+r.Path(), commit.String())
	if oracle := tool(t, "ostree", "ls", "-R", "-C", "--repo="+theirs, want); got != oracle {
		ours := map[string]bool{}
		for line := range strings.Lines(got) {
			ours[line] = true
		}
		shown := 0
		for line := range strings.Lines(oracle) {
			if shown++; !ours[line] && shown < 30 {
				t.Errorf("ostree has %s", strings.TrimSpace(line))
			}
		}
		t.Errorf("the trees differ")
	}
}

func treeOf(t testing.TB, r *ostree.Repo, commit object.Checksum) object.Checksum {
	t.Helper()
	c, err := r.ReadCommit(commit)
	if err != nil {
		t.Fatal(err)
	}
	return c.Tree
}
