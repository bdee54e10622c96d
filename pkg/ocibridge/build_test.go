package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// blob is a layer or config as a registry holds it.
type blob struct {
	data      []byte
	mediaType string
	diffID    digest.Digest
}

func plainLayer(tarData []byte) blob {
	return blob{tarData, v1.MediaTypeImageLayer, digest.FromBytes(tarData)}
}

func gzipLayer(tarData []byte) blob {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	w.Write(tarData)
	w.Close()
	return blob{b.Bytes(), v1.MediaTypeImageLayerGzip, digest.FromBytes(tarData)}
}

func zstdLayer(tarData []byte) blob {
	w, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	return blob{w.EncodeAll(tarData, nil), v1.MediaTypeImageLayerZstd, digest.FromBytes(tarData)}
}

// tarOf makes a tar of headers; a header's content is taken from the map.
func tarOf(t testing.TB, content map[string]string, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content[h.Name]))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("tar header %q: %v", h.Name, err)
		}
		io.WriteString(w, content[h.Name][:h.Size])
	}
	w.Close()
	return b.Bytes()
}

// imageSpec is an image to be built; what is left out is right.
type imageSpec struct {
	layers      []blob
	labels      map[string]string
	arch        string
	annotations map[string]string
	docker      bool
	diffIDs     []digest.Digest // instead of the layers' own
}

type built struct {
	manifest, config []byte
	mediaType        string
}

func (b built) digest() digest.Digest { return digest.FromBytes(b.manifest) }

func (s imageSpec) build(t testing.TB) built {
	t.Helper()
	if s.labels == nil {
		s.labels = map[string]string{"containers.bootc": "1"}
	}
	if s.arch == "" {
		s.arch = runtime.GOARCH
	}
	c := v1.Image{Platform: v1.Platform{Architecture: s.arch, OS: "linux"}, Config: v1.ImageConfig{Labels: s.labels}}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Annotations: s.annotations}
	configType := v1.MediaTypeImageConfig
	if s.docker {
		m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
		configType = "application/vnd.docker.container.image.v1+json"
	}
	c.RootFS.Type = "layers"
	c.RootFS.DiffIDs = s.diffIDs
	for _, l := range s.layers {
		if s.diffIDs == nil {
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diffID)
		}
		mt := l.mediaType
		if s.docker {
			mt = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: mt, Digest: digest.FromBytes(l.data), Size: int64(len(l.data))})
	}
	config := mustJSON(t, c)
	m.Config = v1.Descriptor{MediaType: configType, Digest: digest.FromBytes(config), Size: int64(len(config))}
	return built{mustJSON(t, m), config, m.MediaType}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testRegistry is a real registry in this process. Blobs are served by a
// handler of its own, so that tests can break it.
type testRegistry struct {
	t     testing.TB
	host  string
	inner http.Handler // manifests
	blobs map[string][]byte
	files map[string]string // blobs that are files
	// serve, if set, is asked before a blob is served; true means it has
	// answered.
	serve    func(w http.ResponseWriter, r *http.Request, data []byte) bool
	mu       sync.Mutex
	requests []string // the Range headers of requests for blobs
}

func newRegistry(t testing.TB) *testRegistry {
	r := &testRegistry{t: t, blobs: make(map[string][]byte), files: make(map[string]string)}
	s := httptest.NewServer(r.handler())
	t.Cleanup(s.Close)
	r.host = strings.TrimPrefix(s.URL, "http://")
	return r
}

func (r *testRegistry) handler() http.Handler {
	r.inner = registry.New(registry.Logger(discardLog()))
	return http.HandlerFunc(r.handle)
}

func (r *testRegistry) handle(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet || !r.blobHandler(w, req) {
		r.inner.ServeHTTP(w, req)
	}
}

// blobHandler serves the blobs that tests pushed; false means there is none.
func (r *testRegistry) blobHandler(w http.ResponseWriter, req *http.Request) bool {
	_, name, isBlob := strings.Cut(req.URL.Path, "/blobs/")
	if !isBlob {
		return false
	}
	if file, ok := r.files[name]; ok {
		http.ServeFile(w, req, file)
		return true
	}
	data, known := r.blobs[name]
	if !known {
		return false
	}
	r.mu.Lock()
	r.requests = append(r.requests, req.Header.Get("Range"))
	r.mu.Unlock()
	if r.serve == nil || !r.serve(w, req, data) {
		http.ServeContent(w, req, "", zeroTime, bytes.NewReader(data))
	}
	return true
}

func copyBody(w http.ResponseWriter, resp *http.Response) { io.Copy(w, resp.Body) }

// push stores an image and returns its reference.
func (r *testRegistry) push(name string, s imageSpec) string {
	r.t.Helper()
	b := s.build(r.t)
	for _, l := range s.layers {
		r.blobs[digest.FromBytes(l.data).String()] = l.data
	}
	r.blobs[digest.FromBytes(b.config).String()] = b.config
	r.putManifest(name, b.manifest, b.mediaType)
	return r.host + "/" + name
}

func (r *testRegistry) putManifest(name string, data []byte, mediaType string) {
	r.t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	req, _ := http.NewRequest(http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", r.host, repo, tag), bytes.NewReader(data))
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("pushing %s: %s %s", name, resp.Status, body)
	}
}

const acceptAnything = `{"default":[{"type":"insecureAcceptAnything"}]}`

// options returns options that keep the machine's own configuration out: a
// policy that accepts everything and registries without TLS.
func options(t testing.TB, hosts ...string) ocibridge.Options {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	conf := ""
	for _, h := range hosts {
		conf += fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", h)
	}
	return ocibridge.Options{
		Root:           dir,
		PolicyFile:     write("policy.json", acceptAnything),
		RegistriesConf: write("registries.conf", conf),
	}
}

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }
