package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// TestMain lets containers-storage run this program again to unpack a layer.
func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

// repositories is a registry that keeps repositories apart: a blob is in one only
// after it was mounted there or sent.
type repositories struct {
	host  string
	mu    sync.Mutex
	blobs map[string]bool // REPOSITORY@DIGEST
	asked []string        // METHOD PATH?QUERY of what is about blobs
}

func newRepositories(t *testing.T) *repositories {
	r := &repositories{blobs: make(map[string]bool)}
	inner := registry.New(registry.Logger(discardLog()))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		repository, blob, isBlob := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/blobs/")
		if !isBlob {
			inner.ServeHTTP(w, req)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked = append(r.asked, req.Method+" "+req.URL.RequestURI())
		sum := req.URL.Query().Get("digest")
		if mount := req.URL.Query().Get("mount"); mount != "" {
			if !r.blobs[req.URL.Query().Get("from")+"@"+mount] {
				http.Error(w, "no such blob", http.StatusNotFound)
				return
			}
			r.blobs[repository+"@"+mount] = true
			w.Header().Set("Location", "/v2/"+repository+"/blobs/"+mount)
			w.WriteHeader(http.StatusCreated)
			return
		}
		if strings.HasPrefix(blob, "sha256:") && !r.blobs[repository+"@"+blob] {
			http.Error(w, "no such blob", http.StatusNotFound)
			return
		}
		if sum != "" {
			r.blobs[repository+"@"+sum] = true
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	r.host = strings.TrimPrefix(s.URL, "http://")
	return r
}

// requests returns those about a blob since the last call.
func (r *repositories) requests(d digest.Digest) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.asked {
		if strings.Contains(strings.ReplaceAll(a, "%3A", ":"), d.String()) {
			list = append(list, a)
		}
	}
	r.asked = nil
	return list
}

// derivedImage is an image of two layers of which this machine has the second.
type derivedImage struct {
	spec   imageSpec
	built  built
	upload ocibridge.Upload
	base   digest.Digest
}

func newDerivedImage(t *testing.T) *derivedImage {
	t.Helper()
	base := gzipLayer(tarOf(t, map[string]string{"base": "of the base"}, tar.Header{Name: "base", Mode: 0o644}))
	own := plainLayer(tarOf(t, map[string]string{"own": "of this host"}, tar.Header{Name: "own", Mode: 0o644}))
	d := &derivedImage{spec: imageSpec{layers: []blob{base, own}}, base: digest.FromBytes(base.data)}
	d.built = d.spec.build(t)
	local := map[digest.Digest][]byte{digest.FromBytes(own.data): own.data, digest.FromBytes(d.built.config): d.built.config}
	d.upload = ocibridge.Upload{
		Manifest: d.built.manifest,
		Config:   v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(d.built.config), Size: int64(len(d.built.config))},
		Layers: []v1.Descriptor{
			{MediaType: base.mediaType, Digest: d.base, Size: int64(len(base.data))},
			{MediaType: own.mediaType, Digest: digest.FromBytes(own.data), Size: int64(len(own.data))},
		},
		Local: func(sum digest.Digest) (io.ReadCloser, int64, error) {
			data, ok := local[sum]
			if !ok {
				return nil, 0, fs.ErrNotExist
			}
			return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
		},
	}
	return d
}

// origin has the derived image's base pushed, and names it as where it came from.
func (d *derivedImage) origin(t *testing.T, host string) {
	t.Helper()
	base := &derivedImage{spec: imageSpec{layers: d.spec.layers[:1]}}
	base.built = base.spec.build(t)
	data := d.spec.layers[0].data
	u := ocibridge.Upload{
		Manifest: base.built.manifest,
		Config:   v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(base.built.config), Size: int64(len(base.built.config))},
		Layers:   d.upload.Layers[:1],
		Local: func(sum digest.Digest) (io.ReadCloser, int64, error) {
			if sum == d.base {
				return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
			}
			return io.NopCloser(bytes.NewReader(base.built.config)), int64(len(base.built.config)), nil
		},
	}
	d.upload.Origin = registryReference(t, host+"/os/base:1")
	if err := ocibridge.Push(t.Context(), d.upload.Origin, u, options(t, host)); err != nil {
		t.Fatal(err)
	}
}

