package composefs

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/pkg/fault"
)

func testDigest(alg Algorithm, fill byte) Digest {
	return Digest(bytes.Repeat([]byte{fill}, alg.Size()))
}

// sampleStream is a stream of objects 1, 2, 1 with text between them.
func sampleStream(t testing.TB, alg Algorithm) []byte {
	t.Helper()
	w := newStreamWriter(alg, typeLayer)
	err := errors.Join(
		w.Inline([]byte("head")), w.Inline([]byte("er")), w.Object(testDigest(alg, 1), 3), w.Object(testDigest(alg, 2), 3),
		w.Inline([]byte("middle")), w.Object(testDigest(alg, 1), 3), w.Inline([]byte("end")))
	data, ferr := w.Finish([]streamRef{{"b:ref", testDigest(alg, 8)}, {"a", testDigest(alg, 9)}, {"c", testDigest(alg, 9)}})
	if err = errors.Join(err, ferr); err != nil {
		t.Fatal(err)
	}
	return data
}

func openFill(d Digest) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(strings.Repeat(string('0'+rune(d[0])), 3))), nil
}

func TestSplitstream(t *testing.T) {
	for _, alg := range []Algorithm{SHA256, SHA512} {
		data := sampleStream(t, alg)
		s, err := decodeStream(data, alg)
		if err != nil {
			t.Fatal(err)
		}
		want := &splitstream{
			Kind: typeLayer, Size: 24, Objects: []Digest{testDigest(alg, 1), testDigest(alg, 2)},
			Refs: []streamRef{{"a", testDigest(alg, 9)}, {"b:ref", testDigest(alg, 8)}, {"c", testDigest(alg, 9)}},
		}
		got := *s
		got.body = nil
		if diff := cmp.Diff(want, &got, cmp.AllowUnexported(splitstream{})); diff != "" {
			t.Errorf("%v: the stream read back differs (-want +got):\n%s", alg, diff)
		}
		r, err := s.Original(openFill)
		if err != nil {
			t.Fatal(err)
		}
		original, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || string(original) != "header111222middle111end" {
			t.Errorf("%v: the original is %q, %v", alg, original, err)
		}
		// The order of fields that bootc had up to 1.15.
		old := bytes.Clone(data)
		copy(old, bytes.Join([][]byte{data[16:32], data[12:14], data[:12], data[14:16]}, nil))
		if s, err := decodeStream(old, alg); err != nil || s.Size != 24 {
			t.Errorf("%v: a stream with the old header: %+v, %v", alg, s, err)
		}
		other := map[Algorithm]Algorithm{SHA256: SHA512, SHA512: SHA256}[alg]
		if _, err := decodeStream(data, other); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%v: read with another algorithm: %v, want corrupt", alg, err)
		}
	}
}

// TestSplitstreamHostile reads every stream that is cut or has one byte changed.
func TestSplitstreamHostile(t *testing.T) {
	data := sampleStream(t, SHA256)
	for i := range data {
		if _, err := decodeStream(data[:i], SHA256); err == nil {
			t.Errorf("a stream cut at %d of %d bytes is read", i, len(data))
		}
		bad := bytes.Clone(data)
		bad[i] ^= 0xff
		readHostile(t, bad)
	}
}

func readHostile(t testing.TB, data []byte) {
	s, err := decodeStream(data, SHA256)
	if err != nil {
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("error %v is not of kind corrupt", err)
		}
		return
	}
	r, err := s.Original(openFill)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
	_ = r.Close()
}

func FuzzSplitstream(f *testing.F) {
	f.Add(sampleStream(f, SHA256))
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, data []byte) { readHostile(t, data) })
}

