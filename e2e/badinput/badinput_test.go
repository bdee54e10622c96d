// Package badinput gives kedge what it has to refuse and shows that it says so
// with the right exit status and words, and that the sysroot stays as it was.
package badinput

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

// answer is what a run of kedge ended with.
type answer struct {
	exit   int
	stderr string
}

// ask runs kedge, which has to fail.
func ask(t *testing.T, env []string, argv ...string) answer {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("%s: %v; it has to fail\n%s", strings.Join(argv, " "), err, errs.String())
	}
	return answer{exit.ExitCode(), errs.String()}
}

// refuse checks exit status, message and hint, and that no word of Go's
// internals reached the user.
func (a answer) refuse(t *testing.T, kind fault.Kind, words ...string) {
	t.Helper()
	if a.exit != kind.ExitCode() {
		t.Errorf("exit status %d, want %d (%s)\n%s", a.exit, kind.ExitCode(), kind, a.stderr)
	}
	if !strings.Contains(a.stderr, "error: ") || !strings.Contains(a.stderr, "\nhint: ") && kind != fault.Interrupted {
		t.Errorf("standard error has no error and hint:\n%s", a.stderr)
	}
	for _, w := range words {
		if !strings.Contains(a.stderr, w) {
			t.Errorf("the message does not say %q:\n%s", w, a.stderr)
		}
	}
	for _, w := range []string{"panic:", "goroutine "} {
		if strings.Contains(a.stderr, w) {
			t.Errorf("kedge crashed:\n%s", a.stderr)
		}
	}
}

// world is what the cases share: kedge, and a sysroot that runs version 1.
type world struct {
	backend        offline.Backend
	kedge, sysroot string
	env            []string
}

// onAll runs a test on each backend.
func onAll(t *testing.T, test func(*testing.T, offline.Backend)) {
	lab.Need(t, "ostree", "go")
	lab.NeedRoot(t)
	for _, b := range offline.Backends {
		t.Run(string(b), func(t *testing.T) { test(t, b) })
	}
}

func newWorld(t *testing.T, b offline.Backend) *world {
	t.Helper()
	w := &world{backend: b, kedge: offline.BuildKedge(t)}
	good := filepath.Join(t.TempDir(), "good")
	smallimage.Layout(t, good, map[string]v1.Image{"v1": smallimage.New(t, "1", smallimage.OS(1))})
	w.sysroot = b.Install(t, w.kedge, "oci:"+good+":v1")
	return w
}

// switchTo runs kedge switch and compares the sysroot with what it was.
func (w *world) switchTo(t *testing.T, image string, env ...string) answer {
	t.Helper()
	before := offline.List(t, w.sysroot)
	a := ask(t, append(w.env, env...), w.kedge, "--sysroot", w.sysroot, "switch", image)
	if d := offline.Differences(offline.List(t, w.sysroot), before); d != "" {
		t.Errorf("the sysroot is not as it was:%s", d)
	}
	return a
}

// layout puts an image into a layout of its own and returns it with its
// reference.
func layout(t *testing.T, img v1.Image) (dir, ref string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "layout")
	smallimage.Layout(t, dir, map[string]v1.Image{"bad": img})
	return dir, "oci:" + dir + ":bad"
}

// osWith is version 2 of the small OS with more entries.
func osWith(more ...smallimage.Entry) []smallimage.Entry {
	return append(smallimage.OS(2), more...)
}

// osWithout is version 2 without the paths that contain part.
func osWithout(part string) (entries []smallimage.Entry) {
	for _, e := range smallimage.OS(2) {
		if !strings.Contains(e.Name, part) {
			entries = append(entries, e)
		}
	}
	return entries
}

