// Package testregistry is a registry for tests: in this process, gone with the
// test.
package testregistry

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Start starts an in-process registry that lives as long as the test, and
// returns its host and port.
func Start(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// Push pushes the image to a registry reference with a tag, "HOST/NAME:TAG".
func Push(t testing.TB, reference string, img v1.Image) {
	t.Helper()
	host, rest, _ := strings.Cut(reference, "/")
	repo, tag, _ := strings.Cut(rest, ":")
	base := "http://" + host + "/v2/" + repo
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		send(t, http.MethodPost, base+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", r)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPost, base+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", bytes.NewReader(config))
	manifest, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPut, base+"/manifests/"+tag, string(types.OCIManifestSchema1), bytes.NewReader(manifest))
}

func send(t testing.TB, method, url, mediaType string, body io.Reader) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		answer, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, url, resp.Status, answer)
	}
}