func TestLayerFile(t *testing.T) {
	l := &savedLayer{
		stream: testDigest(SHA512, 3), index: []byte("an index"),
		objects: []savedObject{{[32]byte{1}, testDigest(SHA512, 4), 65}, {[32]byte{2}, testDigest(SHA512, 5), 1 << 40}}, inline: []string{"x", strings.Repeat("y", 64)},
	}
	var file bytes.Buffer
	if err := l.write(&file); err != nil {
		t.Fatal(err)
	}
	data := file.Bytes()
	got, err := decodeLayerFile(data, SHA512)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l, got, cmp.AllowUnexported(savedLayer{}, savedObject{})); diff != "" {
		t.Errorf("the layer read back differs (-want +got):\n%s", diff)
	}
	if _, err := decodeLayerFile(data, SHA256); err == nil {
		t.Error("a layer of another algorithm is read")
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		if _, err := decodeLayerFile(bad, SHA512); err == nil {
			t.Errorf("a layer file with byte %d changed is read", i)
		}
		if _, err := decodeLayerFile(data[:i], SHA512); err == nil {
			t.Errorf("a layer file cut at %d is read", i)
		}
	}
}

func TestKarg(t *testing.T) {
	d, s := testDigest(SHA512, 7), testDigest(SHA256, 6)
	for _, tc := range []struct {
		args string
		want *Karg
	}{
		{"quiet root=UUID=1", nil},
		{"composefs=" + d.String(), &Karg{Digest: d}},
		{"composefs=?" + d.String() + " rw", &Karg{Digest: d, AllowNoVerity: true}},
		{"composefs=" + d.String() + " composefs=" + s.String(), &Karg{Digest: d}},
		{"composefs.digest=v1-sha512-12:" + d.String() + " composefs.digest=v1-sha256-12:" + s.String(), &Karg{Digest: d}},
		{"composefs.digest=v1-sha512-12:" + d.String() + " composefs=" + s.String(), &Karg{Digest: d}},
		{"composefs.digest=?v2-sha256-12:" + s.String(), &Karg{Digest: s, AllowNoVerity: true}},
	} {
		got, err := ParseKarg(strings.Fields(tc.args))
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tc.args, err, diff)
		}
	}
	for _, k := range []Karg{{Digest: d}, {Digest: d, AllowNoVerity: true}} {
		if got, err := ParseKarg([]string{k.String()}); err != nil || *got != k {
			t.Errorf("%s is read as %+v, %v", k, got, err)
		}
	}
	for _, bad := range []string{"composefs=", "composefs=abc", "composefs=" + d.String()[1:], "composefs.digest=" + d.String(), "composefs.digest=v1-sha256-12:" + d.String(), "composefs.digest=vx-sha512-12:" + d.String()} {
		if k, err := ParseKarg([]string{bad}); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%s is read as %+v, %v; want corrupt", bad, k, err)
		}
	}
}

func TestTagNames(t *testing.T) {
	for tag, ref := range map[string]string{"a:b": "oci/a:b", "localhost/bootc-sha256:1": "oci/localhost%2Fbootc-sha256:1", "50%2F/x": "oci/50%252F%2Fx"} {
		if got := tagRef(tag); got != ref {
			t.Errorf("the ref of %s is %s, want %s", tag, got, ref)
		}
		if got, ok := tagOf(ref); !ok || got != tag {
			t.Errorf("the tag of %s is %s, want %s", ref, got, tag)
		}
	}
}

func TestMeta(t *testing.T) {
	b, err := newMeta(SHA512).encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := decodeMeta(b)
	if err != nil || m.writable() != nil || m.alg != SHA512 || m.imageOptions() != (ImageOptions{1, 1, SHA512}) {
		t.Errorf("kedge's own meta.json is read as %+v, %v", m, err)
	}
	// Repositories from before there was erofs_formats.
	if m, err = decodeMeta([]byte(`{"version":1,"algorithm":"fsverity-sha256-12","features":{"read-only-compatible":["v1_erofs"]}}`)); err != nil || m.writable() != nil || m.Formats.Default != 1 {
		t.Errorf("a repository with the flag v1_erofs alone is %+v, %v", m, err)
	}
	if _, err := decodeMeta([]byte("{")); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("a torn meta.json: %v, want corrupt", err)
	}
}
