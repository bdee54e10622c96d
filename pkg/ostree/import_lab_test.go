package ostree

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// ent is a tar entry of a test layer.
type ent struct {
	name     string // a directory's ends in "/"
	mode     int64  // 0: 0644, 0755 for directories
	data     string
	link     string // symlink target
	hard     string // hard link target
	uid, gid int
	xattrs   map[string]string
	typ      byte // other types
}

func makeTar(t testing.TB, ents []ent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range ents {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.gid, Typeflag: tar.TypeReg, Size: int64(len(e.data)), ModTime: time.Unix(1735787045, 0)}
		switch {
		case e.typ != 0:
			h.Typeflag = e.typ
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.hard
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			switch h.Typeflag {
			case tar.TypeDir:
				h.Mode = 0o755
			case tar.TypeSymlink:
				h.Mode = 0o777
			}
		}
		for name, value := range e.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// readTar is the least that ocibridge does with a layer.
func readTar(t testing.TB, data []byte, w *LayerImport) *fstree.Layer {
	t.Helper()
	var l fstree.LayerBuilder
	tree := fstree.New()
	types := map[byte]uint32{tar.TypeReg: unix.S_IFREG, tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeFifo: unix.S_IFIFO}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return l.Layer()
		}
		if err != nil {
			t.Fatal(err)
		}
		path := strings.Trim(strings.TrimPrefix(h.Name, "."), "/")
		if name := filepath.Base(path); strings.HasPrefix(name, ociWhiteout) {
			e := fstree.Entry{Kind: fstree.Whiteout, Path: joinPath(parentPath(path), name[len(ociWhiteout):])}
			if name == ociOpaque {
				e = fstree.Entry{Kind: fstree.Opaque, Path: parentPath(path)}
			}
			l.Add(e)
			continue
		}
		if h.Typeflag == tar.TypeLink {
			l.Add(fstree.Entry{Kind: fstree.Hardlink, Path: path, LinkTo: h.Linkname})
			continue
		}
		n := &fstree.Inode{}
		if h.Typeflag == tar.TypeDir {
			n = fstree.NewDir(0)
		}
		n.Mode |= types[h.Typeflag] | uint32(h.Mode)
		n.UID, n.GID, n.Target, n.Size = uint32(h.Uid), uint32(h.Gid), "", h.Size
		if h.Typeflag == tar.TypeSymlink {
			n.Target = h.Linkname
		}
		n.MtimeSec = h.ModTime.Unix()
		var xattrs []fstree.Xattr
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				xattrs = append(xattrs, fstree.Xattr{Name: name, Value: value})
			}
		}
		n.Xattrs = tree.Intern(xattrs)
		if n.IsRegular() {
			if n.Content, err = w.Put(path, n, r); err != nil {
				t.Fatal(err)
			}
		}
		l.Add(fstree.Entry{Kind: fstree.Add, Path: path, Inode: n})
	}
}

func sha(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// testImage is an image of plain layers.
type testImage struct {
	tars     [][]byte
	manifest []byte
	config   []byte
}

func newImage(t testing.TB, layers ...[]ent) *testImage {
	t.Helper()
	img := &testImage{}
	type desc struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	var descs []desc
	var diffIDs []string
	for _, l := range layers {
		data := makeTar(t, l)
		img.tars = append(img.tars, data)
		descs = append(descs, desc{"application/vnd.oci.image.layer.v1.tar", sha(data), len(data)})
		diffIDs = append(diffIDs, sha(data))
	}
	img.config = marshal(t, map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2025-01-02T03:04:05.678Z",
		"config":  map[string]any{"Labels": map[string]string{"containers.bootc": "1", "text": "<a & b>\u2028é\n"}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": diffIDs},
		"history": []any{map[string]any{"created_by": "test"}},
	})
	img.manifest = marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": desc{"application/vnd.oci.image.config.v1+json", sha(img.config), len(img.config)},
		"layers": descs,
	})
	return img
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// take brings the image's layers in, those that the import does not have.
func (img *testImage) take(t testing.TB, im *Import, cache map[string]*fstree.Layer) (*fstree.Tree, []ContainerLayer, int) {
	t.Helper()
	tree := fstree.New()
	var layers []ContainerLayer
	fetched := 0
	for _, data := range img.tars {
		id := sha(data)
		index, err := im.LayerIndex(id)
		if err != nil {
			if !isNotExist(err) {
				t.Fatal(err)
			}
			fetched++
			w, err := im.Begin(id)
			if err != nil {
				t.Fatal(err)
			}
			cache[id] = readTar(t, data, w)
			index = []byte(id)
			if err := w.Commit(index); err != nil {
				t.Fatal(err)
			}
		}
		l := cache[string(index)]
		if l == nil {
			t.Fatalf("layer %s has the index %q, of which nothing is known", id, index)
		}
		if err := tree.Apply(l); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, ContainerLayer{Digest: id, DiffID: id, Entries: l})
	}
	tree.Freeze()
	return tree, layers, fetched
}

