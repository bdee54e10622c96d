package ocibridge_test

import (
	"archive/tar"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

func smallLayer(t testing.TB, name string) blob {
	return gzipLayer(tarOf(t, nil, tar.Header{Name: name}))
}

func TestGate(t *testing.T) {
	layers := []blob{smallLayer(t, "a")}
	tests := []struct {
		name   string
		spec   imageSpec
		change func(*ocibridge.Options)
		kind   fault.Kind
		says   string
	}{
		{"bootable", imageSpec{layers: layers}, nil, 0, ""},
		{"ostree.bootable", imageSpec{layers: layers, labels: map[string]string{"ostree.bootable": "true"}}, nil, 0, ""},
		{"no label", imageSpec{layers: layers, labels: map[string]string{"maintainer": "x"}}, nil, fault.Conflict, "containers.bootc"},
		{"no label, accepted", imageSpec{layers: layers, labels: map[string]string{"maintainer": "x"}}, func(o *ocibridge.Options) { o.AllowUnbootable = true }, 0, ""},
		{"other architecture", imageSpec{layers: layers, arch: "s390x"}, nil, fault.Conflict, "s390x"},
		{"other architecture, accepted", imageSpec{layers: layers, arch: "s390x"}, func(o *ocibridge.Options) { o.AllowPlatform = true }, 0, ""},
		{"other architecture, asked for", imageSpec{layers: layers, arch: "s390x"}, func(o *ocibridge.Options) { o.Architecture = "s390x" }, 0, ""},
		{"docker schema 2", imageSpec{layers: layers, docker: true}, nil, 0, ""},
		{"no layers", imageSpec{}, nil, 0, ""},
		{"fewer diffIDs than layers", imageSpec{layers: layers, diffIDs: []digest.Digest{}}, nil, fault.Corrupt, "1 layers"},
		{"a diffID that is none", imageSpec{layers: layers, diffIDs: []digest.Digest{"sha256:12"}}, nil, fault.Corrupt, "diffID"},
		{
			"final-diffid names no layer",
			imageSpec{layers: layers, labels: map[string]string{"ostree.bootable": "1", "ostree.final-diffid": someDigest}},
			nil, fault.Corrupt, "ostree.final-diffid",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reg := newRegistry(t)
			opt := options(t, reg.host)
			if tt.change != nil {
				tt.change(&opt)
			}
			_, err := importRef(t, reg.push("os/base:1", tt.spec), opt, storetest.NewMem())
			if got := fault.KindOf(err); got != tt.kind || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v (%v), want %v, speaking of %q", err, got, tt.kind, tt.says)
			}
			if err != nil && fault.HintOf(err) == "" {
				t.Error("the error has no hint")
			}
		})
	}
}

func TestSourceFields(t *testing.T) {
	reg := newRegistry(t)
	ref, err := ocibridge.ParseReference(reg.push("os/base:1", imageSpec{
		layers: []blob{smallLayer(t, "a"), smallLayer(t, "b")},
		labels: map[string]string{"containers.bootc": "1", "org.opencontainers.image.version": "9.1"},
		annotations: map[string]string{
			"org.opencontainers.image.created": "2026-01-02T03:04:05Z",
		},
	}), "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ocibridge.Open(t.Context(), ref, options(t, reg.host))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Version != "9.1" || s.Created.Unix() != 1767323045 || len(s.Layers) != 2 || s.Layers[1].Role != ocibridge.Derived {
		t.Errorf("the source is %+v", s)
	}
	if s.ManifestDigest != digest.FromBytes(s.Manifest).String() || s.ListDigest != "" {
		t.Errorf("digests %s and %q", s.ManifestDigest, s.ListDigest)
	}
	pinned, err := ref.WithDigest(s.ManifestDigest)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ocibridge.Open(t.Context(), pinned, options(t, reg.host))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
}

func TestManifestList(t *testing.T) {
	reg := newRegistry(t)
	var list v1.Index
	list.SchemaVersion, list.MediaType = 2, v1.MediaTypeImageIndex
	for _, arch := range []string{"s390x", "amd64", "arm64"} {
		b := imageSpec{layers: []blob{smallLayer(t, arch)}, arch: arch}
		img := b.build(t)
		reg.push("os/base:"+arch, b)
		list.Manifests = append(list.Manifests, v1.Descriptor{
			MediaType: img.mediaType, Digest: img.digest(), Size: int64(len(img.manifest)),
			Platform: &v1.Platform{OS: "linux", Architecture: arch},
		})
	}
	reg.putManifest("os/base:1", mustJSON(t, list), list.MediaType)
	for _, arch := range []string{"amd64", "s390x"} {
		opt := options(t, reg.host)
		opt.Architecture = arch
		img := mustImport(t, reg.host+"/os/base:1", opt, storetest.NewMem())
		if img.Tree.Lookup(arch) == nil || img.Architecture != arch {
			t.Errorf("asked for %s, got %s", arch, img.Architecture)
		}
		if img.ListDigest == "" || img.ListDigest == img.ManifestDigest {
			t.Errorf("list digest %q, manifest digest %q", img.ListDigest, img.ManifestDigest)
		}
	}
	opt := options(t, reg.host)
	opt.Architecture = "riscv64"
	if _, err := importRef(t, reg.host+"/os/base:1", opt, storetest.NewMem()); fault.KindOf(err) != fault.Conflict {
		t.Errorf("an architecture that is not in the list: %v, want a conflict", err)
	}
}

