package interop_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
)

// cfsctl returns composefs-rs's program: that of the path, or the lab's.
func cfsctl(t testing.TB) string {
	t.Helper()
	if path, err := exec.LookPath("cfsctl"); err == nil {
		return path
	}
	lab.NeedCargo(t)
	out, err := exec.Command("../../../hack/lab/cfsctl.sh", "--path").Output()
	if err != nil {
		lab.Skip(t, "hack/lab/cfsctl.sh cannot build cfsctl: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// entry is an entry of a layer; its content counts for regular files.
type entry struct {
	tar.Header
	content string
}

func layerOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if e.Mode == 0 {
			e.Mode = map[byte]int64{tar.TypeDir: 0o755, tar.TypeSymlink: 0o777}[e.Typeflag]
			if e.Mode == 0 {
				e.Mode = 0o644
			}
		}
		e.Size = int64(len(e.content))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layoutOf makes an OCI layout of layers and returns "DIR:TAG".
func layoutOf(t testing.TB, layers ...[]byte) string {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(l, types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "t"}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})); err != nil {
		t.Fatal(err)
	}
	return dir + ":t"
}

func dir(name string) entry { return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir}} }

func at(e entry, sec, nsec int64) entry {
	e.ModTime = time.Unix(sec, nsec)
	if nsec != 0 {
		e.Format = tar.FormatPAX
	}
	return e
}

func file(name, content string) entry { return entry{Header: tar.Header{Name: name}, content: content} }

func xattr(e entry, name, value string) entry {
	if e.PAXRecords == nil {
		e.PAXRecords = map[string]string{}
	}
	e.PAXRecords["SCHILY.xattr."+name] = value
	return e
}

func link(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}}
}

func symlink(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}}
}

// bigText is longer than what is held inline.
func bigText(n int) string { return strings.Repeat("0123456789abcde\n", n) }

