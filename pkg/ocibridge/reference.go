package ocibridge

import (
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"

	"github.com/kedge-os/kedge/pkg/fault"
)

// The transports an image can be read from. The names are those of bootc's
// spec; Registry is written "docker://" in front of an image.
const (
	Registry          = "registry"
	OCI               = "oci"
	OCIArchive        = "oci-archive"
	Dir               = "dir"
	ContainersStorage = "containers-storage"
)

var transports = []string{Registry, OCI, OCIArchive, Dir, ContainersStorage}

// StorageRoot returns the directory of the storage that a reference to
// containers-storage is in.
func (r Reference) StorageRoot() (string, error) {
	iref, err := r.imageReference()
	if err != nil {
		return "", err
	}
	// [DRIVER@ROOT+RUNROOT:OPTIONS]NAME
	_, rest, _ := strings.Cut(iref.StringWithinTransport(), "@")
	dir, _, ok := strings.Cut(rest, "+")
	if r.Transport != ContainersStorage || !ok {
		return "", fault.New(fault.Usage, "give a name as podman has it", "%s names no storage", r)
	}
	return dir, nil
}

// Verify says how the author of an image is checked.
type Verify uint8

const (
	// Unverified means: policy.json is evaluated and may accept anything.
	Unverified Verify = iota
	// Signed means: policy.json is evaluated and must demand a signature.
	Signed
	// OSTreeRemote means: the commit in the image is signed with a key of an ostree
	// remote. Such origins are read and written; Open refuses them.
	OSTreeRemote
)

// Reference names an image and how it is verified. References compare with ==.
type Reference struct {
	Transport string // one of the transports
	Name      string // what follows the transport, as the user wrote it
	Verify    Verify
	Remote    string // OSTreeRemote only: the remote's name
}

// ParseReference parses IMAGE as the command line has it: a transport-qualified
// name ("docker://quay.io/os/base:1", "oci:DIR:TAG"), or a plain name, which is
// one of the given transport ("" is Registry). The result is Unverified.
func ParseReference(s, transport string) (Reference, error) {
	r := Reference{Transport: transport, Name: s}
	switch {
	case transport == "docker":
		r.Transport = Registry
	case transport == "":
		r.Transport, r.Name = splitTransport(s)
	}
	if r.Transport == Registry {
		r.Name = strings.TrimPrefix(r.Name, "docker://")
	}
	return r, r.validate()
}

// splitTransport cuts a known transport off an image name.
func splitTransport(s string) (transport, name string) {
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return Registry, rest
	}
	prefix, rest, ok := strings.Cut(s, ":")
	if ok && (slices.Contains(transports, prefix) || slices.Contains(foreignTransports, prefix)) {
		return prefix, rest
	}
	return Registry, s
}

// foreignTransports are known to skopeo and cannot hold an OS image, or cannot
// be read as a stream. They are recognised so that "docker-archive:x.tar" is
// not taken for a repository with a tag.
var foreignTransports = []string{"docker-archive", "docker-daemon", "ostree", "sif", "tarball", "atomic"}

// ParseOrigin parses the value of an origin file's container-image-reference,
// in any form that bootc and rpm-ostree write.
func ParseOrigin(s string) (Reference, error) {
	scheme, rest, _ := strings.Cut(s, ":")
	var r Reference
	switch scheme {
	case "ostree-unverified-registry":
		r.Transport, r.Name = Registry, rest
		return r, r.validate()
	case "ostree-unverified-image":
	case "ostree-image-signed":
		r.Verify = Signed
	case "ostree-remote-registry", "ostree-remote-image":
		r.Verify = OSTreeRemote
		var ok bool
		if r.Remote, rest, ok = strings.Cut(rest, ":"); !ok || r.Remote == "" {
			return r, malformed(s, "the name of an ostree remote is missing")
		}
		if scheme == "ostree-remote-registry" {
			r.Transport, r.Name = Registry, rest
			return r, r.validate()
		}
	default:
		return r, malformed(s, "it begins with none of ostree-unverified-registry, ostree-unverified-image, ostree-image-signed, ostree-remote-registry, ostree-remote-image")
	}
	r.Transport, r.Name = splitTransport(rest)
	if r.Transport == Registry && !strings.HasPrefix(rest, "docker://") && !strings.HasPrefix(rest, "registry:") {
		return r, malformed(s, "the transport is missing")
	}
	return r, r.validate()
}

