package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a real registry in this process, on a port of 127.0.0.1, with its
// blobs on disk.
type Registry struct {
	Addr string // 127.0.0.1:PORT
	Port int
	CA   []byte // PEM, with TLS only

	server *httptest.Server
	blobs  string

	mu     sync.Mutex
	faults []Fault
	hits   map[string]int
}

// Fault decides about one request before the registry sees it: it returns true
// when it has answered itself. It may be called by several requests at once.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// StartRegistry serves from dir, which is made when it is not there.
func StartRegistry(dir string, withTLS bool) (*Registry, error) {
	blobs := filepath.Join(dir, "blobs")
	if err := os.MkdirAll(filepath.Join(blobs, "sha256"), 0o755); err != nil {
		return nil, err
	}
	r := &Registry{blobs: blobs, hits: map[string]int{}}
	handler := registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)),
		registry.Logger(log.New(io.Discard, "", 0)),
	)
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.serve(handler, w, req)
	}))
	// Cut connections are what some tests are about; they are no news.
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if withTLS {
		r.server.StartTLS()
		r.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	} else {
		r.server.Start()
	}
	r.Addr = r.server.Listener.Addr().String()
	r.Port = r.server.Listener.Addr().(*net.TCPAddr).Port
	return r, nil
}

func (r *Registry) serve(next http.Handler, w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.hits[req.Method+" "+kind(req.URL.Path)]++
	faults := r.faults
	r.mu.Unlock()
	for _, f := range faults {
		if f(w, req) {
			return
		}
	}
	next.ServeHTTP(w, req)
}

func kind(path string) string {
	for _, k := range []string{"blobs", "manifests", "tags"} {
		if strings.Contains(path, "/"+k+"/") {
			return k
		}
	}
	return path
}

// Inject puts a fault in front of the registry. Faults are asked in order.
func (r *Registry) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults[:len(r.faults):len(r.faults)], f)
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Hits returns how many requests of a method and kind ("GET blobs",
// "HEAD manifests") came in since the registry started.
func (r *Registry) Hits(methodAndKind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hits[methodAndKind]
}

// Close ends the server.
func (r *Registry) Close() { r.server.CloseClientConnections(); r.server.Close() }

// Repo returns "ADDR/name", to be followed by a tag or digest.
func (r *Registry) Repo(name string) string { return r.Addr + "/" + name }

// GuestRepo is Repo as a virtual machine names it.
func (r *Registry) GuestRepo(name string) string {
	return fmt.Sprintf("%s:%d/%s", HostAddress, r.Port, name)
}

// GuestConfig returns the registries.conf drop-in that lets a guest use this
// registry, which has no certificate for the guest's name of it.
func (r *Registry) GuestConfig() string {
	return fmt.Sprintf("[[registry]]\nlocation = \"%s:%d\"\ninsecure = true\n", HostAddress, r.Port)
}

// Push copies the image tagged tag of an OCI layout to repo:as and returns its
// digest. Blobs are hard-linked where they can be.
func (r *Registry) Push(ctx context.Context, layoutDir, tag, repo, as string) (digest.Digest, error) {
	desc, err := findImage(layoutDir, tag)
	if err != nil {
		return "", err
	}
	blob := func(d digest.Digest) string {
		return filepath.Join(layoutDir, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
	}
	raw, err := os.ReadFile(blob(desc.Digest))
	if err != nil {
		return "", err
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return "", err
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if err := linkOrCopy(blob(d.Digest), filepath.Join(r.blobs, "sha256", d.Digest.Encoded())); err != nil {
			return "", err
		}
	}
	return desc.Digest, r.PutManifest(ctx, repo, as, desc.MediaType, raw)
}

// PutManifest stores a manifest whose blobs are there already.
func (r *Registry) PutManifest(ctx context.Context, repo, reference, mediaType string, raw []byte) error {
	url := r.server.URL + "/v2/" + repo + "/manifests/" + reference
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := r.server.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s", url, resp.Status)
	}
	return nil
}

func findImage(layoutDir, tag string) (v1.Descriptor, error) {
	b, err := os.ReadFile(filepath.Join(layoutDir, v1.ImageIndexFile))
	if err != nil {
		return v1.Descriptor{}, err
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return v1.Descriptor{}, err
	}
	for _, d := range index.Manifests {
		if d.Annotations[v1.AnnotationRefName] == tag {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("no image tagged %q in %s", tag, layoutDir)
}

func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// Status answers requests whose path contains part with an HTTP status.
func Status(part string, code int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		if code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
		}
		http.Error(w, http.StatusText(code), code)
		return true
	}
}

// errCut ends a response early; the server then drops the connection.
var errCut = errors.New("cut here")

// Cut lets the next `times` answers to GETs of paths that contain part through
// only up to `after` bytes, then drops the connection.
func (r *Registry) Cut(part string, after int64, times int) {
	r.rewrite(part, times, func(w http.ResponseWriter) http.ResponseWriter {
		return &cutter{ResponseWriter: w, left: after}
	})
}

// Corrupt flips one bit of the byte at offset `at` in the next `times` answers
// to GETs of paths that contain part.
func (r *Registry) Corrupt(part string, at int64, times int) {
	r.rewrite(part, times, func(w http.ResponseWriter) http.ResponseWriter {
		return &corrupter{ResponseWriter: w, at: at}
	})
}

func (r *Registry) rewrite(part string, times int, wrap func(http.ResponseWriter) http.ResponseWriter) {
	next := r.server.Config.Handler
	var mu sync.Mutex
	r.Inject(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, part) || w.Header().Get(rewritten) != "" {
			return false
		}
		mu.Lock()
		times--
		spent := times < 0
		mu.Unlock()
		if spent {
			return false
		}
		w.Header().Set(rewritten, "1")
		next.ServeHTTP(wrap(w), req)
		return true
	})
}

// rewritten marks a response that already goes through a rewriting fault.
const rewritten = "X-Lab-Rewritten"

type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(b []byte) (int, error) {
	if int64(len(b)) <= c.left {
		c.left -= int64(len(b))
		return c.ResponseWriter.Write(b)
	}
	n, err := c.ResponseWriter.Write(b[:c.left])
	if err == nil {
		err = http.NewResponseController(c.ResponseWriter).Flush()
	}
	panic(errors.Join(http.ErrAbortHandler, errCut, err, fmt.Errorf("%d bytes", n)))
}

type corrupter struct {
	http.ResponseWriter
	at int64
}

func (c *corrupter) Write(b []byte) (int, error) {
	if c.at >= 0 && c.at < int64(len(b)) {
		changed := append([]byte(nil), b...)
		changed[c.at] ^= 0x10
		b = changed
	}
	c.at -= int64(len(b))
	return c.ResponseWriter.Write(b)
}

// ClientTLS returns the configuration that trusts this registry.
func (r *Registry) ClientTLS() *tls.Config {
	if t, ok := r.server.Client().Transport.(*http.Transport); ok && t.TLSClientConfig != nil {
		return t.TLSClientConfig.Clone()
	}
	return nil
}