// TestPolicy: what policy.json refuses is refused before any blob is asked for.
func TestPolicy(t *testing.T) {
	tests := []struct {
		name, policy string
		verify       ocibridge.Verify
		kind         fault.Kind
		hint         string
	}{
		{"accept", acceptAnything, ocibridge.Unverified, 0, ""},
		{"reject", `{"default":[{"type":"reject"}]}`, ocibridge.Unverified, fault.Untrusted, "policy.json"},
		{"accept, but a signature is demanded", acceptAnything, ocibridge.Signed, fault.Untrusted, "sigstoreSigned"},
		{"none", "", ocibridge.Unverified, fault.Untrusted, "containers-common"},
		{"damaged", `{"default":`, ocibridge.Unverified, fault.Untrusted, "policy.json"},
		{"ostree remote", acceptAnything, ocibridge.OSTreeRemote, fault.Untrusted, "ostree-image-signed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reg := newRegistry(t)
			ref, err := ocibridge.ParseReference(reg.push("os/base:1", imageSpec{layers: []blob{smallLayer(t, "a")}}), "")
			if err != nil {
				t.Fatal(err)
			}
			ref.Verify = tt.verify
			opt := options(t, reg.host)
			if err := os.WriteFile(opt.PolicyFile, []byte(tt.policy), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.policy == "" {
				opt.PolicyFile = ""
			}
			src, err := ocibridge.Open(t.Context(), ref, opt)
			if got := fault.KindOf(err); got != tt.kind || !strings.Contains(fault.HintOf(err), tt.hint) {
				t.Errorf("%v (%v), hint %q; want %v with a hint of %q", err, got, fault.HintOf(err), tt.kind, tt.hint)
			}
			if err != nil && len(reg.requests) > 0 {
				t.Error("a blob was asked for before the policy had decided")
			}
			if src != nil {
				src.Close()
			}
		})
	}
}

