package ostree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

type labelFunc func(path string, mode uint32) (string, bool)

func (f labelFunc) Label(path string, mode uint32) (string, bool) { return f(path, mode) }

func policyImage(t *testing.T) *testImage {
	return newImage(t, append(policyFiles(), baseLayer()...), derivedLayer())
}

// twins are files of one content under several headers, some of them alike.
func twins() (list []ent) {
	for i, mode := range []int64{0o600, 0o640, 0o644, 0o755, 0o644} {
		name := "usr/share/twin" + strconv.Itoa(i)
		list = append(list, ent{name: name, mode: mode, data: "the same"}, ent{name: name + "big", mode: mode, data: strings.Repeat("the same", 50_000)})
	}
	return append(list, ent{name: "usr/bin/twin", data: "the same", uid: 7})
}

var wrongLabels = labelFunc(func(string, uint32) (string, bool) { return "system_u:object_r:wrong_t:s0", true })

// TestSpeculation imports an image with a right guess, a wrong one and none,
// and wants the same commit each time, and nothing but what it needs.
func TestSpeculation(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	img := newImage(t, append(policyFiles(), append(baseLayer(), twins()...)...), derivedLayer())
	var policy Labeler
	want, _ := img.importInto(t, importRepo(t, Bare), ImportOptions{Version: "1"}, map[string]*fstree.Layer{}, "oci:/x:t")
	for _, guess := range []string{"none", "right", "wrong"} {
		opts := ImportOptions{Version: "1"}
		switch guess {
		case "right":
			opts.Speculative = policy
		case "wrong":
			opts.Speculative = wrongLabels
		}
		r := importRepo(t, Bare)
		im, err := r.NewImport(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		tree, layers, _ := img.take(t, im, map[string]*fstree.Layer{})
		p, err := Prepare(tree, PrepareOptions{Layers: entriesOf(layers), Open: im.OpenContent})
		if err != nil {
			t.Fatal(err)
		}
		policy = p.Labels
		got, err := im.WriteContainer(t.Context(), img.container("oci:/x:t", p, layers))
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("with the guess %s the commit is %s, expected %s", guess, got, want)
		}
		// Without a guess the image's own policy is it, once it has passed by.
		all := len(im.settled.list)
		if got := im.Rehashed; (guess == "right") != (got == 0) || (guess == "none") != (got > 0 && got < all/2) {
			t.Errorf("with the guess %s %d contents of %d were hashed again", guess, got, all)
		}
		_ = im.Close()
		wantTidy(t, r)
	}
}

// TestNoPolicyAfterAll expects labels, and gets an image that brings none.
func TestNoPolicyAfterAll(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	img := newImage(t, append(baseLayer(), twins()...))
	want, _ := img.importInto(t, importRepo(t, Bare), ImportOptions{}, map[string]*fstree.Layer{}, "oci:/x:t")
	for _, mode := range []Mode{Bare, BareUser, Archive} {
		r := importRepo(t, mode)
		if got, _ := img.importInto(t, r, ImportOptions{Speculative: wrongLabels}, map[string]*fstree.Layer{}, "oci:/x:t"); got != want {
			t.Errorf("%s: commit %s, expected %s", mode, got, want)
		}
		wantTidy(t, r)
	}
}

// wantTidy wants a sound repository with nothing in it that nobody needs.
func wantTidy(t *testing.T, r *Repo) {
	t.Helper()
	runTool(t, "ostree", "fsck", "--repo="+r.Path())
	res, err := r.Prune(t.Context(), PruneOptions{Depth: -1, DryRun: true})
	if err != nil || res.Pruned != 0 {
		t.Errorf("%d of %d objects are needed by nothing, %v", res.Pruned, res.Total, err)
	}
	if names, err := readDirNames(r.tmp, "."); err != nil || len(names) != 1 {
		t.Errorf("tmp has %v, %v; expected cache alone", names, err)
	}
}