// plainImage exercises what layers can say.
func plainImage(t testing.TB) [][]byte {
	device := entry{Header: tar.Header{Name: "usr/lib/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}
	fifo := entry{Header: tar.Header{Name: "usr/lib/fifo", Typeflag: tar.TypeFifo}}
	owned := file("usr/bin/owned", "x")
	owned.Uid, owned.Gid, owned.Mode = 1000, 70000, 0o4755
	long := "usr/share/" + strings.Repeat("long-name-", 20)
	base := layerOf(t,
		at(xattr(dir("usr"), "security.capability", "not really"), 1700000000, 123456789), dir("usr/bin"), dir("usr/lib"), dir("usr/share"),
		at(dir("etc"), 5, 0), at(dir("run"), 77, 5), file("run/gone", "x"), at(dir("boot"), 99, 55), file("boot/uki.efi", bigText(9)),
		at(dir("sysroot"), 3, 4), dir("var"), dir("var/lib"), dir("tmp"),
		file("etc/hostname", "h\n"), file("usr/bin/empty", ""), file("usr/bin/inline64", bigText(4)), file("usr/bin/outside65", bigText(4)+"x"),
		file("usr/bin/big", bigText(300000)), link("usr/bin/big-link", "usr/bin/big"), symlink("bin", "usr/bin"), owned, device, fifo,
		at(file("usr/share/time", bigText(10)), 1600000000, 987654321), at(file("usr/share/before", bigText(11)), 1, 0), file(long, bigText(5)),
		xattr(xattr(xattr(file("usr/bin/ping", bigText(20)), "security.capability", "\x01\x00\x00\x02"), "user.kept", "perhaps"), "security.selinux", "system_u:object_r:container_t:s0"),
	)
	upper := layerOf(t,
		file("usr/share/.wh.before", ""), dir("var/lib"), file("var/lib/.wh..wh..opq", ""), file("var/lib/new", bigText(7)), at(dir("usr/lib"), 12, 0),
		link("usr/lib/hard", "usr/bin/big"), file("usr/bin/inline64", "now smaller"),
	)
	return [][]byte{base, upper}
}

const fileContexts = `
/.*	system_u:object_r:default_t:s0
/usr(/.*)?	system_u:object_r:usr_t:s0
/usr/bin(/.*)?	system_u:object_r:bin_t:s0
/usr/bin/[^/]*link	--	system_u:object_r:link_t:s0
/usr/lib/null	-c	system_u:object_r:null_t:s0
/etc(/.*)?	system_u:object_r:etc_t:s0
/var/lib/new	--	system_u:object_r:new_t:s0
/tmp	-d	<<none>>
/run	-d	system_u:object_r:run_t:s0
`

func labelledImage(t testing.TB, config string) [][]byte {
	policy := layerOf(t,
		dir("etc/selinux"), file("etc/selinux/config", config), dir("etc/selinux/targeted"), dir("etc/selinux/targeted/contexts"),
		dir("etc/selinux/targeted/contexts/files"), file("etc/selinux/targeted/contexts/files/file_contexts", fileContexts),
		file("etc/selinux/targeted/contexts/files/file_contexts.subs_dist", "/var/lib64 /usr/lib\n/opt/bin /usr/bin\n"),
		file("etc/selinux/targeted/contexts/files/file_contexts.local", "/usr/share/time	--	system_u:object_r:local_t:s0\n"),
		file("etc/selinux/targeted/contexts/files/file_contexts.homedirs", "/usr/share/ti[m]e	--	system_u:object_r:home_t:s0\n"),
		dir("opt"), dir("opt/bin"), file("opt/bin/tool", "t"), dir("var/lib64"), file("var/lib64/x", "t"),
	)
	return append(plainImage(t), policy)
}

// tell makes a repository tell what it says of the image tagged "t".
func tell(t *testing.T, cfs, repo string) (raw, boot string) {
	t.Helper()
	last := func(s string) string {
		f := strings.Fields(s)
		if len(f) == 0 {
			t.Fatalf("cfsctl printed nothing")
		}
		return strings.TrimPrefix(f[len(f)-1], "composefs=")
	}
	return last(run(t, cfs, "--repo", repo, "oci", "compute-id", "t")), last(run(t, cfs, "--repo", repo, "oci", "compute-id", "--bootable", "t"))
}

// testOracle imports an image with kedge and with cfsctl, and has cfsctl compute
// both images' digests from what kedge wrote and from what it wrote itself.
func testOracle(t *testing.T, where, image string, insecure bool) {
	cfs := cfsctl(t)
	r := openRepo(t, where, insecure)
	repo := filepath.Join(where, "composefs")
	im := newImport(t, r, composefs.ImportOptions{})
	_, out := importImage(t, im, image, composefs.Container{Raw: true, Tags: []string{"t"}})
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}

	raw, boot := tell(t, cfs, repo)
	if raw != out.Raw.Digest.String() || boot != out.Boot.Digest.String() {
		t.Errorf("from our repository cfsctl computes the images\n%s and for booting\n%s, kedge wrote\n%s and\n%s", raw, boot, out.Raw.Digest, out.Boot.Digest)
	}
	if got := run(t, cfs, "--repo", repo, "fsck"); !strings.Contains(got, "ok") && !strings.Contains(got, "no errors") {
		t.Logf("cfsctl fsck: %s", got)
	}
	run(t, cfs, "--repo", repo, "oci", "fsck")
	if got := run(t, cfs, "--repo", repo, "oci", "images"); !strings.Contains(got, "t") {
		t.Errorf("cfsctl lists the images as %q, want the tag t", got)
	}

	theirs := filepath.Join(where, "theirs")
	args := []string{"init", theirs}
	if insecure {
		args = append(args, "--insecure")
	}
	run(t, cfs, args...)
	run(t, cfs, "--repo", theirs, "oci", "pull", "--bootable", "oci:"+image, "t")
	theirRaw, theirBoot := tell(t, cfs, theirs)
	if theirRaw != out.Raw.Digest.String() || theirBoot != out.Boot.Digest.String() {
		t.Errorf("cfsctl's own import has the images\n%s and for booting\n%s, kedge's\n%s and\n%s", theirRaw, theirBoot, out.Raw.Digest, out.Boot.Digest)
	}
	for _, d := range []composefs.Digest{out.Raw.Digest, out.Boot.Digest} {
		a, errA := os.ReadFile(filepath.Join(repo, "images", d.String()))
		b, errB := os.ReadFile(filepath.Join(theirs, "images", d.String()))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("image %s: %v, %v, or not the same bytes", d, errA, errB)
		}
	}
	if theirBoot != out.Boot.Digest.String() {
		difference(t, filepath.Join(repo, "images", out.Boot.Digest.String()), filepath.Join(theirs, "images", theirBoot))
	}
	sameObjects(t, repo, theirs)
	if a, b := readFile(t, repo+"/meta.json"), readFile(t, theirs+"/meta.json"); a != b {
		t.Errorf("meta.json is\n%swant, as cfsctl writes it,\n%s", a, b)
	}
}