func registryReference(t *testing.T, name string) ocibridge.Reference {
	t.Helper()
	ref, err := ocibridge.ParseReference(name, ocibridge.Registry)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestPushMounts: a layer that is elsewhere in the same registry is not sent.
func TestPushMounts(t *testing.T) {
	d, r := newDerivedImage(t), newRepositories(t)
	d.origin(t, r.host)
	r.requests(d.base)
	if err := ocibridge.Push(t.Context(), registryReference(t, r.host+"/mine/os:1"), d.upload, options(t, r.host)); err != nil {
		t.Fatal(err)
	}
	asked := r.requests(d.base)
	if !slices.ContainsFunc(asked, func(a string) bool { return strings.HasPrefix(a, "POST ") && strings.Contains(a, "mount=") }) {
		t.Errorf("the base's layer is not mounted: %q", asked)
	}
	if slices.ContainsFunc(asked, func(a string) bool { return strings.HasPrefix(a, "GET ") || strings.HasPrefix(a, "PUT ") }) {
		t.Errorf("the base's layer is fetched or sent: %q", asked)
	}
	d.wantAt(t, r.host+"/mine/os:1", r.host)
}

// TestPushStreams: a layer that another registry has comes from there.
func TestPushStreams(t *testing.T) {
	d, from, to := newDerivedImage(t), newRepositories(t), newRepositories(t)
	d.origin(t, from.host)
	from.requests(d.base)
	name := to.host + "/mine/os:1"
	if err := ocibridge.Push(t.Context(), registryReference(t, name), d.upload, options(t, from.host, to.host)); err != nil {
		t.Fatal(err)
	}
	if asked := from.requests(d.base); !slices.ContainsFunc(asked, func(a string) bool { return strings.HasPrefix(a, "GET ") }) {
		t.Errorf("the base's layer is not fetched: %q", asked)
	}
	d.wantAt(t, name, to.host)
}

// wantAt: what was pushed is the image, byte for byte.
func (d *derivedImage) wantAt(t *testing.T, name, host string) {
	t.Helper()
	img := mustImport(t, name, options(t, host), storetest.NewMem())
	if got := img.Source.ManifestDigest; got != d.built.digest().String() {
		t.Errorf("%s is %s, want %s", name, got, d.built.digest())
	}
	for _, file := range []string{"base", "own"} {
		if img.Tree.Lookup(file) == nil {
			t.Errorf("%s lacks the file %s", name, file)
		}
	}
}

// TestPushRefused: nothing is published of what cannot be sent whole.
func TestPushRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, d *derivedImage, to *ocibridge.Reference)
		kind   fault.Kind
	}{
		{"the origin is gone", func(t *testing.T, d *derivedImage, _ *ocibridge.Reference) {
			s := httptest.NewServer(http.NotFoundHandler())
			s.Close()
			d.upload.Origin = registryReference(t, strings.TrimPrefix(s.URL, "http://")+"/os/base:1")
		}, fault.Unavailable},
		{"a layer of this machine is damaged", func(_ *testing.T, d *derivedImage, _ *ocibridge.Reference) {
			d.upload.Layers[1].Digest = digest.FromString("another")
			open, own := d.upload.Local, digest.FromBytes(d.spec.layers[1].data)
			d.upload.Local = func(sum digest.Digest) (io.ReadCloser, int64, error) {
				if sum == d.upload.Layers[1].Digest {
					return open(own)
				}
				return open(sum)
			}
		}, fault.Corrupt},
		{"the origin sends something else", func(t *testing.T, d *derivedImage, _ *ocibridge.Reference) {
			r := newRegistry(t)
			r.push("os/base:1", imageSpec{layers: d.spec.layers[:1]})
			r.serve = func(w http.ResponseWriter, req *http.Request, data []byte) bool {
				http.ServeContent(w, req, "", zeroTime, bytes.NewReader(bytes.ToUpper(data)))
				return true
			}
			d.upload.Origin = registryReference(t, r.host+"/os/base:1")
		}, fault.Untrusted},
		{"refused before", func(_ *testing.T, d *derivedImage, _ *ocibridge.Reference) {
			d.upload.Before = func([]digest.Digest) error { return fault.New(fault.NoSpace, "", "no room") }
		}, fault.NoSpace},
		{"a digest", func(_ *testing.T, d *derivedImage, to *ocibridge.Reference) { to.Name += "@" + d.base.String() }, fault.Usage},
		{"a directory", func(t *testing.T, _ *derivedImage, to *ocibridge.Reference) {
			*to = ocibridge.Reference{Transport: ocibridge.Dir, Name: t.TempDir()}
		}, fault.Usage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, from, target := newDerivedImage(t), newRepositories(t), newRepositories(t)
			d.origin(t, from.host)
			to := registryReference(t, target.host+"/mine/os")
			tc.change(t, d, &to)
			if err := ocibridge.Push(t.Context(), to, d.upload, options(t, from.host, target.host, strings.Split(d.upload.Origin.Name, "/")[0])); fault.KindOf(err) != tc.kind {
				t.Errorf("%v (%v), want %v", err, fault.KindOf(err), tc.kind)
			}
			if _, err := ocibridge.Open(t.Context(), registryReference(t, target.host+"/mine/os:latest"), options(t, target.host)); fault.KindOf(err) != fault.NotFound {
				t.Errorf("the image is published: %v", err)
			}
		})
	}
}

