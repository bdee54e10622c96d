package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// noise is content that does not compress.
func noise(n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func noisyLayer(t testing.TB, n int) blob {
	return gzipLayer(tarOf(t, map[string]string{"usr/lib/big": noise(n)}, tar.Header{Name: "usr/lib/big", Mode: 0o644}))
}

// cut serves at most n bytes and then drops the connection.
func cut(w http.ResponseWriter, r *http.Request, data []byte, n int) {
	from := 0
	if s := r.Header.Get("Range"); s != "" {
		fmt.Sscanf(s, "bytes=%d-", &from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Write(data[from:min(from+n, len(data))])
	if from+n < len(data) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func isLayer(data []byte) bool { return len(data) > 1<<10 }

func quick(opt ocibridge.Options) ocibridge.Options {
	opt.Retry = ocibridge.Retry{Attempts: 4, Wait: time.Millisecond, Stall: 2 * time.Second}
	return opt
}

// TestBrokenConnections imports from a registry that breaks in the middle of a
// layer; each case says whether the transfer gets through and how.
func TestBrokenConnections(t *testing.T) {
	tests := []struct {
		name string
		// serve answers the nth request (from 0) for the layer.
		serve func(n int, w http.ResponseWriter, r *http.Request, data []byte) bool
		kind  fault.Kind // 0: the import succeeds
		check func(t *testing.T, ranges []string)
	}{
		{
			name: "every connection dies after 300 kB",
			serve: func(_ int, w http.ResponseWriter, r *http.Request, data []byte) bool {
				cut(w, r, data, 300<<10)
				return true
			},
			check: func(t *testing.T, ranges []string) {
				for _, r := range ranges[1:] {
					if r == "" {
						t.Errorf("a connection was opened without a Range: %q", ranges)
					}
				}
			},
		},
		{
			name: "the registry restarts: 503 three times in between",
			serve: func(n int, w http.ResponseWriter, r *http.Request, data []byte) bool {
				switch {
				case n == 0:
					cut(w, r, data, 1<<20)
				case n < 4:
					http.Error(w, "starting", http.StatusServiceUnavailable)
				default:
					return false
				}
				return true
			},
		},
		{
			name: "503 before the first byte",
			serve: func(n int, w http.ResponseWriter, _ *http.Request, _ []byte) bool {
				if n < 2 {
					http.Error(w, "starting", http.StatusServiceUnavailable)
				}
				return n < 2
			},
		},
		{
			name: "no Range support",
			serve: func(n int, w http.ResponseWriter, r *http.Request, data []byte) bool {
				r.Header.Del("Range")
				if n < 3 {
					cut(w, r, data, 700<<10)
				} else {
					w.Write(data)
				}
				return true
			},
		},
		{
			name: "down for good",
			serve: func(n int, w http.ResponseWriter, r *http.Request, data []byte) bool {
				if n == 0 {
					cut(w, r, data, 1<<20)
				} else {
					http.Error(w, "gone fishing", http.StatusBadGateway)
				}
				return true
			},
			kind: fault.Unavailable,
		},
		{
			name: "stalls and works again",
			serve: func(n int, w http.ResponseWriter, r *http.Request, data []byte) bool {
				if n == 0 {
					w.Header().Set("Content-Length", fmt.Sprint(len(data)))
					w.Write(data[:1<<20])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					return true
				}
				return false
			},
		},
		{
			name: "truncated in the registry",
			serve: func(_ int, w http.ResponseWriter, r *http.Request, data []byte) bool {
				r.Header.Del("Range")
				w.Write(data[:len(data)/2])
				return true
			},
			kind: fault.Untrusted,
		},
		{
			name: "one bit changed",
			serve: func(_ int, w http.ResponseWriter, _ *http.Request, data []byte) bool {
				changed := bytes.Clone(data)
				changed[len(data)/2] ^= 4
				w.Write(changed)
				return true
			},
			kind: fault.Untrusted,
		},
		{
			name: "longer than it should be",
			serve: func(_ int, w http.ResponseWriter, _ *http.Request, data []byte) bool {
				w.Write(append(bytes.Clone(data), "more"...))
				return true
			},
			kind: fault.Untrusted,
		},
		{
			name: "no such blob",
			serve: func(_ int, w http.ResponseWriter, _ *http.Request, _ []byte) bool {
				http.NotFound(w, nil)
				return true
			},
			kind: fault.NotFound,
		},
		{
			name: "forbidden",
			serve: func(_ int, w http.ResponseWriter, _ *http.Request, _ []byte) bool {
				http.Error(w, `{"errors":[{"code":"DENIED","message":"no"}]}`, http.StatusForbidden)
				return true
			},
			kind: fault.Denied,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			reg := newRegistry(t)
			var ranges []string
			reg.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
				if !isLayer(data) {
					return false
				}
				ranges = append(ranges, r.Header.Get("Range"))
				return tt.serve(len(ranges)-1, w, r, data)
			}
			content := noise(2 << 20)
			ref := reg.push("os/base:1", imageSpec{layers: []blob{noisyLayer(t, len(content))}})
			store := storetest.NewMem()
			img, err := importRef(t, ref, quick(options(t, reg.host)), store)
			if got := fault.KindOf(err); got != tt.kind {
				t.Fatalf("the import ended with %v (%v), want %v", err, got, tt.kind)
			}
			if store.OpenWriters() != 0 {
				t.Error("a layer was neither committed nor aborted")
			}
			if err == nil && img.Tree.Lookup("usr/lib/big").Content != sha(content) {
				t.Error("the content is not what was pushed")
			}
			if err != nil && store.Layers() != 0 {
				t.Error("a layer was committed that could not be verified")
			}
			if tt.check != nil {
				tt.check(t, ranges)
			}
		})
	}
}

// TestVerifiedLayersAreKept: what was committed before another layer failed is
// not fetched again.
func TestVerifiedLayersAreKept(t *testing.T) {
	reg := newRegistry(t)
	good, bad := noisyLayer(t, 1<<20), noisyLayer(t, 3<<20)
	broken := true
	asked := map[int]int{}
	reg.serve = func(w http.ResponseWriter, _ *http.Request, data []byte) bool {
		asked[len(data)]++
		if broken && len(data) == len(bad.data) {
			http.NotFound(w, nil)
			return true
		}
		return false
	}
	ref := reg.push("os/base:1", imageSpec{layers: []blob{good, bad}})
	opt := quick(options(t, reg.host))
	opt.Parallel = 1
	store := storetest.NewMem()
	if _, err := importRef(t, ref, opt, store); fault.KindOf(err) != fault.NotFound {
		t.Fatalf("import with a missing layer: %v", err)
	}
	broken = false
	mustImport(t, ref, opt, store)
	if asked[len(good.data)] != 1 {
		t.Errorf("the good layer was fetched %d times, want once", asked[len(good.data)])
	}
}

func TestCancel(t *testing.T) {
	reg := newRegistry(t)
	ctx, cancel := context.WithCancel(t.Context())
	reg.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if !isLayer(data) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:1<<20])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	}
	ref, err := ocibridge.ParseReference(reg.push("os/base:1", imageSpec{layers: []blob{noisyLayer(t, 2<<20)}}), "")
	if err != nil {
		t.Fatal(err)
	}
	src, err := ocibridge.Open(ctx, ref, options(t, reg.host))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	store := storetest.NewMem()
	start := time.Now()
	_, err = src.Import(ctx, store)
	if !errors.Is(err, context.Canceled) || fault.KindOf(err) != fault.Interrupted {
		t.Errorf("import ended with %v (%v), want interrupted", err, fault.KindOf(err))
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("it took %s to stop", d)
	}
	if store.OpenWriters() != 0 || store.Layers() != 0 {
		t.Error("the cancelled layer was not aborted")
	}
}

func TestOpenErrors(t *testing.T) {
	reg := newRegistry(t)
	reg.push("os/base:1", imageSpec{layers: []blob{noisyLayer(t, 10)}})
	answer := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			w.Write([]byte(body))
		}))
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	down := httptest.NewServer(nil)
	down.Close()
	tests := []struct {
		name, ref string
		kind      fault.Kind
		hint      string
	}{
		{"unknown tag", reg.host + "/os/base:2", fault.NotFound, "tag"},
		{"unknown repository", reg.host + "/os/other:1", fault.NotFound, "name"},
		{"unknown digest", reg.host + "/os/base@" + digest.FromString("x").String(), fault.NotFound, "digest"},
		{"unreachable", strings.TrimPrefix(down.URL, "http://") + "/os/base:1", fault.Unavailable, "network"},
		{"no such host", "registry.invalid/os/base:1", fault.Unavailable, "network"},
		{"500", answer(500, "oops") + "/os/base:1", fault.Unavailable, ""},
		{"401", answer(401, `{"errors":[{"code":"UNAUTHORIZED"}]}`) + "/os/base:1", fault.Denied, "/etc/ostree/auth.json"},
		{"403", answer(403, `{"errors":[{"code":"DENIED"}]}`) + "/os/base:1", fault.Denied, "podman login"},
		{"404 without JSON", answer(404, "<html>") + "/os/base:1", fault.NotFound, "name"},
		{"403 without JSON", answer(403, "<html>") + "/os/base:1", fault.Denied, "log in"},
		{"a page instead of a manifest", answer(200, "<html>hotel wifi</html>") + "/os/base:1", fault.Conflict, ""},
		{"no layout", "oci:/nonexistent/dir:1", fault.NotFound, ""},
		{"no dir", "dir:/nonexistent/dir", fault.NotFound, ""},
		{"no archive", "oci-archive:/nonexistent/file", fault.NotFound, ""},
		{"no tag in the layout", "oci:testdata/chunked/oci:nosuch", fault.NotFound, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host, _, _ := strings.Cut(tt.ref, "/")
			_, err := importRef(t, tt.ref, quick(options(t, host)), storetest.NewMem())
			if got := fault.KindOf(err); got != tt.kind {
				t.Errorf("%v (%v), want %v", err, got, tt.kind)
			}
			if !strings.Contains(fault.HintOf(err), tt.hint) {
				t.Errorf("hint %q does not speak of %q", fault.HintOf(err), tt.hint)
			}
		})
	}
}

// TestSilentRegistry: a registry that accepts connections and never answers.
func TestSilentRegistry(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	opt := options(t, host)
	opt.Retry.Stall = 50 * time.Millisecond
	_, err := importRef(t, host+"/os/base:1", opt, storetest.NewMem())
	if fault.KindOf(err) != fault.Unavailable {
		t.Errorf("%v (%v), want unavailable", err, fault.KindOf(err))
	}
}

// TestSwappedManifest: a registry answers a digest with another manifest.
func TestSwappedManifest(t *testing.T) {
	reg := newRegistry(t)
	want := imageSpec{layers: []blob{smallLayer(t, "a")}}.build(t)
	reg.push("os/base:1", imageSpec{layers: []blob{smallLayer(t, "evil")}})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = strings.Replace(r.URL.Path, want.digest().String(), "1", 1)
		reg.inner.ServeHTTP(w, r)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	_, err := importRef(t, host+"/os/base@"+want.digest().String(), options(t, host), storetest.NewMem())
	if fault.KindOf(err) != fault.Untrusted {
		t.Errorf("%v (%v), want untrusted", err, fault.KindOf(err))
	}
}