// blobImage has one layer, of these compressed bytes, which claims the diffID
// of raw.
func blobImage(t *testing.T, blob, raw []byte) v1.Image {
	t.Helper()
	l, err := smallimage.NewLayer(blob, raw)
	if err != nil {
		t.Fatal(err)
	}
	img, err := smallimage.Image("2", l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func tarOf(t *testing.T, entries []smallimage.Entry) []byte {
	t.Helper()
	raw, err := smallimage.Tar(entries)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func withConfig(t *testing.T, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	img := smallimage.New(t, "2", smallimage.OS(2))
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	change(config)
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestImagesThatAreRefused are images that lie in a layout as they should, and
// are wrong.
func TestImagesThatAreRefused(t *testing.T) { onAll(t, imagesThatAreRefused) }

func imagesThatAreRefused(t *testing.T, b offline.Backend) {
	w := newWorld(t, b)
	device := smallimage.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "usr/lib/console", Mode: 0o600, Devmajor: 5, Devminor: 1}}
	good := tarOf(t, smallimage.OS(2))
	huge := smallimage.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "usr/share/sparse", Mode: 0o644}}
	for _, tc := range []struct {
		name  string
		image v1.Image
		kind  fault.Kind
		words []string
	}{
		{"wrong diffID", blobImage(t, smallimage.Gzip(good), []byte("another tar")), fault.Untrusted, []string{"diffID"}},
		{"another architecture", withConfig(t, func(c *v1.ConfigFile) { c.Architecture = "s390x" }), fault.Conflict, []string{"s390x"}},
		{"no containers.bootc label", withConfig(t, func(c *v1.ConfigFile) { c.Config.Labels = nil }), fault.Conflict, []string{"containers.bootc"}},
		{"no kernel", smallimage.New(t, "2", osWithout("usr/lib/modules/")), fault.Conflict, []string{"kernel"}},
		{"two kernels", smallimage.New(t, "2", osWith(smallimage.Kernel("7.0")...)), fault.Conflict, []string{"kernel"}},
		{"a name with ..", smallimage.New(t, "2", osWith(smallimage.File("usr/../../evil", 0, "x"))), fault.Corrupt, []string{"usr/../../evil"}},
		{"an absolute name", smallimage.New(t, "2", osWith(smallimage.File("/etc/evil", 0, "x"))), fault.Corrupt, []string{"/etc/evil", "absolute"}},
		{"a name through a symlink out of the root", smallimage.New(t, "2", osWith(smallimage.Symlink("usr/out", "../../../../tmp"), smallimage.File("usr/out/evil", 0, "x"))), fault.Corrupt, []string{"usr/out"}},
		{"a hard link to outside", smallimage.New(t, "2", osWith(smallimage.Hardlink("usr/evil", "../../etc/shadow"))), fault.Corrupt, []string{"usr/evil"}},
		{"a hard link to nothing", smallimage.New(t, "2", osWith(smallimage.Hardlink("usr/evil", "usr/nothing"))), fault.Corrupt, []string{"usr/evil"}},
		{"a device node", smallimage.New(t, "2", osWith(device)), fault.Conflict, []string{"usr/lib/console"}},
		{"10 million entries", blobImage(t, manyEntries(t, 10_000_000), []byte("never reached")), fault.Corrupt, []string{"entries"}},
		{"a sparse file of 1 TiB", blobImage(t, smallimage.Gzip(sparse(t, huge, 1<<40)), nil), fault.Corrupt, []string{"usr/share/sparse"}},
		{"a tar that ends early", blobImage(t, smallimage.Gzip(good[:len(good)/2+100]), nil), fault.Corrupt, []string{"ends early"}},
		{"gzip garbage", blobImage(t, append(smallimage.Gzip(good)[:4000], bytes.Repeat([]byte("garbage"), 100)...), good), fault.Corrupt, []string{"decompress"}},
		{"no gzip at all", blobImage(t, bytes.Repeat([]byte("garbage"), 1000), good), fault.Corrupt, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if b == offline.Composefs && tc.name == "a device node" {
				return // images hold device nodes
			}
			_, ref := layout(t, tc.image)
			w.switchTo(t, ref).refuse(t, tc.kind, tc.words...)
		})
	}
}

// TestBlobsThatAreNotWhatTheManifestSays damages the layer behind a manifest
// that is right.
func TestBlobsThatAreNotWhatTheManifestSays(t *testing.T) {
	onAll(t, blobsThatAreNotWhatTheManifestSays)
}

func blobsThatAreNotWhatTheManifestSays(t *testing.T, b offline.Backend) {
	w := newWorld(t, b)
	for _, tc := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"truncated", func(b []byte) []byte { return b[:len(b)/2] }},
		{"a flipped bit", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }},
		{"a flipped bit behind the data", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
		{"something behind it", func(b []byte) []byte { return append(b, 0) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := smallimage.New(t, "2", smallimage.OS(2))
			dir, ref := layout(t, img)
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			digest, err := layers[0].Digest()
			if err != nil {
				t.Fatal(err)
			}
			blob := filepath.Join(dir, "blobs", digest.Algorithm, digest.Hex)
			data, err := os.ReadFile(blob)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(blob, tc.damage(data), 0o644); err != nil {
				t.Fatal(err)
			}
			w.switchTo(t, ref).refuse(t, fault.Untrusted, digest.Hex[:12])
		})
	}
}

