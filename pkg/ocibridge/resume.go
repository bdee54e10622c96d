package ocibridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/pkg/tlsclientconfig"
	"go.podman.io/image/v5/types"
)

// resumer fetches the rest of a blob with a Range request.
//
// go.podman.io/image resumes a body by itself, but only after a reset or an
// early end, once without and then with a megabyte of progress in between, and
// gives up when the registry refuses one connection. What it offers beyond that
// (GetBlobAt) is internal, and returns wrong bytes where a registry without
// Range support breaks off. So further attempts use a client of our own, with
// the same endpoints, certificates and credentials.
type resumer struct {
	sys   *types.SystemContext
	named reference.Named

	mu      sync.Mutex
	clients map[string]*http.Client // by endpoint
}

func newResumer(sys *types.SystemContext, ref Reference) (*resumer, error) {
	named, err := ref.named()
	if err != nil {
		return nil, err
	}
	return &resumer{sys: sys, named: named, clients: make(map[string]*http.Client)}, nil
}

// from returns the bytes of a blob from offset on.
func (r *resumer) from(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	sources, err := r.endpoints()
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, s := range sources {
		body, err := r.get(ctx, s, d, offset)
		if err == nil {
			return body, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(failed) == 1 {
		return nil, failed[0]
	}
	return nil, errors.Join(failed...)
}

// endpoints returns the mirrors of the image, and at the end the registry that
// it names.
func (r *resumer) endpoints() ([]sysregistriesv2.PullSource, error) {
	reg, err := sysregistriesv2.FindRegistry(r.sys, r.named.Name())
	if err != nil {
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	if reg == nil {
		return []sysregistriesv2.PullSource{{Reference: r.named}}, nil
	}
	return reg.PullSourcesFromReference(r.named)
}

func (r *resumer) get(ctx context.Context, s sysregistriesv2.PullSource, d digest.Digest, offset int64) (io.ReadCloser, error) {
	repo, err := repository(s)
	if err != nil {
		return nil, err
	}
	client, err := r.client(ctx, s, repo, repo.Scope(transport.PullScope))
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", repo.Scheme(), repo.RegistryStr(), repo.RepositoryStr(), d)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := continues(resp, offset); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// continues makes a response's body start at offset.
func continues(resp *http.Response, offset int64) error {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var first int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &first); err != nil || first != offset {
			return fmt.Errorf("asked for bytes from %d on, the registry sent %q", offset, resp.Header.Get("Content-Range"))
		}
		return nil
	case http.StatusOK: // the registry does not know Range
		_, err := io.CopyN(io.Discard, resp.Body, offset)
		return err
	}
	return transport.CheckError(resp, http.StatusPartialContent)
}

func repository(s sysregistriesv2.PullSource) (name.Repository, error) {
	opts := []name.Option{}
	if s.Endpoint.Insecure {
		opts = append(opts, name.Insecure)
	}
	return name.NewRepository(s.Reference.Name(), opts...)
}

// client returns a client that is logged in at an endpoint, for what the scopes
// allow.
func (r *resumer) client(ctx context.Context, s sysregistriesv2.PullSource, repo name.Repository, scopes ...string) (*http.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.clients[repo.Name()]; c != nil {
		return c, nil
	}
	base := tlsclientconfig.NewTransport()
	base.TLSClientConfig = &tls.Config{InsecureSkipVerify: s.Endpoint.Insecure} //nolint:gosec // what registries.conf asks for
	if dir := r.certDir(reference.Domain(s.Reference)); dir != "" {
		if err := tlsclientconfig.SetupCertificates(dir, base.TLSClientConfig); err != nil {
			return nil, err
		}
	}
	creds, err := config.GetCredentialsForRef(r.sys, s.Reference)
	if err != nil {
		return nil, err
	}
	auth := authn.Anonymous
	if creds != (types.DockerAuthConfig{}) {
		auth = authn.FromConfig(authn.AuthConfig{Username: creds.Username, Password: creds.Password, IdentityToken: creds.IdentityToken})
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, &schemeGuard{base, s.Endpoint.Insecure}, scopes)
	if err != nil {
		return nil, err
	}
	c := &http.Client{Transport: rt}
	r.clients[repo.Name()] = c
	return c, nil
}

// certDir returns the directory with the certificates for a registry.
func (r *resumer) certDir(host string) string {
	if r.sys.DockerPerHostCertDirPath != "" {
		return filepath.Join(r.sys.DockerPerHostCertDirPath, host)
	}
	dirs := []string{"/etc/containers/certs.d", "/usr/share/containers/certs.d", "/etc/docker/certs.d"}
	for i := range dirs {
		dirs[i] = filepath.Join("/", r.sys.RootForImplicitAbsolutePaths, dirs[i])
	}
	if home, err := os.UserConfigDir(); err == nil {
		dirs = append([]string{filepath.Join(home, "containers/certs.d")}, dirs...)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, host)); err == nil {
			return filepath.Join(dir, host)
		}
	}
	return ""
}

// close drops the clients' connections.
func (r *resumer) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.clients {
		c.CloseIdleConnections()
	}
}

// schemeGuard keeps a client from falling back to HTTP, as go-containerregistry
// does for private addresses, where registries.conf does not say insecure.
type schemeGuard struct {
	http.RoundTripper
	insecure bool
}

func (g *schemeGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.insecure {
		return nil, fmt.Errorf("%s is not reachable with TLS", req.URL.Host)
	}
	return g.RoundTripper.RoundTrip(req)
}