// TestPushToStorage: podman has the image as it would have pulled it, and of a
// base that it has already only the rest is sent.
func TestPushToStorage(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "podman")
	d, r := newDerivedImage(t), newRepositories(t)
	d.origin(t, r.host)
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH) })
	podman := func(args ...string) string {
		t.Helper()
		out, err := lab.Command(context.WithoutCancel(t.Context()), "podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "overlay"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	to := ocibridge.Reference{Transport: ocibridge.ContainersStorage, Name: fmt.Sprintf("[overlay@%s/root+%s/run]localhost/mine:1", dir, dir)}
	if root, err := to.StorageRoot(); err != nil || root != dir+"/root" {
		t.Errorf("the storage is in %s (%v), want %s/root", root, err, dir)
	}
	var missing []digest.Digest
	d.upload.Before = func(list []digest.Digest) error { missing = list; return nil }
	refused := d.upload
	refused.Before = func([]digest.Digest) error { return errors.New("no") }
	if err := ocibridge.Push(t.Context(), to, refused, options(t, r.host)); err == nil || podman("images", "--quiet") != "" {
		t.Errorf("an image that is refused before anything is written: %v", err)
	}
	podman("pull", "--quiet", "--tls-verify=false", r.host+"/os/base:1")
	if err := ocibridge.Push(t.Context(), to, d.upload, options(t, r.host)); err != nil {
		t.Fatal(err)
	}
	if own := d.upload.Layers[1].Digest; !slices.Equal(missing, []digest.Digest{own}) {
		t.Errorf("sent are %v, want only %s", missing, own)
	}
	if got := podman("image", "inspect", "--format", "{{.Digest}}", "localhost/mine:1"); got != d.built.digest().String() {
		t.Errorf("podman has %s, want %s", got, d.built.digest())
	}
	mnt := podman("image", "mount", "localhost/mine:1")
	t.Cleanup(func() { podman("image", "unmount", "--force", "localhost/mine:1") })
	for file, want := range map[string]string{"base": "of the base", "own": "of this host"} {
		if got, err := os.ReadFile(mnt + "/" + file); err != nil || string(got) != want {
			t.Errorf("%s in podman's image: %q, %v", file, got, err)
		}
	}
}
