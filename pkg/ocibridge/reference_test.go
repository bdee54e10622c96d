package ocibridge_test

import (
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	tests := []struct {
		in, transport string
		want          ocibridge.Reference
		image, origin string
	}{
		{
			"quay.io/os/base:1", "",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/os/base:1"},
			"docker://quay.io/os/base:1", "ostree-unverified-registry:quay.io/os/base:1",
		},
		{
			"docker://localhost:5000/base", "",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "localhost:5000/base"},
			"docker://localhost:5000/base", "ostree-unverified-registry:localhost:5000/base",
		},
		{
			"quay.io/os/base@" + someDigest, "registry",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/os/base@" + someDigest},
			"docker://quay.io/os/base@" + someDigest, "ostree-unverified-registry:quay.io/os/base@" + someDigest,
		},
		{
			"oci:/srv/image:v1", "",
			ocibridge.Reference{Transport: ocibridge.OCI, Name: "/srv/image:v1"},
			"oci:/srv/image:v1", "ostree-unverified-image:oci:/srv/image:v1",
		},
		{
			"/srv/image.tar", "oci-archive",
			ocibridge.Reference{Transport: ocibridge.OCIArchive, Name: "/srv/image.tar"},
			"oci-archive:/srv/image.tar", "ostree-unverified-image:oci-archive:/srv/image.tar",
		},
		{
			"localhost/os:latest", "containers-storage",
			ocibridge.Reference{Transport: ocibridge.ContainersStorage, Name: "localhost/os:latest"},
			"containers-storage:localhost/os:latest", "ostree-unverified-image:containers-storage:localhost/os:latest",
		},
		{
			"dir:/srv/x", "",
			ocibridge.Reference{Transport: ocibridge.Dir, Name: "/srv/x"},
			"dir:/srv/x", "ostree-unverified-image:dir:/srv/x",
		},
	}
	for _, tt := range tests {
		got, err := ocibridge.ParseReference(tt.in, tt.transport)
		if err != nil || got != tt.want {
			t.Errorf("ParseReference(%q, %q) = %+v, %v; want %+v", tt.in, tt.transport, got, err, tt.want)
			continue
		}
		if got.Image() != tt.image || got.Origin() != tt.origin {
			t.Errorf("%q: image %q and origin %q, want %q and %q", tt.in, got.Image(), got.Origin(), tt.image, tt.origin)
		}
		if back, err := ocibridge.ParseOrigin(got.Origin()); err != nil || back != got {
			t.Errorf("ParseOrigin(%q) = %+v, %v; want %+v", got.Origin(), back, err, got)
		}
	}
	for _, bad := range []struct{ in, transport string }{
		{"", ""},
		{"Quay.io/Upper/Case", ""},
		{"docker-archive:x.tar", ""},
		{"docker://", ""},
		{"oci:", ""},
		{"quay.io/os/base:", ""},
		{"quay.io/os/base@sha256:1234", ""},
		{"quay.io/os/base", "ftp"},
		{"a b", ""},
	} {
		if got, err := ocibridge.ParseReference(bad.in, bad.transport); fault.KindOf(err) != fault.Usage {
			t.Errorf("ParseReference(%q, %q) = %+v, %v; want a usage error", bad.in, bad.transport, got, err)
		}
	}
}

