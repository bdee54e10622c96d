package ocibridge_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"

	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// BenchmarkImport imports the image KEDGE_BENCH_IMAGE=LAYOUT:TAG (an OCI
// layout) from a registry over loopback into a store that only hashes, and
// reports the peak of the process's memory.
func BenchmarkImport(b *testing.B) {
	dir, tag, ok := strings.Cut(os.Getenv("KEDGE_BENCH_IMAGE"), ":")
	if !ok {
		b.Skip("KEDGE_BENCH_IMAGE=LAYOUT:TAG is not set")
	}
	reg := newRegistry(b)
	ref := reg.serveLayout(dir, tag)
	for b.Loop() {
		mustImport(b, ref, options(b, reg.host), storetest.NewDiscard())
	}
	b.ReportMetric(float64(peakRSS(b))/1e6, "peak-MB")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapSys)/1e6, "heap-MB")
}

// serveLayout serves an image of an OCI layout.
func (r *testRegistry) serveLayout(dir, tag string) string {
	r.t.Helper()
	read := func(d digest.Digest) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()))
		if err != nil {
			r.t.Fatal(err)
		}
		return data
	}
	index, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := manifest.OCI1IndexFromManifest(index)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range list.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] != tag {
			continue
		}
		data := read(m.Digest)
		img, err := manifest.OCI1FromManifest(data)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, l := range append(img.Layers, img.Config) {
			r.files[l.Digest.String()] = filepath.Join(dir, "blobs", l.Digest.Algorithm().String(), l.Digest.Encoded())
		}
		r.putManifest("bench:"+tag, data, m.MediaType)
		return r.host + "/bench:" + tag
	}
	r.t.Fatalf("%s has no tag %s", dir, tag)
	return ""
}

func peakRSS(t testing.TB) (bytes int64) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			for _, c := range f[1] {
				bytes = bytes*10 + int64(c-'0')
			}
		}
	}
	return bytes * 1024
}