// TestTornContent leaves a stage as a kill in the middle of a write, or of a
// change of metadata, would: the layer is fetched again, and nothing of it stays.
func TestTornContent(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	img := newImage(t, baseLayer())
	for what, tear := range map[string]func(*os.File) error{
		"cut": func(f *os.File) error { return f.Truncate(1) },
		"relabelled": func(f *os.File) error {
			now := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
			return errors.Join(setTimes(int(f.Fd()), now), f.Chmod(0o111))
		},
	} {
		r, cache := importRepo(t, Bare), map[string]*fstree.Layer{}
		im, err := r.NewImport(t.Context(), ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tree, _, _ := img.take(t, im, cache)
		for _, rec := range im.lookup(tree.Lookup("usr/share/big").Content) {
			f, err := openAt(im.stage.objects.dir, im.stage.path(rec.object), unix.O_RDWR, 0)
			if err == nil {
				err = errors.Join(tear(f), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		im.stage.close()
		if _, n := img.importInto(t, r, ImportOptions{}, cache, "oci:/x:t"); n != 1 {
			t.Errorf("%s: %d layers fetched, expected the torn one", what, n)
		}
		wantTidy(t, r)
	}
}

// TestModes imports into the other modes; the checksums are the same.
func TestModes(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	img := policyImage(t)
	want, _ := img.importInto(t, importRepo(t, Bare), ImportOptions{Version: "1"}, map[string]*fstree.Layer{}, "oci:/x:t")
	for _, mode := range []Mode{BareUser, Archive} {
		r, opts, cache := importRepo(t, mode), ImportOptions{State: stateDir(t), Version: "1"}, map[string]*fstree.Layer{}
		for _, fetches := range []int{2, 0} {
			got, n := img.importInto(t, r, opts, cache, "oci:/x:t")
			if got != want || n != fetches {
				t.Errorf("%s: commit %s after %d fetches, expected %s after %d", mode, got, n, want, fetches)
			}
		}
		runTool(t, "ostree", "fsck", "--repo="+r.Path())
	}
}

// TestOtherPolicyLater imports a base, and then an image on it that brings
// another policy: the base's contents are labelled anew without being fetched.
func TestOtherPolicyLater(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	base := baseLayer()
	above := append(policyFiles(), derivedLayer()...)
	want, _ := newImage(t, base, above).importInto(t, importRepo(t, Bare), ImportOptions{Version: "1"}, map[string]*fstree.Layer{}, "oci:/x:2")
	r, opts, cache := importRepo(t, Bare), ImportOptions{State: stateDir(t), Version: "1"}, map[string]*fstree.Layer{}
	newImage(t, base).importInto(t, r, opts, cache, "oci:/x:1")
	got, n := newImage(t, base, above).importInto(t, r, opts, cache, "oci:/x:2")
	if got != want || n != 1 {
		t.Errorf("commit %s after %d fetches, expected %s after one", got, n, want)
	}
	runTool(t, "ostree", "fsck", "--repo="+r.Path())
}

// TestForeignPrune has the objects of a layer vanish behind kedge's back.
func TestForeignPrune(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	img := newImage(t, baseLayer(), derivedLayer())
	r, opts, cache := importRepo(t, Bare), ImportOptions{State: stateDir(t), Version: "1"}, map[string]*fstree.Layer{}
	first, _ := img.importInto(t, r, opts, cache, "oci:/x:t")
	runTool(t, "ostree", "refs", "--repo="+r.Path(), "--delete", "ostree")
	if _, n := img.importInto(t, r, opts, cache, "oci:/x:t"); n != 0 {
		t.Errorf("%d layers fetched whose objects are all there", n)
	}
	runTool(t, "ostree", "refs", "--repo="+r.Path(), "--delete", "ostree")
	runTool(t, "ostree", "prune", "--repo="+r.Path(), "--refs-only")
	again, n := img.importInto(t, r, opts, cache, "oci:/x:t")
	if n != 2 || again != first {
		t.Errorf("after a foreign prune %d layers were fetched, commit %s; expected both, %s", n, again, first)
	}
	runTool(t, "ostree", "fsck", "--repo="+r.Path())
}

// TestStagedLayersSurvive leaves an import in the middle, as a kill would.
func TestStagedLayersSurvive(t *testing.T) {
	lab.NeedRoot(t)
	img := newImage(t, baseLayer(), derivedLayer())
	r, cache := importRepo(t, Bare), map[string]*fstree.Layer{}
	im, err := r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.NewImport(t.Context(), ImportOptions{})
	wantKind(t, err, fault.Busy)
	img.take(t, im, cache)
	im.stage.close()

	// A layer of another boot may be torn.
	old := r.bootID
	r.bootID = "another-boot"
	im, err = r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.LayerIndex(sha(img.tars[0])); !isNotExist(err) {
		t.Errorf("a layer that another boot staged: %v", err)
	}
	img.take(t, im, cache)
	_ = im.Close()
	if names, err := readDirNames(r.tmp, "."); err != nil || strings.Contains(strings.Join(names, " "), old) {
		t.Errorf("the stage of another boot is still there: %v, %v", names, err)
	}

	if _, n := img.importInto(t, r, ImportOptions{}, cache, "oci:/x:t"); n != 0 {
		t.Errorf("%d layers fetched that were staged", n)
	}
	if names, err := readDirNames(r.tmp, "."); err != nil || len(names) != 1 {
		t.Errorf("tmp has %v, %v; expected cache alone", names, err)
	}
}

// TestDamagedIndex wants layers fetched again whose index, stage or content
// cannot be trusted.
func TestDamagedIndex(t *testing.T) {
	lab.NeedRoot(t)
	img := newImage(t, baseLayer())
	name, err := layerFileName(sha(img.tars[0]))
	if err != nil {
		t.Fatal(err)
	}
	r, state, cache := importRepo(t, Bare), stateDir(t), map[string]*fstree.Layer{}
	opts := ImportOptions{State: state}
	img.importInto(t, r, opts, cache, "oci:/x:t")
	file := filepath.Join(state.Name(), layersDir, name)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, data := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "flipped": append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
	} {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, n := img.importInto(t, r, opts, cache, "oci:/x:t"); n != 1 {
			t.Errorf("%s index: %d layers fetched, expected 1", what, n)
		}
	}
	im, err := r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	for _, id := range []string{"", "sha256:xyz", "sha512:" + strings.Repeat("0", 128), "sha256:" + strings.Repeat("A", 64), "sha256:../../etc/passwd"} {
		if _, err := im.Begin(id); err == nil {
			t.Errorf("diffID %q is accepted", id)
		}
	}
}

// TestMissingContent takes a content away between the layers and the commit.
func TestMissingContent(t *testing.T) {
	lab.NeedRoot(t)
	img := newImage(t, baseLayer())
	r := importRepo(t, Bare)
	im, err := r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Discard() }()
	tree, layers, _ := img.take(t, im, map[string]*fstree.Layer{})
	p, err := Prepare(tree, PrepareOptions{Open: im.OpenContent})
	if err != nil {
		t.Fatal(err)
	}
	gone := tree.Lookup("usr/share/big").Content
	for _, r := range im.lookup(gone) {
		if err := unlinkAt(im.stage.objects.dir, im.stage.path(r.object)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = im.WriteContainer(t.Context(), img.container("oci:/x:t", p, layers))
	wantKind(t, err, fault.Corrupt)
	if refs, err := r.Refs(""); len(refs) != 0 || err != nil {
		t.Errorf("a failed import left the refs %v, %v", refs, err)
	}
}

// TestLinkToLowerLayer has a hard link whose target an earlier layer brought.
func TestLinkToLowerLayer(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	img := newImage(t, baseLayer(), []ent{{name: "usr/bin/tool-too", hard: "usr/bin/tool"}, {name: "etc/mine-three", hard: "etc/mine"}})
	r := importRepo(t, Bare)
	commit, _ := img.importInto(t, r, ImportOptions{}, map[string]*fstree.Layer{}, "oci:/x:t")
	list := runTool(t, "ostree", "ls", "--repo="+r.Path(), "-C", commit.String(), "/usr/bin/tool", "/usr/bin/tool-too", "/usr/etc/mine-three")
	l := strings.Split(list, "\n")
	if len(l) != 3 || strings.Fields(l[0])[4] != strings.Fields(l[1])[4] {
		t.Errorf("the hard link is not the file of the lower layer:\n%s", list)
	}
	layer := runTool(t, "ostree", "ls", "--repo="+r.Path(), "-R", LayerRef(sha(img.tars[1])))
	if !strings.Contains(layer, " /usr/bin/tool-too") || !strings.Contains(layer, " /usr/etc/mine-three") {
		t.Errorf("the layer's commit has\n%s", layer)
	}
}

// TestUnsortedObject keeps an object whose checksum no header leads to.
func TestUnsortedObject(t *testing.T) {
	lab.NeedRoot(t)
	r := importRepo(t, Bare)
	im, err := r.NewImport(t.Context(), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	w, err := im.Begin("sha256:" + strings.Repeat("1", 64))
	if err != nil {
		t.Fatal(err)
	}
	n := &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: 3}
	if n.Content, err = w.Put("sysroot/ostree/repo/objects/aa/bb.file", n, strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit([]byte("index")); err != nil {
		t.Fatal(err)
	}
	txn, err := r.Txn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := LayerObject{Checksum: object.Checksum{0xaa}, Inode: n, Unsorted: true}
	wrong := LayerObject{Checksum: object.Checksum{0xbb}, Inode: n}
	set := newObjectSet()
	set.want(n)
	if err := im.resolve(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if err := im.writeObjects(txn, set, &ContainerLayer{Objects: []LayerObject{o}}); err != nil {
		t.Error(err)
	}
	wantKind(t, im.writeObjects(txn, set, &ContainerLayer{Objects: []LayerObject{wrong}}), fault.Corrupt)
	if ok, err := txn.HasFile(o.Checksum); !ok || err != nil {
		t.Errorf("the object is not there: %v", err)
	}
	_ = txn.Abort()
}

func TestLayerFileCodec(t *testing.T) {
	l := &savedLayer{commit: object.Checksum{1}, blob: "sha256:x", index: []byte("index"), records: []record{{fstree.Digest{2}, headerHash{3}, object.Checksum{4}}}}
	back, err := readBack(encodeLayer(t, l))
	if err != nil || back.commit != l.commit || back.blob != l.blob || string(back.index) != "index" || len(back.records) != 1 || back.records[0] != l.records[0] {
		t.Errorf("a layer file comes back as %+v, %v", back, err)
	}
}

func FuzzLayerFile(f *testing.F) {
	l := &savedLayer{blob: "sha256:x", index: []byte("index"), records: make([]record, 2)}
	f.Add(encodeLayer(f, l))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := readBack(data); err == nil && !bytes.Equal(encodeLayer(t, l), data) {
			t.Error("a layer file does not come back as it was")
		} else if err != nil && !errors.Is(err, errLayerFile) {
			t.Error(err)
		}
	})
}

func encodeLayer(t testing.TB, l *savedLayer) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.write(&b, bytes.NewReader(l.index), int64(len(l.index)), listOf(l.records)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readBack(data []byte) (*savedLayer, error) {
	return readLayerFile(bytes.NewReader(data), int64(len(data)))
}
