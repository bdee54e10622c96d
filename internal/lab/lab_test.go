package lab

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestDefaultEntryIsABootLoadersChoice(t *testing.T) {
	for name, test := range map[string]struct {
		files []string
		want  string
	}{
		"the highest version":              {[]string{"ostree-1.conf", "ostree-2.conf"}, "ostree-2.conf"},
		"versions are numbers":             {[]string{"ostree-9.conf", "ostree-10.conf"}, "ostree-10.conf"},
		"no tries left comes last":         {[]string{"ostree-1.conf", "ostree-2+0-3.conf"}, "ostree-1.conf"},
		"tries left count as any other":    {[]string{"ostree-1.conf", "ostree-2+3.conf"}, "ostree-2+3.conf"},
		"a bad entry is better than none ": {[]string{"ostree-2+0.conf"}, "ostree-2+0.conf"},
	} {
		t.Run(name, func(t *testing.T) {
			boot := t.TempDir()
			dir := filepath.Join(boot, "loader/entries")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range test.files {
				version := strings.FieldsFunc(f, func(r rune) bool { return r < '0' || r > '9' })[0]
				text := "title x\nversion " + version + "\nlinux /k\noptions a=1 b\n"
				if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			e, err := DefaultEntry(boot)
			if err != nil || e.File != test.want || e.Options != "a=1 b" {
				t.Errorf("default entry is %+v, %v; want %s", e, err, test.want)
			}
		})
	}
}

// testRegistry holds one blob and returns the blob's path.
func testRegistry(t *testing.T, withTLS bool) (r *Registry, url string, blob string) {
	t.Helper()
	r, err := StartRegistry(t.TempDir(), withTLS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	layoutDir := filepath.Join(SourceDir(), "pkg/ocibridge/testdata/chunked/oci")
	if _, err := r.Push(t.Context(), layoutDir, "chunked", "repo", "tag"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(r.blobs, "sha256"))
	if err != nil || len(entries) < 2 {
		t.Fatalf("blobs after a push: %v, %v", entries, err)
	}
	b, err := os.ReadFile(filepath.Join(r.blobs, "sha256", entries[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	return r, r.server.URL + "/v2/repo/blobs/sha256:" + entries[0].Name(), string(b)
}

func get(ctx context.Context, r *Registry, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Accept", v1.MediaTypeImageManifest)
	resp, err := r.server.Client().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestRegistryServesAPushedImage(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		r, url, blob := testRegistry(t, withTLS)
		if code, got, err := get(t.Context(), r, url); err != nil || code != 200 || got != blob {
			t.Errorf("TLS %v: GET of a blob: %d, %d bytes, %v", withTLS, code, len(got), err)
		}
		if code, _, err := get(t.Context(), r, r.server.URL+"/v2/repo/manifests/tag"); err != nil || code != 200 {
			t.Errorf("TLS %v: GET of the manifest: %d, %v", withTLS, code, err)
		}
		if n := r.Hits("GET blobs"); n != 1 {
			t.Errorf("counted %d GETs of blobs, made one", n)
		}
	}
}

func TestRegistryFaults(t *testing.T) {
	r, url, blob := testRegistry(t, false)

	r.Inject(Status("/blobs/", http.StatusUnauthorized))
	if code, _, err := get(t.Context(), r, url); err != nil || code != 401 {
		t.Errorf("with a 401 injected: %d, %v", code, err)
	}
	r.Heal()

	r.Cut("/blobs/", 10, 1)
	if _, got, err := get(t.Context(), r, url); err == nil || got != blob[:10] {
		t.Errorf("a connection cut after 10 bytes gave %q, %v", got, err)
	}
	if _, got, err := get(t.Context(), r, url); err != nil || got != blob {
		t.Errorf("the cut was for one answer; the next gave %d bytes, %v", len(got), err)
	}
	r.Heal()

	r.Corrupt("/blobs/", 3, 1)
	_, got, err := get(t.Context(), r, url)
	if err != nil || len(got) != len(blob) || got[:3] != blob[:3] || got[3] == blob[3] || got[4:] != blob[4:] {
		t.Errorf("a corrupted answer must differ in byte 3 alone (%d of %d bytes, %v)", len(got), len(blob), err)
	}
}

func TestCommandReportsTheProgramsWords(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := Command(ctx, "sh", "-c", "echo went wrong >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "went wrong") {
		t.Errorf("error is %v, want the program's stderr in it", err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("timed out")
	}
}
