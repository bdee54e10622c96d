package interop_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// imported makes a repository with the image tagged "t" and returns it.
func imported(t testing.TB, image string, state *os.Root) (*composefs.Repo, string, *composefs.Written) {
	t.Helper()
	where := t.TempDir()
	r := openRepo(t, where, true)
	im := newImport(t, r, composefs.ImportOptions{State: state})
	_, out := importImage(t, im, image, composefs.Container{Raw: true, Tags: []string{"t"}})
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	return r, filepath.Join(where, "composefs"), out
}

func gc(t testing.TB, r *composefs.Repo, o composefs.GCOptions) *composefs.GCResult {
	t.Helper()
	res, err := r.GC(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func fsck(t testing.TB, r *composefs.Repo) *composefs.FsckResult {
	t.Helper()
	res, err := r.Fsck(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestGC(t *testing.T) {
	state := openRoot(t, t.TempDir())
	image := layoutOf(t, plainImage(t)...)
	r, repo, out := imported(t, image, state)
	if res := gc(t, r, composefs.GCOptions{State: state}); res.Objects != 0 || res.Links != 0 {
		t.Errorf("garbage collection of a tagged image removed %+v, want nothing", res)
	}
	cfs := cfsctl(t)
	if got := run(t, cfs, "--repo", repo, "gc"); strings.Contains(got, "removed") && !strings.Contains(got, " 0 ") {
		t.Logf("cfsctl gc: %s", got)
	}
	if res := fsck(t, r); len(res.Damage) > 0 || res.Images != 2 || res.Streams != 4 {
		t.Errorf("after cfsctl's garbage collection fsck finds %v in %d images and %d streams, want none in 2 and 4", res.Damage, res.Images, res.Streams)
	}

	if err := r.Untag("t"); err != nil {
		t.Fatal(err)
	}
	live := composefs.GCOptions{Images: []composefs.Digest{out.Boot.Digest}, State: state}
	gc(t, r, live)
	if res := fsck(t, r); len(res.Damage) > 0 || res.Images != 1 || res.Streams != 0 {
		t.Errorf("with one live image fsck finds %v in %d images and %d streams, want none in 1 and 0", res.Damage, res.Images, res.Streams)
	}
	if names, _ := filepath.Glob(state.Name() + "/layers/*"); len(names) != 0 {
		t.Errorf("kedge still knows the layers %v", names)
	}
	dry := composefs.GCOptions{DryRun: true}
	want := gc(t, r, dry)
	if got := gc(t, r, composefs.GCOptions{}); *got != *want || got.Objects == 0 {
		t.Errorf("garbage collection removed %+v, its dry run said %+v", got, want)
	}
	if names, _ := filepath.Glob(repo + "/objects/*/*"); len(names) != 0 {
		t.Errorf("%d objects are left that nothing refers to", len(names))
	}
}

func TestGCBusy(t *testing.T) {
	r := openRepo(t, t.TempDir(), true)
	im := newImport(t, r, composefs.ImportOptions{})
	if _, err := r.GC(context.Background(), composefs.GCOptions{}); fault.KindOf(err) != fault.Busy {
		t.Errorf("garbage collection during an import: %v, want busy", err)
	}
	if _, err := r.NewImport(context.Background(), composefs.ImportOptions{}); fault.KindOf(err) != fault.Busy {
		t.Errorf("a second import: %v, want busy", err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	gc(t, r, composefs.GCOptions{})
}

// TestLayersAreReused imports an image twice; the second time nothing of it can
// be read any more.
func TestLayersAreReused(t *testing.T) {
	state := openRoot(t, t.TempDir())
	image := layoutOf(t, plainImage(t)...)
	r, _, first := imported(t, image, state)
	blankLayers(t, image)
	im := newImport(t, r, composefs.ImportOptions{State: state})
	img, second := importImage(t, im, image, composefs.Container{Tags: []string{"t2"}})
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if first.Boot.Digest != second.Boot.Digest || img.Layers[0].Fetched {
		t.Errorf("the second import has the image %s (fetched: %v), want %s without fetching", second.Boot.Digest, img.Layers[0].Fetched, first.Boot.Digest)
	}
	stored, err := r.ReadImage(img.ManifestDigest)
	if err != nil || stored.Boot() != first.Boot.Digest || len(stored.Images) != 2 || len(stored.DiffIDs) != 2 {
		t.Errorf("the stored image is %+v, %v: want both images kept", stored, err)
	}
	tags, err := r.Tags()
	if err != nil || len(tags) != 2 || tags["t"] != img.ManifestDigest || tags["t2"] != img.ManifestDigest {
		t.Errorf("tags %v, %v", tags, err)
	}
}

// blankLayers makes the larger blobs of a layout unreadable.
func blankLayers(t testing.TB, image string) {
	t.Helper()
	names, err := filepath.Glob(strings.TrimSuffix(image, ":t") + "/blobs/sha256/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if st, err := os.Stat(name); err == nil && st.Size() > 4000 {
			if err := os.Truncate(name, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestFsckAndRepair(t *testing.T) {
	state := openRoot(t, t.TempDir())
	image := layoutOf(t, plainImage(t)...)
	r, repo, out := imported(t, image, state)
	object := func(content string) string {
		v := fsverity.New(composefs.SHA512)
		_, _ = v.Write([]byte(content))
		f := composefs.Object(v.Sum())
		return filepath.Join(repo, "objects", f.Payload)
	}
	flipped, gone, cut := object(bigText(300000)), object(bigText(7)), filepath.Join(repo, "objects", composefs.Object(out.Boot.Digest).Payload)
	overwrite(t, flipped)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	replace(t, cut, []byte(readFile(t, cut))[:5000])
	stray := filepath.Join(repo, "objects/00")
	if err := errors.Join(os.MkdirAll(stray, 0o755), os.WriteFile(stray+"/stray", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	res := fsck(t, r)
	has := func(kind composefs.DamageKind, path string) {
		t.Helper()
		rel, _ := filepath.Rel(repo, path)
		if !slices.ContainsFunc(res.Damage, func(d composefs.Damage) bool { return d.Kind == kind && d.Path == rel }) {
			t.Errorf("fsck does not name a %s at %s, but %v", kind, rel, res.Damage)
		}
	}
	has(composefs.BadContent, flipped)
	has(composefs.BadContent, cut)
	has(composefs.BadImage, repo+"/images/"+out.Boot.Digest.String())
	has(composefs.Missing, repo+"/images/"+out.Raw.Digest.String())
	has(composefs.BadName, stray+"/stray")

	im := newImport(t, r, composefs.ImportOptions{State: state, Damaged: res.Replaceable()})
	img, again := importImage(t, im, image, composefs.Container{Raw: true, Tags: []string{"t"}})
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if again.Boot.Digest != out.Boot.Digest || !img.Layers[0].Fetched || !img.Layers[1].Fetched {
		t.Errorf("the repairing import made %s and fetched %v, %v; want the same image and both layers fetched", again.Boot.Digest, img.Layers[0].Fetched, img.Layers[1].Fetched)
	}
	if err := os.Remove(stray + "/stray"); err != nil {
		t.Fatal(err)
	}
	if res = fsck(t, r); len(res.Damage) > 0 {
		t.Errorf("after the repair fsck finds %v", res.Damage)
	}
	run(t, cfsctl(t), "--repo", repo, "fsck")
}

// overwrite flips a byte of a file.
func overwrite(t testing.TB, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	replace(t, name, b)
}

// replace makes the file anew: one with fs-verity cannot be written.
func replace(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := errors.Join(os.Remove(name), os.WriteFile(name, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestUnknownFormat opens repositories that kedge does not understand: it
// refuses and touches nothing.
func TestUnknownFormat(t *testing.T) {
	const head = `{"version":1,"algorithm":"fsverity-sha512-12","features":{"compatible":[],"read-only-compatible":`
	for _, tc := range []struct {
		name, meta string
		open       bool // reading is allowed
	}{
		{"version", `{"version":2,"algorithm":"fsverity-sha512-12"}`, false},
		{"algorithm", `{"version":1,"algorithm":"fsverity-sha512-16"}`, false},
		{"incompatible feature", head + `[],"incompatible":["new"]}}`, false},
		{"read-only feature", head + `["v1_erofs","new"],"incompatible":[]},"erofs_formats":{"default":1}}`, true},
		{"old images", head + `[],"incompatible":[]}}`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			where := t.TempDir()
			if err := os.Mkdir(where+"/composefs", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(where+"/composefs/meta.json", []byte(tc.meta), 0o644); err != nil {
				t.Fatal(err)
			}
			root := openRoot(t, where)
			r, err := composefs.CreateRepo(root, "composefs", composefs.CreateOptions{AllowMissingVerity: true})
			if tc.open {
				if err != nil {
					t.Fatalf("open for reading: %v", err)
				}
				defer r.Close()
				_, err = r.NewImport(context.Background(), composefs.ImportOptions{})
			}
			var format *composefs.FormatError
			if !errors.As(err, &format) || fault.KindOf(err) != fault.Conflict {
				t.Errorf("error %v, want a FormatError of kind conflict", err)
			}
			names, _ := filepath.Glob(where + "/composefs/*")
			if len(names) != 1 || readFile(t, where+"/composefs/meta.json") != tc.meta {
				t.Errorf("the repository was touched: %v", names)
			}
		})
	}
}

// TestMissingVerity makes a repository where there is no fs-verity.
func TestMissingVerity(t *testing.T) {
	where := "/dev/shm" // tmpfs of kernels before 7 has none
	if st := new(unix.Statfs_t); unix.Statfs(where, st) != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skip("/dev/shm is no tmpfs")
	}
	dir, err := os.MkdirTemp(where, "kedge-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	root := openRoot(t, dir)
	_, err = composefs.CreateRepo(root, "composefs", composefs.CreateOptions{})
	if !errors.Is(err, fsverity.ErrNoVerity) || fault.KindOf(err) != fault.Conflict {
		t.Errorf("a repository on tmpfs: %v, want ErrNoVerity", err)
	}
	if _, err := root.Lstat("composefs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the refused repository was left behind: %v", err)
	}
	r, err := composefs.CreateRepo(root, "composefs", composefs.CreateOptions{AllowMissingVerity: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Sealed() {
		t.Error("a repository without fs-verity calls itself sealed")
	}
}
