package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// importLayers imports an image of the given layers from a layout.
func importLayers(t testing.TB, opt ocibridge.Options, layers ...blob) (*ocibridge.Image, error) {
	t.Helper()
	return importRef(t, writeLayout(t, imageSpec{layers: layers}), opt, storetest.NewMem())
}

// writeLayout writes an image as an OCI layout and returns its reference.
func writeLayout(t testing.TB, s imageSpec) string {
	t.Helper()
	dir := t.TempDir()
	b := s.build(t)
	blobs := [][]byte{b.manifest, b.config}
	for _, l := range s.layers {
		blobs = append(blobs, l.data)
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, data := range blobs {
		write("blobs/sha256/"+digest.FromBytes(data).Encoded(), data)
	}
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write("index.json", mustJSON(t, v1.Index{Manifests: []v1.Descriptor{{
		MediaType: b.mediaType, Digest: b.digest(), Size: int64(len(b.manifest)),
		Annotations: map[string]string{v1.AnnotationRefName: "x"},
	}}}))
	return "oci:" + dir + ":x"
}

func TestHostileLayers(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
	}
	symlink := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	pax := func(h tar.Header, records map[string]string) tar.Header {
		h.PAXRecords, h.Format = records, tar.FormatPAX
		return h
	}
	tests := []struct {
		name    string
		headers []tar.Header
		says    string
	}{
		{"dotdot", []tar.Header{file("../etc/passwd")}, "../etc/passwd"},
		{"dotdot inside", []tar.Header{file("usr/../../etc/passwd")}, "usr/../../etc/passwd"},
		{"dotdot at the end", []tar.Header{{Name: "usr/..", Typeflag: tar.TypeDir}}, "usr/.."},
		{"absolute", []tar.Header{file("/etc/passwd")}, "/etc/passwd"},
		{"through its own symlink", []tar.Header{symlink("a", "/etc"), file("a/passwd")}, "a/passwd"},
		{"hard link outside", []tar.Header{link("a", "../../etc/shadow")}, "a"},
		{"hard link to nothing", []tar.Header{link("a", "b")}, "does not exist"},
		{"hard link to itself", []tar.Header{link("a", "a")}, "does not exist"},
		{"hard links in a circle", []tar.Header{link("a", "b"), link("b", "a")}, "does not exist"},
		{"hard link to a directory", []tar.Header{{Name: "d", Typeflag: tar.TypeDir}, link("a", "d")}, "directory"},
		{"hard link to the root", []tar.Header{link("a", "/")}, "nothing"},
		{"root is a file", []tar.Header{file("./.")}, "root"},
		{"root is a symlink", []tar.Header{symlink("./", "/etc")}, "root"},
		{"empty symlink", []tar.Header{symlink("a", "")}, "target"},
		{"name of 256 bytes", []tar.Header{file(strings.Repeat("n", 256))}, "255 bytes"},
		{"path of 5000 bytes", []tar.Header{file(strings.Repeat("abcdefghi/", 500) + "x")}, "4095 bytes"},
		{"target of 4096 bytes", []tar.Header{symlink("a", strings.Repeat("n", 4096))}, "target"},
		{"owner of nobody", []tar.Header{{Name: "a", Uid: math.MaxUint32}}, "user id"},
		{"huge owner", []tar.Header{{Name: "a", Gid: 1 << 40}}, "group id"},
		{"xattr without a name", []tar.Header{pax(file("a"), map[string]string{"SCHILY.xattr.": "x"})}, "attribute"},
		{"xattr name of 256 bytes", []tar.Header{pax(file("a"), map[string]string{"SCHILY.xattr.user." + strings.Repeat("n", 251): "x"})}, "attribute"},
		{"xattr of 64 kB and one", []tar.Header{pax(file("a"), map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 1<<16+1)})}, "attribute"},
		{"whiteout of nothing", []tar.Header{file("usr/.wh.")}, "whiteout"},
		{"whiteout of dotdot", []tar.Header{file("usr/.wh...")}, "whiteout"},
		{"inside a whiteout", []tar.Header{file("usr/.wh.a/b")}, "whiteout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := importLayers(t, options(t), gzipLayer(tarOf(t, nil, tt.headers...)))
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%v (%v), want corrupt, speaking of %q", err, fault.KindOf(err), tt.says)
			}
		})
	}
}

