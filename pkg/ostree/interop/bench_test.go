package interop_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ostree"
)

// BenchmarkImport imports an image, KEDGE_BENCH_IMAGE=oci:DIR:TAG, into an empty
// repository, and then again, which is what an upgrade that changes one file
// costs at most. It reports the seconds of each phase and the peak RSS in MB.
func BenchmarkImport(b *testing.B) {
	ref := os.Getenv("KEDGE_BENCH_IMAGE")
	if ref == "" {
		b.Skip("KEDGE_BENCH_IMAGE names no image")
	}
	policy := filepath.Join(b.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		b.Fatal(err)
	}
	reference, err := ocibridge.ParseReference(ref, "")
	if err != nil {
		b.Fatal(err)
	}
	once := func(r *ostree.Repo, opts ostree.ImportOptions, which string) {
		start := time.Now()
		phase := func(name string) {
			b.ReportMetric(time.Since(start).Seconds(), "s/"+which+name)
			start = time.Now()
		}
		im := newImport(b, r, opts)
		src, err := ocibridge.Open(b.Context(), reference, ocibridge.Options{Root: b.TempDir(), PolicyFile: policy})
		if err != nil {
			b.Fatal(err)
		}
		img, err := src.Import(b.Context(), store{im})
		if err != nil {
			b.Fatal(err)
		}
		phase("fetch")
		c := container(b, img, im, ref)
		phase("prepare")
		if _, err := im.WriteContainer(b.Context(), c); err != nil {
			b.Fatal(err)
		}
		phase("write")
		runtime.KeepAlive(img)
		_ = im.Close()
		_ = src.Close()
		b.ReportMetric(float64(im.Rehashed), which+"rehashed")
		b.ReportMetric(peakMB(b), "MB-peak")
	}
	for b.Loop() {
		r, opts := openRepo(b), ostree.ImportOptions{State: openState(b)}
		once(r, opts, "")
		once(r, opts, "again-")
	}
}

func peakMB(b *testing.B) float64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if rest, ok := strings.CutPrefix(string(line), "VmHWM:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) / 1024
		}
	}
	return 0
}