func (r Reference) validate() error {
	switch r.Transport {
	case Registry:
		if _, err := r.named(); err != nil {
			return malformed(r.Name, err.Error())
		}
	case OCI, OCIArchive, Dir, ContainersStorage:
		if r.Name == "" {
			return malformed(r.Transport+":", "nothing follows the transport")
		}
	default:
		return malformed(r.Transport+":"+r.Name, "unknown transport; known are "+strings.Join(transports, ", "))
	}
	return nil
}

func malformed(s, why string) error {
	return fault.New(fault.Usage, "an image is written [docker://]REGISTRY/NAME[:TAG|@DIGEST], or oci:DIR[:TAG], oci-archive:FILE, dir:DIR, containers-storage:NAME",
		"image reference %q: %s", s, why)
}

// named returns the name in the registry, with a tag or a digest. Of a name
// with both, the digest counts.
func (r Reference) named() (reference.Named, error) {
	n, err := reference.ParseNormalizedNamed(r.Name)
	if err != nil {
		return nil, err
	}
	if d, ok := n.(reference.Digested); ok {
		return reference.WithDigest(reference.TrimNamed(n), d.Digest())
	}
	return reference.TagNameOnly(n), nil
}

// String returns the image as a user would type it.
func (r Reference) String() string {
	if r.Transport == Registry {
		return r.Name
	}
	return r.Transport + ":" + r.Name
}

// Image returns the image with its transport, "docker://" for a registry: the
// form from which ostree-ext derives the name of an image's ref.
func (r Reference) Image() string {
	if r.Transport == Registry {
		return "docker://" + r.Name
	}
	return r.Transport + ":" + r.Name
}

// Origin returns the value of container-image-reference as ostree-ext writes
// it.
func (r Reference) Origin() string {
	switch {
	case r.Verify == Signed:
		return "ostree-image-signed:" + r.Image()
	case r.Verify == OSTreeRemote:
		return "ostree-remote-image:" + r.Remote + ":" + r.Image()
	case r.Transport == Registry:
		return "ostree-unverified-registry:" + r.Name
	}
	return "ostree-unverified-image:" + r.Image()
}

// Digest returns the digest that pins a registry image, or "".
func (r Reference) Digest() string {
	if r.Transport != Registry {
		return ""
	}
	if n, err := r.named(); err == nil {
		if d, ok := n.(reference.Digested); ok {
			return d.Digest().String()
		}
	}
	return ""
}

// Tag returns the tag of a registry image ("latest" where none is written), or
// "" for one that is pinned by digest and for other transports.
func (r Reference) Tag() string {
	if r.Transport != Registry {
		return ""
	}
	if n, err := r.named(); err == nil {
		if t, ok := n.(reference.Tagged); ok {
			return t.Tag()
		}
	}
	return ""
}

// WithDigest returns the reference to the same repository pinned to a digest
// ("sha256:…").
func (r Reference) WithDigest(d string) (Reference, error) {
	dg, err := digest.Parse(d)
	if err != nil {
		return r, malformed(d, err.Error())
	}
	return r.change(func(repo string) string { return repo + "@" + dg.String() })
}

// WithTag returns the reference to the same repository at another tag.
func (r Reference) WithTag(tag string) (Reference, error) {
	return r.change(func(repo string) string { return repo + ":" + tag })
}

// change replaces what follows the repository. Names are not normalised, so
// that an origin written by another tool stays as it was.
func (r Reference) change(to func(repo string) string) (Reference, error) {
	if r.Transport != Registry {
		return r, fault.New(fault.Conflict, "use an image of a registry", "%s has no tags or digests to choose from", r)
	}
	repo, _, _ := strings.Cut(r.Name, "@")
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		repo = repo[:i]
	}
	r.Name = to(repo)
	return r, r.validate()
}