// TestSignedImage signs with the real gpg, as `podman push --sign-by` does.
func TestSignedImage(t *testing.T) {
	lab.Need(t, "gpg")
	home := t.TempDir()
	gpg := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v", args, err)
		}
		return string(out)
	}
	gpg("", "--quick-generate-key", "signer@example.org", "rsa2048", "sign", "never")
	defer exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()

	reg := newRegistry(t)
	signed := imageSpec{layers: []blob{smallLayer(t, "a")}}
	refs := map[string]string{"signed": reg.push("os/signed:1", signed), "unsigned": reg.push("os/unsigned:1", imageSpec{layers: []blob{smallLayer(t, "b")}})}
	opt := options(t, reg.host)
	write := func(path, content string) string {
		t.Helper()
		path = filepath.Join(opt.Root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := write("key.gpg", gpg("", "--export", "signer@example.org"))
	d := signed.build(t).digest()
	payload := fmt.Sprintf(`{"critical":{"type":"atomic container signature","image":{"docker-manifest-digest":%q},"identity":{"docker-reference":%q}},"optional":{}}`, d, refs["signed"])
	write("signatures/os/signed@sha256="+d.Encoded()+"/signature-1", gpg(payload, "--sign", "--local-user", "signer@example.org"))
	write("etc/containers/registries.d/test.yaml", fmt.Sprintf("docker:\n  %s:\n    lookaside: file://%s\n", reg.host, filepath.Join(opt.Root, "signatures")))
	opt.PolicyFile = write("signed-policy.json", fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"signedBy","keyType":"GPGKeys","keyPath":%q}]}}}`, reg.host, key))

	for name, kind := range map[string]fault.Kind{"signed": 0, "unsigned": fault.Untrusted} {
		ref, err := ocibridge.ParseReference(refs[name], "")
		if err != nil {
			t.Fatal(err)
		}
		for _, verify := range []ocibridge.Verify{ocibridge.Unverified, ocibridge.Signed} {
			ref.Verify = verify
			src, err := ocibridge.Open(t.Context(), ref, opt)
			if got := fault.KindOf(err); got != kind {
				t.Errorf("%s: %v (%v), want %v", ref.Origin(), err, got, kind)
			}
			if src != nil {
				src.Close()
			}
		}
	}
}

// TestAuth tries the files with credentials in the order of the documentation.
func TestAuth(t *testing.T) {
	t.Parallel()
	reg := newRegistry(t)
	ref := reg.push("os/base:1", imageSpec{layers: []blob{noisyLayer(t, 3<<20)}})
	broken := 3
	reg.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if isLayer(data) && broken < 3 { // the resumed transfer logs in too
			broken++
			cut(w, r, data, 500<<10)
			return true
		}
		return false
	}
	inner := reg.handler()
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "user" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer private.Close()
	host := strings.TrimPrefix(private.URL, "http://")
	// The registry behind the login is another handler: push there too.
	_, name, _ := strings.Cut(ref, "/")
	pushed := imageSpec{layers: []blob{noisyLayer(t, 3<<20)}}.build(t)
	req, _ := http.NewRequest(http.MethodPut, private.URL+"/v2/os/base/manifests/1", strings.NewReader(string(pushed.manifest)))
	req.Header.Set("Content-Type", pushed.mediaType)
	req.SetBasicAuth("user", "secret")
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("pushing: %v %v", resp, err)
	}
	ref = host + "/" + name

	file := func(password string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("user:"+password)))
	}
	other := `{"auths":{"elsewhere.example.org":{"auth":"eDp5"}}}`
	tests := []struct {
		name  string
		files map[string]string
		kind  fault.Kind
	}{
		{"none", nil, fault.Denied},
		{"/run", map[string]string{"run/ostree/auth.json": file("secret"), "etc/ostree/auth.json": file("wrong")}, 0},
		{"/etc", map[string]string{"etc/ostree/auth.json": file("secret"), "usr/lib/ostree/auth.json": file("wrong")}, 0},
		{"/usr/lib", map[string]string{"usr/lib/ostree/auth.json": file("secret")}, 0},
		{"the first that knows the registry", map[string]string{"run/ostree/auth.json": other, "etc/ostree/auth.json": file("secret")}, 0},
		{"wrong password", map[string]string{"etc/ostree/auth.json": file("wrong")}, fault.Denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "/run" {
				broken = 0
			}
			opt := quick(options(t, host))
			for path, content := range tt.files {
				path = filepath.Join(opt.Root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := importRef(t, ref, opt, storetest.NewMem()); fault.KindOf(err) != tt.kind {
				t.Errorf("%v (%v), want %v", err, fault.KindOf(err), tt.kind)
			}
		})
	}
	t.Run("a file that is asked for", func(t *testing.T) {
		opt := options(t, host)
		opt.AuthFile = filepath.Join(opt.Root, "mine.json")
		if err := os.WriteFile(opt.AuthFile, []byte(file("secret")), 0o600); err != nil {
			t.Fatal(err)
		}
		mustImport(t, ref, opt, storetest.NewMem())
	})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	plain := newRegistry(t)
	plain.push("os/base:1", imageSpec{layers: []blob{noisyLayer(t, 3<<20)}})
	broken := 0
	plain.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if isLayer(data) && broken < 3 {
			broken++
			cut(w, r, data, 500<<10)
			return true
		}
		return false
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Scheme, r.URL.Host = "http", plain.host
		if strings.Contains(r.URL.Path, "/blobs/") {
			plain.blobHandler(w, r)
			return
		}
		resp, err := http.Get(r.URL.String())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		copyBody(w, resp)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "https://")
	ref := host + "/os/base:1"

	opt := options(t)
	_, err := importRef(t, ref, opt, storetest.NewMem())
	if fault.KindOf(err) != fault.Untrusted || !strings.Contains(fault.HintOf(err), "certs.d") {
		t.Errorf("unknown CA: %v (%v), hint %q; want untrusted with a hint of certs.d", err, fault.KindOf(err), fault.HintOf(err))
	}
	_, err = importRef(t, plain.host+"/os/base:1", opt, storetest.NewMem())
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(fault.HintOf(err), "insecure = true") {
		t.Errorf("a registry without TLS: %v (%v), hint %q; want unavailable with a hint of insecure", err, fault.KindOf(err), fault.HintOf(err))
	}
	dir := filepath.Join(opt.Root, "etc/containers/certs.d", host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	mustImport(t, ref, quick(opt), storetest.NewMem())
	if broken < 3 {
		t.Error("the transfer was not broken: the certificates of resumed ones are untested")
	}
}

// TestMirror reads an image of a registry that does not exist from its mirror.
func TestMirror(t *testing.T) {
	t.Parallel()
	reg := newRegistry(t)
	reg.push("mirror/os/base:1", imageSpec{layers: []blob{noisyLayer(t, 3<<20)}})
	broken := 0
	reg.serve = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if isLayer(data) && broken < 3 {
			broken++
			cut(w, r, data, 500<<10)
			return true
		}
		return false
	}
	opt := quick(options(t))
	conf := fmt.Sprintf("[[registry]]\nprefix = \"registry.invalid/os\"\nlocation = \"registry.invalid/os\"\n[[registry.mirror]]\nlocation = \"%s/mirror/os\"\ninsecure = true\n", reg.host)
	if err := os.WriteFile(opt.RegistriesConf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	img := mustImport(t, "registry.invalid/os/base:1", opt, storetest.NewMem())
	if img.Tree.Lookup("usr/lib/big") == nil {
		t.Error("the image is not the mirror's")
	}
}
