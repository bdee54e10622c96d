package ocibridge

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// mounter has a registry give a repository the blobs that another one of it has
// (OCI distribution-spec, "Mounting a blob from another repository").
//
// go.podman.io/image does that for blobs whose compression is in its cache of
// what it pushed itself, and there alone: the cache's interface is internal.
type mounter struct {
	client   *http.Client
	to, from string // base addresses of the repositories' blobs
	path     string // of the other repository
}

// newMounter returns nil where the repositories are of two registries.
func newMounter(ctx context.Context, sys *types.SystemContext, to, from Reference) (*mounter, error) {
	if to.Transport != Registry || from.Transport != Registry {
		return nil, nil
	}
	target, err := to.named()
	if err != nil {
		return nil, err
	}
	origin, err := from.named()
	if err != nil || reference.Domain(origin) != reference.Domain(target) || origin.Name() == target.Name() {
		return nil, err
	}
	// As go.podman.io/image pushes: no mirrors, and the registry's own name.
	reg, err := sysregistriesv2.FindRegistry(sys, target.Name())
	if err != nil {
		return nil, err
	}
	source := func(named reference.Named) sysregistriesv2.PullSource {
		return sysregistriesv2.PullSource{Endpoint: sysregistriesv2.Endpoint{Insecure: reg != nil && reg.Insecure}, Reference: reference.TrimNamed(named)}
	}
	repo, err := repository(source(target))
	if err != nil {
		return nil, err
	}
	other, err := repository(source(origin))
	if err != nil {
		return nil, err
	}
	r := &resumer{sys: sys, named: target, clients: make(map[string]*http.Client)}
	client, err := r.client(ctx, source(target), repo, repo.Scope(transport.PushScope), other.Scope(transport.PullScope))
	if err != nil {
		return nil, err
	}
	base := func(path string) string {
		return fmt.Sprintf("%s://%s/v2/%s/blobs/", repo.Scheme(), repo.RegistryStr(), path)
	}
	return &mounter{client: client, to: base(repo.RepositoryStr()), from: base(other.RepositoryStr()), path: other.RepositoryStr()}, nil
}

// mount reports whether the repository has the blob now. A registry that does not
// mount opens an upload, which nobody can end without more rights: it is asked only
// for what the other repository has.
func (m *mounter) mount(ctx context.Context, d digest.Digest) (bool, error) {
	if status, err := m.ask(ctx, http.MethodHead, m.from+d.String()); err != nil || status != http.StatusOK {
		return false, err
	}
	query := url.Values{"mount": {d.String()}, "from": {m.path}}
	status, err := m.ask(ctx, http.MethodPost, m.to+"uploads/?"+query.Encode())
	return status == http.StatusCreated, err
}

func (m *mounter) ask(ctx context.Context, method, address string) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, address, http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
