package ocibridge_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// TestManifestRetry opens an image at a registry that fails some requests for
// manifests; asked is how many of them there are to be.
func TestManifestRetry(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) }
	}
	hangUp := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	tests := []struct {
		name  string
		tag   string
		fails func(path string, n int32) bool
		how   http.HandlerFunc
		kind  fault.Kind // 0: it is opened
		asked int32
	}{
		{"503 three times", "1", func(_ string, n int32) bool { return n <= 3 }, status(503), 0, 4},
		{"500 once", "1", func(_ string, n int32) bool { return n <= 1 }, status(500), 0, 2},
		{"hangs up twice", "1", func(_ string, n int32) bool { return n <= 2 }, hangUp, 0, 3},
		{"503 for the instance of a list", "list", func(p string, n int32) bool { return n <= 4 && strings.Contains(p, "sha256:") }, status(503), 0, 6},
		{"502 for good", "1", func(string, int32) bool { return true }, status(502), fault.Unavailable, 4},
		{"404", "1", func(string, int32) bool { return true }, status(404), fault.NotFound, 1},
		{"403", "1", func(string, int32) bool { return true }, status(403), fault.Denied, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reg := newRegistry(t)
			spec := imageSpec{layers: []blob{smallLayer(t, "a")}, arch: "amd64"}
			reg.push("os/base:1", spec)
			img := spec.build(t)
			list := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{
				MediaType: img.mediaType, Digest: img.digest(), Size: int64(len(img.manifest)), Platform: &v1.Platform{OS: "linux", Architecture: "amd64"},
			}}}
			list.SchemaVersion = 2
			reg.putManifest("os/base:list", mustJSON(t, list), list.MediaType)
			var asked atomic.Int32
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/") && tt.fails(r.URL.Path, asked.Add(1)) {
					tt.how(w, r)
					return
				}
				reg.handle(w, r)
			}))
			defer front.Close()
			host := strings.TrimPrefix(front.URL, "http://")
			opt := quick(options(t, host))
			opt.Architecture = "amd64"
			err := open(t, host+"/os/base:"+tt.tag, opt)
			if got := fault.KindOf(err); got != tt.kind {
				t.Errorf("%v (%v), want %v", err, got, tt.kind)
			}
			if asked.Load() != tt.asked {
				t.Errorf("%d manifests were asked for, want %d", asked.Load(), tt.asked)
			}
		})
	}
}

func open(t *testing.T, name string, opt ocibridge.Options) error {
	t.Helper()
	ref, err := ocibridge.ParseReference(name, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ocibridge.Open(t.Context(), ref, opt)
	if err != nil {
		return err
	}
	return s.Close()
}

// TestManifestRetryCancel: who waits for a registry to come back can be stopped.
func TestManifestRetryCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusServiceUnavailable)
		time.AfterFunc(50*time.Millisecond, func() { cancel(stopped) })
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	opt := options(t, host)
	opt.Retry.Wait = time.Hour
	ref, err := ocibridge.ParseReference(fmt.Sprintf("%s/os/base:1", host), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ocibridge.Open(ctx, ref, opt); !errors.Is(err, stopped) {
		t.Errorf("%v, want the cause of the cancellation", err)
	}
}