func TestDamagedLayers(t *testing.T) {
	data := tarOf(t, map[string]string{"a": noise(10_000)}, tar.Header{Name: "a", Mode: 0o644}, tar.Header{Name: "b"})
	good := gzipLayer(data)
	raw := func(data []byte, mediaType string) blob { return blob{data, mediaType, digest.FromBytes(data)} }
	tests := []struct {
		name  string
		layer blob
		kind  fault.Kind
	}{
		{"good", good, 0},
		{"garbage after the gzip magic", raw([]byte("\x1f\x8bgarbage, all of it"), v1.MediaTypeImageLayerGzip), fault.Corrupt},
		{"gzip ends early", blob{good.data[:len(good.data)/2], good.mediaType, good.diffID}, fault.Corrupt},
		{"gzip with a wrong checksum", blob{append(bytes.Clone(good.data[:len(good.data)-8]), 1, 2, 3, 4, 5, 6, 7, 8), good.mediaType, good.diffID}, fault.Corrupt},
		{"garbage after the zstd magic", raw([]byte("\x28\xb5\x2f\xfdgarbage, all of it"), v1.MediaTypeImageLayerZstd), fault.Corrupt},
		{"garbage as a tar", gzipLayer([]byte(noise(5000))), fault.Corrupt},
		{"text as a tar", raw([]byte("<html>"+strings.Repeat("x", 2000)), v1.MediaTypeImageLayer), fault.Corrupt},
		{"tar ends in a file", gzipLayer(data[:4096]), fault.Corrupt},
		{"tar ends in a header", gzipLayer(data[:100]), fault.Corrupt},
		{"tar without its end mark", gzipLayer(data[:len(data)-1024]), 0},
		{"empty tar", gzipLayer(make([]byte, 1024)), 0},
		{"nothing", gzipLayer(nil), 0},
		{"bytes after the end mark", gzipLayer(append(bytes.Clone(data), noise(300_000)...)), 0},
		{"wrong diffID", blob{good.data, good.mediaType, digest.FromString("x")}, fault.Untrusted},
		{"bytes after the end mark are not in the diffID", blob{gzipLayer(append(bytes.Clone(data), 'x')).data, good.mediaType, good.diffID}, fault.Untrusted},
		{"gzip called plain", raw2(good, v1.MediaTypeImageLayer), 0},
		{"plain called gzip", blob{data, v1.MediaTypeImageLayerGzip, good.diffID}, 0},
		{"two gzip members", blob{append(gzipLayer(data[:3000]).data, gzipLayer(data[3000:]).data...), good.mediaType, good.diffID}, 0},
		{"zstd with a skippable frame, as zstd:chunked", blob{append(zstdLayer(data).data, "\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"...), v1.MediaTypeImageLayerZstd, good.diffID}, 0},
		{"xz", raw([]byte("\xfd7zXZ\x00 and more"), v1.MediaTypeImageLayer), fault.Conflict},
		{"encrypted", raw2(good, v1.MediaTypeImageLayerGzip+"+encrypted"), fault.Conflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			img, err := importLayers(t, options(t), tt.layer)
			if got := fault.KindOf(err); got != tt.kind {
				t.Fatalf("%v (%v), want %v", err, got, tt.kind)
			}
			if err == nil && fault.HintOf(err) == "" && img.Tree == nil {
				t.Error("no tree")
			}
		})
	}
}

func raw2(b blob, mediaType string) blob { return blob{b.data, mediaType, b.diffID} }

func TestLimits(t *testing.T) {
	many := make([]tar.Header, 1001)
	for i := range many {
		many[i] = tar.Header{Name: fmt.Sprintf("f%d", i)}
	}
	half := make([]tar.Header, 501)
	copy(half, many)
	sparse := sparseTar(1 << 40)
	tests := []struct {
		name   string
		limits ocibridge.Limits
		layers []blob
		says   string
	}{
		{"entries", ocibridge.Limits{Entries: 1000}, []blob{gzipLayer(tarOf(t, nil, many...))}, "f1000"},
		{"entries of all layers", ocibridge.Limits{Entries: 1000}, []blob{gzipLayer(tarOf(t, nil, half...)), zstdLayer(tarOf(t, nil, half[:500]...))}, "1000 entries"},
		{"a sparse file of 1 TiB", ocibridge.Limits{}, []blob{gzipLayer(sparse)}, "sparse"},
		{"bytes of all files", ocibridge.Limits{Bytes: 1500}, []blob{gzipLayer(tarOf(t, map[string]string{"a": noise(1000), "b": noise(1000)}, tar.Header{Name: "a"}, tar.Header{Name: "b"}))}, `"b"`},
		{"decompression bomb", ocibridge.Limits{RatioFrom: 1 << 20, Ratio: 100}, []blob{gzipLayer(tarOf(t, map[string]string{"zero": string(make([]byte, 8<<20))}, tar.Header{Name: "zero"}))}, "bomb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opt := options(t)
			opt.Limits = tt.limits
			_, err := importLayers(t, opt, tt.layers...)
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%v (%v), want corrupt, speaking of %q", err, fault.KindOf(err), tt.says)
			}
		})
	}
}

