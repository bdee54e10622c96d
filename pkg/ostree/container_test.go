package ostree

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func TestEscapeRef(t *testing.T) {
	for plain, want := range map[string]string{
		"docker://quay.io/a/b:t": "docker_3A__2F__2F_quay_2E_io/a/b_3A_t",
		"sha256:0a":              "sha256_3A_0a",
		"a_b-c":                  "a__b-c",
		"a/":                     "a_2F_",
		"/a":                     "_2F_a",
		"a//b":                   "a/_2F_b",
		"é🐧":                     "_E9__1F427_",
		"a.tar":                  "a_2E_tar",
	} {
		got := EscapeRef(plain)
		if got != want {
			t.Errorf("%q is escaped as %q, expected %q", plain, got, want)
		}
		if back, err := UnescapeRef(got); err != nil || back != plain {
			t.Errorf("%q comes back as %q, %v; expected %q", got, back, err, plain)
		}
	}
	for _, bad := range []string{"a.b", "_", "_XY_", "_41", "_110000000_"} {
		if s, err := UnescapeRef(bad); err == nil {
			t.Errorf("%q is no escape, but comes back as %q", bad, s)
		}
	}
}

func FuzzUnescapeRef(f *testing.F) {
	f.Add("docker_3A__2F__2F_quay_2E_io/a/b_3A_t")
	f.Fuzz(func(t *testing.T, s string) {
		if plain, err := UnescapeRef(EscapeRef(strings.ToValidUTF8(s, ""))); err != nil || plain != strings.ToValidUTF8(s, "") {
			t.Errorf("%q comes back as %q, %v", s, plain, err)
		}
		_, _ = UnescapeRef(s)
	})
}

func TestCanonicalJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"b": 1, "a": [true, null, "x"]}`:                  `{"a":[true,null,"x"],"b":1}`,
		`{"n": 9007199254740993, "f": 1.50, "e": 1e3}`:      `{"e":1000,"f":1.5,"n":9007199254740993}`,
		"{\"<&>\u2028\": \"\\u003c\\u0000\\u001f\\n\\\"\"}": "{\"<&>\u2028\":\"<\\u0000\\u001f\\n\\\"\"}",
		"{\"\ufb33\": 1, \"\U0001f602\": 2}":                "{\"\U0001f602\":2,\"\ufb33\":1}",
		`"/"`:                                               `"/"`,
	} {
		got, err := canonicalJSON([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s becomes %s, %v; expected %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "{", `{} {}`, `{"a":1e999}`, strings.Repeat("[", 100) + strings.Repeat("]", 100)} {
		_, err := canonicalJSON([]byte(bad))
		wantKind(t, err, fault.Corrupt)
	}
}

func TestContainersAreListedAndRemoved(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	r, state := importRepo(t, Bare), stateDir(t)
	opts, cache := ImportOptions{State: state, Version: "1"}, map[string]*fstree.Layer{}
	one, two := newImage(t, baseLayer()), newImage(t, baseLayer(), derivedLayer())
	first, _ := one.importInto(t, r, opts, cache, "docker://quay.io/a/one:1")
	second, fetched := two.importInto(t, r, opts, cache, "docker://quay.io/a/two:1")
	if fetched != 1 {
		t.Errorf("%d layers fetched, expected the derived one alone", fetched)
	}

	list, err := r.Containers()
	if err != nil || len(list) != 2 {
		t.Fatalf("%d images, %v; expected 2", len(list), err)
	}
	if list[1].Reference != "docker://quay.io/a/two:1" || list[1].Image.Commit != second || list[1].Image.ManifestDigest != sha(two.manifest) {
		t.Errorf("image 1 is %s %s %s", list[1].Reference, list[1].Image.Commit, list[1].Image.ManifestDigest)
	}
	layers, err := list[1].Image.Layers()
	if err != nil || len(layers) != 2 || layers[1].Digest != sha(two.tars[1]) || layers[1].DiffID != sha(two.tars[1]) {
		t.Errorf("its layers are %+v, %v", layers, err)
	}

	if n, err := r.PruneContainers(t.Context(), state); n != 0 || err != nil {
		t.Errorf("%d layers in use were pruned, %v", n, err)
	}
	for _, want := range []bool{true, false} {
		if found, err := r.RemoveContainer(t.Context(), "docker://quay.io/a/two:1"); found != want || err != nil {
			t.Errorf("removal says %v, %v; expected %v", found, err, want)
		}
	}
	// A deployment keeps its image's layers.
	runTool(t, "ostree", "--repo="+r.Path(), "refs", "--create=ostree/0/1/0", second.String())
	if n, err := r.PruneContainers(t.Context(), state); n != 0 || err != nil {
		t.Errorf("%d layers of a deployment were pruned, %v", n, err)
	}
	runTool(t, "ostree", "--repo="+r.Path(), "refs", "--delete", "ostree/0/1/0")
	if n, err := r.PruneContainers(t.Context(), state); n != 1 || err != nil {
		t.Errorf("%d layers were pruned, %v; expected 1", n, err)
	}
	if names, err := indexNames(state); err != nil || len(names) != 1 {
		t.Errorf("layer indexes %v, %v; expected that of the first layer", names, err)
	}
	runTool(t, "ostree", "prune", "--repo="+r.Path(), "--refs-only")
	runTool(t, "ostree", "fsck", "--repo="+r.Path())
	if _, err := r.ReadCommit(first); err != nil {
		t.Error(err)
	}
	if _, fetched := two.importInto(t, r, opts, cache, "docker://quay.io/a/two:1"); fetched != 1 {
		t.Errorf("after the prune %d layers were fetched, expected 1", fetched)
	}
}

func TestCachedUpdate(t *testing.T) {
	lab.NeedRoot(t)
	r := importRepo(t, Bare)
	img := newImage(t, baseLayer())
	commit, _ := img.importInto(t, r, ImportOptions{}, map[string]*fstree.Layer{}, "oci:/x:t")
	txn, err := r.Txn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := txn.PutCommitMeta(commit, object.Dict{{Key: "foreign", Value: object.Text("stays")}}); err != nil {
		t.Fatal(err)
	}
	if err := txn.Commit(); err != nil {
		t.Fatal(err)
	}
	if u, err := r.CachedUpdate(commit); u != nil || err != nil {
		t.Errorf("an update without one: %+v, %v", u, err)
	}
	want := CachedUpdate{"sha256:" + strings.Repeat("0", 64), []byte(`{"a":1,"b":2}`), []byte(`{"c":3}`)}
	if err := r.SetCachedUpdate(t.Context(), commit, &CachedUpdate{want.ManifestDigest, []byte(`{"b": 2, "a": 1}`), want.Config}); err != nil {
		t.Fatal(err)
	}
	u, err := r.CachedUpdate(commit)
	if err != nil || u == nil || u.ManifestDigest != want.ManifestDigest || string(u.Manifest) != string(want.Manifest) || string(u.Config) != string(want.Config) {
		t.Errorf("the cached update is %+v, %v", u, err)
	}
	if err := r.SetCachedUpdate(t.Context(), commit, nil); err != nil {
		t.Fatal(err)
	}
	d, err := r.ReadCommitMeta(commit)
	if v, _ := d.Text("foreign"); err != nil || v != "stays" || len(d) != 1 {
		t.Errorf("the detached metadata is %v, %v; expected the foreign key alone", d, err)
	}
}

// TestMergeCommit reads a merge commit with the ostree program.
func TestMergeCommit(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	r := importRepo(t, Bare)
	img := newImage(t, baseLayer())
	commit, _ := img.importInto(t, r, ImportOptions{Version: "9"}, map[string]*fstree.Layer{}, "oci:/x:t")
	show := func(key string) string {
		return runTool(t, "ostree", "show", "--repo="+r.Path(), "--print-metadata-key="+key, commit.String())
	}
	if got, want := show(keyManifestDigest), "'"+sha(img.manifest)+"'"; got != want {
		t.Errorf("%s is %s, expected %s", keyManifestDigest, got, want)
	}
	if got := show(keyImporterVersion); got != "'9'" {
		t.Errorf("%s is %s", keyImporterVersion, got)
	}
	if got := runTool(t, "ostree", "show", "--repo="+r.Path(), commit.String()); !strings.Contains(got, "Date:  2025-01-02 03:04:05 +0000") {
		t.Errorf("the commit's time is not the image's: %s", got)
	}
	stored, err := r.ContainerManifest(commit)
	if err != nil {
		t.Fatal(err)
	}
	want, err := canonicalJSON(img.config)
	if err != nil || string(stored.Config) != string(want) {
		t.Errorf("the config is %s, %v", stored.Config, err)
	}
	plain := runTool(t, "ostree", "commit", "--repo="+r.Path(), "--orphan", "--tree=ref="+commit.String())
	c, err := object.ParseChecksum(plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ContainerManifest(c); err == nil {
		t.Error("an ordinary commit passes for a container image")
	}
}

// TestFullDisk imports into a file system that has not enough space.
func TestFullDisk(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "mkfs.ext4", "mount", "umount")
	dir := t.TempDir()
	disk := dir + "/disk"
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 16<<20); err != nil {
		t.Fatal(err)
	}
	runTool(t, "mkfs.ext4", "-q", disk)
	mnt := dir + "/mnt"
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", disk, mnt).CombinedOutput(); err != nil {
		lab.Skip(t, "cannot mount a loop device: %s", out)
	}
	t.Cleanup(func() { runTool(t, "umount", "-l", mnt) })
	r, err := Create(mnt+"/repo", Bare)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	var big []ent
	for i := range 20 {
		big = append(big, ent{name: fmt.Sprintf("f%d", i), data: strings.Repeat(string(rune('a'+i)), 1<<20)})
	}
	im, err := r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := im.Begin("sha256:" + strings.Repeat("0", 64))
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	for _, e := range big {
		n := &fstree.Inode{Mode: 0o100644, Size: int64(len(e.data))}
		if _, failed = w.Put(e.name, n, strings.NewReader(e.data)); failed != nil {
			break
		}
	}
	wantKind(t, failed, fault.NoSpace)
	w.Abort()
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	// What was staged is given back, and a smaller image fits.
	small := newImage(t, []ent{{name: "usr/"}, {name: "usr/f", data: strings.Repeat("x", 4<<20)}})
	small.importInto(t, r, ImportOptions{}, map[string]*fstree.Layer{}, "oci:/x:t")
}
