package ocibridge

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"go.podman.io/image/v5/docker"

	"github.com/kedge-os/kedge/pkg/fault"
)

// TestBlobSizes: nothing that is computed from what a manifest says may wrap around.
func TestBlobSizes(t *testing.T) {
	const blob = `{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%064d","size":%d}`
	for size, kind := range map[int64]fault.Kind{0: 0, 1 << 40: 0, 1<<40 + 1: fault.Corrupt, 1<<63 - 1: fault.Corrupt, -1: fault.Corrupt} {
		text := fmt.Sprintf(`{"schemaVersion":2,"config":`+blob+`,"layers":[`+blob+`]}`, "config.v1+json", 1, 2, "layer.v1.tar+gzip", 2, size)
		if _, err := parseManifest([]byte(text), "application/vnd.oci.image.manifest.v1+json"); fault.KindOf(err) != kind {
			t.Errorf("a layer of %d bytes: %v, want %q", size, err, kind)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		err  error
		kind fault.Kind
		hint string
	}{
		{docker.ErrTooManyRequests, fault.Unavailable, "limits"},
		{docker.ErrUnauthorizedForCredentials{Err: errors.New("x")}, fault.Denied, "podman login"},
		{errcode.Errors{errcode.ErrorCodeDenied.WithMessage("no")}, fault.Denied, "auth.json"},
		{errcode.ErrorCodeTooManyRequests, fault.Unavailable, "limits"},
		{errcode.ErrorCodeUnavailable, fault.Unavailable, "network"},
		{v2.ErrorCodeManifestUnknown, fault.NotFound, "tag"},
		{v2.ErrorCodeBlobUnknown.WithDetail("x"), fault.NotFound, ""},
		{&transport.Error{StatusCode: http.StatusForbidden}, fault.Denied, "auth.json"},
		{&transport.Error{StatusCode: http.StatusBadGateway}, fault.Unavailable, "network"},
		{errors.New("StatusCode: 404, \"<html>\""), fault.NotFound, "name"},
		{x509.UnknownAuthorityError{}, fault.Untrusted, "certs.d"},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}, fault.Untrusted, "another name"},
		{errors.New("http: server gave HTTP response to HTTPS client"), fault.Unavailable, "insecure = true"},
		{io.ErrUnexpectedEOF, fault.Unavailable, "network"},
		{syscall.ECONNREFUSED, fault.Unavailable, "network"},
		{fmt.Errorf("open: %w", fs.ErrNotExist), fault.NotFound, ""},
		{fmt.Errorf("write: %w", syscall.ENOSPC), fault.NoSpace, ""},
		{fmt.Errorf("read: %w", syscall.EIO), fault.IO, ""},
		{context.Canceled, fault.Interrupted, ""},
		{fault.New(fault.Corrupt, "h", "x"), fault.Corrupt, "h"},
	} {
		err := classify(fmt.Errorf("deep: %w", tt.err), "doing it")
		if got := fault.KindOf(err); got != tt.kind {
			t.Errorf("%v is %v, want %v", tt.err, got, tt.kind)
		}
		if hint := fault.HintOf(err); !strings.Contains(hint, tt.hint) {
			t.Errorf("%v: hint %q does not speak of %q", tt.err, hint, tt.hint)
		}
	}
}
