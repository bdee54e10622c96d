package ocibridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/oci/layout"

	"github.com/kedge-os/kedge/pkg/fault"
)

const (
	authHint = "log in with `podman login REGISTRY`, or put credentials into /etc/ostree/auth.json (looked up in order: $REGISTRY_AUTH_FILE, /run, /etc and /usr/lib/ostree/auth.json, then podman's files)"
	caHint   = "put the registry's CA into /etc/containers/certs.d/HOST[:PORT]/ca.crt, or correct this machine's clock"
	httpHint = "for a registry without TLS, set insecure = true for it in /etc/containers/registries.conf.d"
	netHint  = "check the network and the registry's name, and run the command again"
	nameHint = "check the image's name, tag and digest; a private repository may also hide behind this answer until you log in"
)

// classify gives an error of go.podman.io/image or the network its kind. An
// error that has one is returned as it is. What is not recognised came out of
// a conversation with a registry and counts as Unavailable.
func classify(err error, doing string) error {
	var f *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return err
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", doing, err)
	}
	if k := fault.KindOf(err); k == fault.NoSpace || k == fault.IO {
		return fmt.Errorf("%s: %w", doing, err)
	}
	kind, hint := kindOf(err)
	return fault.New(kind, hint, "%s: %w", doing, err)
}

func kindOf(err error) (fault.Kind, string) {
	var (
		unauthorized docker.ErrUnauthorizedForCredentials
		code         errcode.ErrorCoder
		codes        errcode.Errors
		status       docker.UnexpectedHTTPStatusError
		noImage      layout.ImageNotFoundError
		resumed      *transport.Error
	)
	switch {
	case errors.Is(err, docker.ErrTooManyRequests):
		return kindOfStatus(http.StatusTooManyRequests)
	case errors.As(err, &unauthorized):
		return fault.Denied, authHint
	case errors.As(err, &code):
		return kindOfCode(code.ErrorCode())
	case errors.As(err, &codes) && len(codes) > 0:
		return kindOf(codes[0])
	case errors.As(err, &status):
		return kindOfStatus(status.StatusCode)
	case errors.As(err, &resumed):
		return kindOfStatus(resumed.StatusCode)
	case errors.As(err, &noImage), errors.Is(err, fs.ErrNotExist):
		return fault.NotFound, nameHint
	case errors.Is(err, fs.ErrPermission):
		return fault.Denied, ""
	}
	if hint, ok := certificateError(err); ok {
		return fault.Untrusted, hint
	}
	if s := httpStatus(err); s != 0 {
		return kindOfStatus(s)
	}
	return fault.Unavailable, networkHint(err)
}

func kindOfCode(c errcode.ErrorCode) (fault.Kind, string) {
	switch c {
	case errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied:
		return fault.Denied, authHint
	case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeBlobUnknown, v2.ErrorCodeNameInvalid:
		return fault.NotFound, nameHint
	}
	return kindOfStatus(c.Descriptor().HTTPStatusCode)
}

func kindOfStatus(status int) (fault.Kind, string) {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Denied, authHint
	case http.StatusNotFound, http.StatusGone:
		return fault.NotFound, nameHint
	case http.StatusTooManyRequests:
		return fault.Unavailable, "the registry limits how often it may be asked; wait, or log in"
	}
	return fault.Unavailable, netHint
}

// httpStatus finds the status in errors whose type go.podman.io/image does not
// export: their text is "StatusCode: 404, …" or "error parsing HTTP 404 response
// body: …".
func httpStatus(err error) int {
	var status int
	text := err.Error()
	for _, form := range []struct{ prefix, scan string }{
		{"StatusCode: ", "StatusCode: %d"},
		{"error parsing HTTP ", "error parsing HTTP %d"},
		{"invalid status code from registry ", "invalid status code from registry %d"},
	} {
		if i := strings.Index(text, form.prefix); i >= 0 {
			if _, err := fmt.Sscanf(text[i:], form.scan, &status); err == nil {
				return status
			}
		}
	}
	return 0
}

func certificateError(err error) (hint string, ok bool) {
	var (
		verify *tls.CertificateVerificationError
		author x509.UnknownAuthorityError
		host   x509.HostnameError
		other  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &verify), errors.As(err, &author), errors.As(err, &other):
		return caHint, true
	case errors.As(err, &host):
		return "the certificate is for another name: use the name that is in it", true
	}
	return "", false
}

func networkHint(err error) string {
	var record tls.RecordHeaderError
	if errors.As(err, &record) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return httpHint
	}
	return netHint
}