// TestParseOrigin has the forms of ostree-ext's documentation and tests.
func TestParseOrigin(t *testing.T) {
	tests := []struct {
		in     string
		want   ocibridge.Reference
		origin string // "" where it is the same as in
	}{
		{
			"ostree-unverified-image:docker://quay.io/os/base:1",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/os/base:1"},
			"ostree-unverified-registry:quay.io/os/base:1",
		},
		{
			"ostree-unverified-image:registry:quay.io/os/base",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/os/base"},
			"ostree-unverified-registry:quay.io/os/base",
		},
		{"ostree-image-signed:docker://quay.io/os/base", ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/os/base", Verify: ocibridge.Signed}, ""},
		{
			"ostree-image-signed:registry:quay.io/os/base",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/os/base", Verify: ocibridge.Signed},
			"ostree-image-signed:docker://quay.io/os/base",
		},
		{"ostree-image-signed:oci:/srv/x", ocibridge.Reference{Transport: ocibridge.OCI, Name: "/srv/x", Verify: ocibridge.Signed}, ""},
		{
			"ostree-remote-registry:fedora:quay.io/fedora/os:41",
			ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/fedora/os:41", Verify: ocibridge.OSTreeRemote, Remote: "fedora"},
			"ostree-remote-image:fedora:docker://quay.io/fedora/os:41",
		},
		{"ostree-remote-image:fedora:docker://quay.io/fedora/os:41", ocibridge.Reference{Transport: ocibridge.Registry, Name: "quay.io/fedora/os:41", Verify: ocibridge.OSTreeRemote, Remote: "fedora"}, ""},
	}
	for _, tt := range tests {
		got, err := ocibridge.ParseOrigin(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("ParseOrigin(%q) = %+v, %v; want %+v", tt.in, got, err, tt.want)
			continue
		}
		want := tt.origin
		if want == "" {
			want = tt.in
		}
		if got.Origin() != want {
			t.Errorf("%q is written as %q, want %q", tt.in, got.Origin(), want)
		}
	}
	for _, bad := range []string{
		"", "quay.io/os/base", "docker://quay.io/os/base", "ostree-unverified-image:quay.io/os/base",
		"ostree-remote-registry:fedora", "ostree-remote-image::docker://x", "ostree-unverified-registry:", "ostree-image-signed:docker://",
	} {
		if got, err := ocibridge.ParseOrigin(bad); err == nil {
			t.Errorf("ParseOrigin(%q) = %+v, want an error", bad, got)
		}
	}
}

func TestReferenceParts(t *testing.T) {
	for _, tt := range []struct{ in, tag, digest, otherTag, otherDigest string }{
		{"localhost:5000/os", "latest", "", "localhost:5000/os:new", "localhost:5000/os@" + someDigest},
		{"quay.io/os/base:1", "1", "", "quay.io/os/base:new", "quay.io/os/base@" + someDigest},
		{"quay.io/os/base@" + someDigest, "", someDigest, "quay.io/os/base:new", "quay.io/os/base@" + someDigest},
		{"quay.io/os/base:1@" + someDigest, "", someDigest, "quay.io/os/base:new", "quay.io/os/base@" + someDigest},
	} {
		r, err := ocibridge.ParseReference(tt.in, "")
		if err != nil {
			t.Fatal(err)
		}
		if r.Tag() != tt.tag || r.Digest() != tt.digest {
			t.Errorf("%s: tag %q, digest %q; want %q, %q", tt.in, r.Tag(), r.Digest(), tt.tag, tt.digest)
		}
		if o, err := r.WithTag("new"); err != nil || o.Name != tt.otherTag {
			t.Errorf("%s with the tag new is %s (%v), want %s", tt.in, o.Name, err, tt.otherTag)
		}
		if o, err := r.WithDigest(someDigest); err != nil || o.Name != tt.otherDigest {
			t.Errorf("%s with a digest is %s (%v), want %s", tt.in, o.Name, err, tt.otherDigest)
		}
	}
	r, _ := ocibridge.ParseReference("oci:/srv/x:1", "")
	if _, err := r.WithTag("2"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a tag for a layout: %v, want a conflict", err)
	}
}

func FuzzParseOrigin(f *testing.F) {
	f.Add("ostree-image-signed:docker://quay.io/os/base@" + someDigest)
	f.Add("ostree-remote-image:fedora:oci:/x:y")
	f.Add("ostree-unverified-registry:a:b@c")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ocibridge.ParseOrigin(s)
		if err != nil {
			return
		}
		if back, err := ocibridge.ParseOrigin(r.Origin()); err != nil || back != r {
			t.Errorf("%q is read as %+v, written as %q, and read back as %+v (%v)", s, r, r.Origin(), back, err)
		}
	})
}