// sparseTar is a tar with one GNU sparse file: a hole of size bytes.
func sparseTar(size int64) []byte {
	h := make([]byte, 512)
	copy(h, "sparse")
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], "00000000000\x00")
	copy(h[136:], "00000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	octal := func(at int, v int64) { // base-256 where octal is too short
		if v < 1<<33 {
			copy(h[at:], fmt.Sprintf("%011o\x00", v))
			return
		}
		h[at] = 0x80
		for i := 11; i > 0; i-- {
			h[at+i] = byte(v)
			v >>= 8
		}
	}
	octal(386, size) // one fragment of no bytes at the end
	octal(398, 0)
	octal(483, size)
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(h, make([]byte, 1024)...)
}

// TestLayerContents has one of everything that a layer can say.
func TestLayerContents(t *testing.T) {
	mtime := time.Unix(-12345, 987654321)
	long := strings.Repeat("d", 120) + "/" + strings.Repeat("f", 200)
	h := []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o555, Uid: 3},
		{Name: "late-link", Typeflag: tar.TypeLink, Linkname: "./bin/tool"},
		{Name: "bin/tool", Mode: 0o4755, Uid: 1_000_000_000, Gid: 2_000_000_000, ModTime: mtime, Format: tar.FormatPAX, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x00",
			"SCHILY.xattr.user.empty":          "",
			"LIBARCHIVE.xattr.user.other":      "eA==",
		}},
		{Name: "bin/link", Typeflag: tar.TypeLink, Linkname: "/bin/tool"},
		{Name: "bin//./again", Typeflag: tar.TypeSymlink, Linkname: "../bin/\xff"},
		{Name: long, Format: tar.FormatGNU},
		{Name: "caf\xe9\x01", Format: tar.FormatGNU},
		{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Name: "dev/loop", Typeflag: tar.TypeBlock, Devmajor: 7, Devminor: 300},
		{Name: "dev/fifo", Typeflag: tar.TypeFifo, Mode: 0o600},
		{Name: "twice", Mode: 0o600},
		{Name: "twice", Mode: 0o640},
		{Name: "file-then-dir", Mode: 0o600},
		{Name: "file-then-dir/", Typeflag: tar.TypeDir, Mode: 0o700},
		{Name: "file-then-dir/inside", Mode: 0o600},
		{Name: ".wh..wh.aufs", Mode: 0o600},
		{Name: ".wh..wh.plnk/1.2", Mode: 0o600},
		{Name: "...", Mode: 0o600},
	}
	img, err := importLayers(t, options(t), gzipLayer(tarOf(t, map[string]string{"bin/tool": "tool", long: "long"}, h...)))
	if err != nil {
		t.Fatal(err)
	}
	get := func(p string) *fstree.Inode {
		t.Helper()
		n := img.Tree.Lookup(p)
		if n == nil {
			t.Fatalf("%q is missing", p)
		}
		return n
	}
	tool := get("bin/tool")
	if tool != get("bin/link") || tool != get("late-link") || !tool.Linked {
		t.Error("the three names of bin/tool are not one inode")
	}
	if tool.Mode != unix.S_IFREG|0o4755 || tool.UID != 1_000_000_000 || tool.GID != 2_000_000_000 || tool.Size != 4 || tool.Content != sha("tool") {
		t.Errorf("bin/tool is %+v", tool)
	}
	if tool.MtimeSec != mtime.Unix() || tool.MtimeNsec != uint32(mtime.Nanosecond()) {
		t.Errorf("bin/tool's mtime is %d.%09d, want %d.%09d", tool.MtimeSec, tool.MtimeNsec, mtime.Unix(), mtime.Nanosecond())
	}
	if v, _ := tool.Xattrs.Get("security.capability"); v != "\x01\x00\x00\x02\x00\x00" || len(tool.Xattrs.All()) != 2 {
		t.Errorf("bin/tool's xattrs are %q", tool.Xattrs.All())
	}
	if n := get("bin/again"); n.Target != "../bin/\xff" {
		t.Errorf("symlink to %q", n.Target)
	}
	if n := get(long); n.Content != sha("long") {
		t.Error("the long name's content is wrong")
	}
	get("caf\xe9\x01")
	if n := get("dev/null"); n.Mode != unix.S_IFCHR|0o666 || n.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("dev/null is %+v", n)
	}
	if n := get("dev/loop"); n.Type() != unix.S_IFBLK || n.Rdev != unix.Mkdev(7, 300) {
		t.Errorf("dev/loop is %+v", n)
	}
	if n := get("dev/fifo"); n.Type() != unix.S_IFIFO {
		t.Errorf("dev/fifo is %+v", n)
	}
	if n := get("twice"); n.Mode&0o777 != 0o640 {
		t.Error("of two entries the last must count")
	}
	get("file-then-dir/inside")
	get("...")
	if img.Tree.Root.Mode != unix.S_IFDIR|0o555 || img.Tree.Root.UID != 3 {
		t.Errorf("the root is %+v", img.Tree.Root)
	}
	if n := img.Tree.Lookup(".wh..wh.aufs"); n != nil || img.Tree.Lookup(".wh..wh.plnk") != nil {
		t.Error("aufs's bookkeeping is in the tree")
	}
}