// TestRegistriesThatDoNotAnswer asks registries for what they do not give.
func TestRegistriesThatDoNotAnswer(t *testing.T) { onAll(t, registriesThatDoNotAnswer) }

func registriesThatDoNotAnswer(t *testing.T, b offline.Backend) {
	w := newWorld(t, b)
	plain, secure := registry(t, false), registry(t, true)
	dir, _ := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	for _, r := range []*lab.Registry{plain, secure} {
		if _, err := r.Push(t.Context(), dir, "bad", "os", "v2"); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", plain.Addr)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CONTAINERS_REGISTRIES_CONF=" + conf}
	for _, tc := range []struct {
		name  string
		fault lab.Fault
		image string
		kind  fault.Kind
		words []string
	}{
		{"unreachable", nil, "127.0.0.1:1/os:v2", fault.Unavailable, []string{"127.0.0.1:1", "refused"}},
		{"no such tag", nil, plain.Repo("os:nope"), fault.NotFound, []string{"nope"}},
		{"no such repository", nil, plain.Repo("nope:v2"), fault.NotFound, []string{"nope"}},
		{"not logged in", lab.Status("/", http.StatusUnauthorized), plain.Repo("os:v2"), fault.Denied, nil},
		{"not allowed", lab.Status("/", http.StatusForbidden), plain.Repo("os:v2"), fault.Denied, nil},
		{"a broken server", lab.Status("/manifests/", http.StatusInternalServerError), plain.Repo("os:v2"), fault.Unavailable, nil},
		{"a layer is gone", lab.Status("/blobs/", http.StatusNotFound), plain.Repo("os:v2"), fault.NotFound, nil},
		{"an unknown CA", nil, secure.Repo("os:v2"), fault.Untrusted, []string{"certificate"}},
		{"malformed reference", nil, "Registry.example/UPPER:tag:tag", fault.Usage, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.fault != nil {
				plain.Inject(tc.fault)
				defer plain.Heal()
			}
			w.switchTo(t, tc.image).refuse(t, tc.kind, tc.words...)
		})
	}
}

func registry(t *testing.T, withTLS bool) *lab.Registry {
	t.Helper()
	r, err := lab.StartRegistry(t.TempDir(), withTLS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// manyEntries is a gzip stream of n tar entries, made of one compressed piece
// again and again: gzip streams can be joined.
func manyEntries(t *testing.T, n int) []byte {
	t.Helper()
	const piece = 10_000
	var entries []smallimage.Entry
	for i := range piece {
		entries = append(entries, smallimage.File(fmt.Sprintf("usr/many/%d", i), 0, ""))
	}
	raw := bytes.TrimRight(tarOf(t, entries), "\x00")
	raw = append(raw, make([]byte, (512-len(raw)%512)%512)...)
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = z.Write(raw)
	_ = z.Close()
	return bytes.Repeat(b.Bytes(), n/piece)
}

// sparse is a tar with a file of one hole, in GNU's PAX format 1.0.
func sparse(t *testing.T, e smallimage.Entry, size int64) []byte {
	t.Helper()
	// The map: no data; padded to a block.
	body := fmt.Sprintf("1\n%d\n0\n", size)
	body += strings.Repeat("\x00", 512-len(body))
	e.Size, e.Body = int64(len(body)), body
	name := e.Name
	e.Name = "usr/share/GNUSparseFile.0/sparse"
	raw := tarOf(t, osWith(e))
	// archive/tar writes no sparse files: the records go in front by hand.
	records := ""
	for _, kv := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", name}, {"GNU.sparse.realsize", fmt.Sprint(size)}} {
		records += paxRecord(kv[0], kv[1])
	}
	header := tarOf(t, []smallimage.Entry{smallimage.File("PaxHeaders/sparse", 0, records)})[:1024]
	header[156] = 'x'
	checksum(header[:512])
	at := bytes.Index(raw, []byte("usr/share/GNUSparseFile.0/"))
	return append(append(append([]byte{}, raw[:at]...), header...), raw[at:]...)
}

func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	for n != len(fmt.Sprintf("%d %s=%s\n", n, key, value)) {
		n++
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// checksum sets the checksum of a tar header.
func checksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}