// difference tells where two images differ.
func difference(t testing.TB, ours, theirs string) {
	t.Helper()
	var trees [2]*composefs.Tree
	for i, name := range []string{ours, theirs} {
		var err error
		if trees[i], _, err = composefs.ReadImage([]byte(readFile(t, name))); err != nil {
			t.Fatal(err)
		}
	}
	err := composefs.Diff(trees[0], trees[1], func(c composefs.Change) error {
		if c.A == nil || c.B == nil {
			t.Errorf("%s is in one image only", c.Path)
			return nil
		}
		t.Errorf("%s differs in %v: kedge %q, cfsctl %q", c.Path, c.Fields, c.A.Xattrs.All(), c.B.Xattrs.All())
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sameObjects compares the objects of two repositories that are no
// splitstreams: those depend on how zstd packs.
func sameObjects(t *testing.T, ours, theirs string) {
	t.Helper()
	list := func(repo string) map[string]bool {
		out := map[string]bool{}
		names, err := filepath.Glob(repo + "/objects/*/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			var magic [11]byte
			_, _ = f.Read(magic[:])
			_ = f.Close()
			if string(magic[:]) != "SplitStream" {
				out[strings.TrimPrefix(name, repo)] = true
			}
		}
		return out
	}
	a, b := list(ours), list(theirs)
	for name := range a {
		if !b[name] {
			t.Errorf("kedge wrote %s, cfsctl did not", name)
		}
	}
	for name := range b {
		if !a[name] {
			t.Errorf("cfsctl wrote %s, kedge did not", name)
		}
	}
}

func TestOracle(t *testing.T) {
	random := make([]byte, 1<<20)
	_, _ = rand.Read(random)
	plain := plainImage(t)
	for name, layers := range map[string][][]byte{
		"plain":    plain,
		"labelled": labelledImage(t, "SELINUX=enforcing\nSELINUXTYPE=targeted\n"),
		"disabled": labelledImage(t, "SELINUX=disabled\nSELINUXTYPE=targeted\n"),
		"no type":  labelledImage(t, "SELINUX=enforcing\n"),
		"padded":   append(plain[:1:1], append(plain[1], random[:0]...), append(layerOf(t, file("usr/bin/random", string(random))), make([]byte, 10240)...)),
	} {
		t.Run(name, func(t *testing.T) { testOracle(t, t.TempDir(), layoutOf(t, layers...), true) })
	}
}

func TestOracleSealed(t *testing.T) {
	testOracle(t, verityDir(t), layoutOf(t, plainImage(t)...), false)
}

func TestOracleBaseImage(t *testing.T) {
	testOracle(t, t.TempDir(), lab.BaseImage(t)+":"+lab.TagZstd20, true)
}

func TestOracleChunkedImage(t *testing.T) {
	testOracle(t, t.TempDir(), lab.ChunkedImage(t)+":"+lab.TagChunked, true)
}