// TestWhiteouts merges two layers; the upper hides and replaces.
func TestWhiteouts(t *testing.T) {
	lower := tarOf(t, nil,
		tar.Header{Name: "a/1"}, tar.Header{Name: "a/2"}, tar.Header{Name: "b/1"}, tar.Header{Name: "b/sub/2"},
		tar.Header{Name: "file"}, tar.Header{Name: "dir/x"}, tar.Header{Name: "old"})
	upper := tarOf(t, map[string]string{"a/1": "new"},
		tar.Header{Name: "a/1"}, tar.Header{Name: "a/.wh.1"}, tar.Header{Name: "a/.wh.missing"},
		tar.Header{Name: "b/3"}, tar.Header{Name: "b/.wh..wh..opq"},
		tar.Header{Name: ".wh.file"}, tar.Header{Name: "file/now-a-dir"},
		tar.Header{Name: "dir", Typeflag: tar.TypeSymlink, Linkname: "a"},
		tar.Header{Name: "name", Typeflag: tar.TypeLink, Linkname: "old"})
	img, err := importLayers(t, options(t), gzipLayer(lower), zstdLayer(upper))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	img.Tree.Walk(func(p string, n *fstree.Inode) error {
		if !n.IsDir() {
			got = append(got, p)
		}
		return nil
	})
	want := "a/1 a/2 b/3 dir file/now-a-dir name old"
	if strings.Join(got, " ") != want {
		t.Errorf("the tree has %q, want %q", strings.Join(got, " "), want)
	}
	if img.Tree.Lookup("a/1").Content != sha("new") {
		t.Error("a whiteout hides a file of its own layer")
	}
	if img.Tree.Lookup("name") != img.Tree.Lookup("old") {
		t.Error("a hard link to a file of a lower layer is another inode")
	}
}

// TestSparse reads what GNU tar and bsdtar make of sparse files.
func TestSparse(t *testing.T) {
	lab.Need(t, "tar")
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(30) {
		f.WriteAt([]byte("data"), i<<20)
	}
	if err := f.Truncate(40 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	content, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		t.Run(strings.Join(format, " "), func(t *testing.T) {
			out, err := exec.Command("tar", append(format, "--sparse", "-C", dir, "-cf", "-", "sparse")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(out) > 1<<20 {
				t.Fatalf("the tar has %d bytes: it is not sparse", len(out))
			}
			img, err := importLayers(t, options(t), gzipLayer(out))
			if err != nil {
				t.Fatal(err)
			}
			if n := img.Tree.Lookup("sparse"); n == nil || n.Size != int64(len(content)) || n.Content != sha(string(content)) {
				t.Errorf("the file is %+v", n)
			}
		})
	}
}