func (img *testImage) container(ref string, p *Prepared, layers []ContainerLayer) Container {
	return Container{ImageRef: ref, ManifestDigest: sha(img.manifest), Manifest: img.manifest, Config: img.config, Layers: layers, Prepared: p}
}

// importImage imports an image and returns its merge commit.
func (img *testImage) importInto(t testing.TB, r *Repo, opts ImportOptions, cache map[string]*fstree.Layer, ref string) (Checksum, int) {
	t.Helper()
	im, err := r.NewImport(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	tree, layers, fetched := img.take(t, im, cache)
	p, err := Prepare(tree, PrepareOptions{Layers: entriesOf(layers), Open: im.OpenContent})
	if err != nil {
		t.Fatal(err)
	}
	commit, err := im.WriteContainer(t.Context(), img.container(ref, p, layers))
	if err != nil {
		t.Fatal(err)
	}
	if im.Warning != nil {
		t.Error(im.Warning)
	}
	return commit, fetched
}

func entriesOf(layers []ContainerLayer) []*fstree.Layer {
	var out []*fstree.Layer
	for _, l := range layers {
		out = append(out, l.Entries)
	}
	return out
}

func importRepo(t testing.TB, mode Mode) *Repo {
	t.Helper()
	r, err := Create(filepath.Join(t.TempDir(), "repo"), mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func stateDir(t testing.TB) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// runTool runs a program and returns what it printed.
func runTool(t testing.TB, argv ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	c := exec.Command(argv[0], argv[1:]...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// policyFiles are a minimal SELinux policy.
func policyFiles() []ent {
	return []ent{
		{name: "etc/"},
		{name: "etc/selinux/"},
		{name: "etc/selinux/config", data: "SELINUX=enforcing\nSELINUXTYPE=mini\n"},
		{name: "etc/selinux/mini/"},
		{name: "etc/selinux/mini/policy/"},
		{name: "etc/selinux/mini/contexts/"},
		{name: "etc/selinux/mini/contexts/files/"},
		{name: "etc/selinux/mini/policy/policy.33", data: "not a policy\n"},
		{name: "etc/selinux/mini/contexts/files/file_contexts", data: `/.*	system_u:object_r:default_t:s0
/	-d	system_u:object_r:root_t:s0
/etc(/.*)?	system_u:object_r:etc_t:s0
/usr(/.*)?	system_u:object_r:usr_t:s0
/usr/etc(/.*)?	system_u:object_r:etc_t:s0
/usr/etc/shadow	--	system_u:object_r:shadow_t:s0
/usr/bin(/.*)?	system_u:object_r:bin_t:s0
/usr/nolabel(/.*)?	<<none>>
/mnt(/.*)?	system_u:object_r:mnt_t:s0
/proc(/.*)?	<<none>>
`},
	}
}

// isNotExist is errors.Is for the tests' most frequent question.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

const conflict = fault.Conflict

func wantKind(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, expected one of kind %s", kind)
	}
	if got := fault.KindOf(err); got != kind {
		t.Errorf("error of kind %s, expected %s: %v", got, kind, err)
	}
}
