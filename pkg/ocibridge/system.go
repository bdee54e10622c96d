package ocibridge

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Options say how images are looked up and read. The zero value is what a host
// wants.
type Options struct {
	// Root is put in front of the configuration's default paths
	// (/etc/containers, /usr/share/containers, /etc/ostree, …); "" is "/".
	Root string
	// PolicyFile, RegistriesConf, CertDir and AuthFile replace the defaults:
	// policy.json; registries.conf (and its directory, which is then not read);
	// the parent of certs.d's HOST[:PORT] directories; auth.json.
	PolicyFile, RegistriesConf, CertDir, AuthFile string

	OS, Architecture string // in Go's words; "" is this machine's

	// AllowUnbootable accepts images without a label that says they boot;
	// AllowPlatform accepts images for other platforms.
	AllowUnbootable, AllowPlatform bool

	// Origin names an image that has the blobs which the image's own place lacks.
	Origin *Reference

	Limits   Limits
	Retry    Retry
	Parallel int // layers read at once; 0 is one more than there are processors

	Progress Progress     // nil: none
	Logger   *slog.Logger // nil: none
}

func (o Options) withDefaults() Options {
	if o.OS == "" {
		o.OS = "linux"
	}
	if o.Architecture == "" {
		o.Architecture = runtime.GOARCH
	}
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0) + 1
	}
	if o.Progress == nil {
		o.Progress = noProgress{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Limits = o.Limits.withDefaults()
	o.Retry = o.Retry.withDefaults()
	return o
}

// system translates the options into go.podman.io/image's words.
func (o Options) system(ref Reference) *types.SystemContext {
	sys := &types.SystemContext{
		RootForImplicitAbsolutePaths: o.Root,
		SignaturePolicyPath:          o.PolicyFile,
		OSChoice:                     o.OS,
		ArchitectureChoice:           o.Architecture,
		DockerPerHostCertDirPath:     o.CertDir,
		DockerRegistryUserAgent:      "kedge",
		SystemRegistriesConfPath:     o.RegistriesConf,
	}
	if o.RegistriesConf != "" {
		sys.SystemRegistriesConfDirPath = filepath.Join(filepath.Dir(o.RegistriesConf), "registries.conf.d")
	}
	sys.AuthFilePath = o.authFile(sys, ref)
	return sys
}

// authFile chooses the file with credentials: the one asked for, then
// $REGISTRY_AUTH_FILE, then the first of ostree's that knows the registry. ""
// leaves the search to go.podman.io/image, which looks where `podman login` and
// `docker login` write. ostree-ext stops at the first ostree file that exists;
// looking on makes a login by podman count on a host whose image ships an
// auth.json for other registries.
func (o Options) authFile(sys *types.SystemContext, ref Reference) string {
	if o.AuthFile != "" {
		return o.AuthFile
	}
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" && o.Root == "" {
		return f
	}
	if ref.Transport != Registry {
		return ""
	}
	named, err := ref.named()
	if err != nil {
		return ""
	}
	for _, dir := range []string{"run", "etc", "usr/lib"} {
		file := filepath.Join("/", o.Root, dir, "ostree/auth.json")
		if _, err := os.Stat(file); err != nil {
			continue
		}
		s := *sys
		s.AuthFilePath = file
		c, err := config.GetCredentialsForRef(&s, named)
		if err != nil {
			o.Logger.Warn("credentials cannot be read", "file", file, "error", err)
			continue
		}
		if c != (types.DockerAuthConfig{}) {
			return file
		}
	}
	return ""
}

// imageReference makes the reference of go.podman.io/image.
func (r Reference) imageReference() (types.ImageReference, error) {
	ref, err := func() (types.ImageReference, error) {
		switch r.Transport {
		case Registry:
			named, err := r.named()
			if err != nil {
				return nil, err
			}
			return docker.NewReference(named)
		case OCI:
			return layout.ParseReference(r.Name)
		case OCIArchive:
			ref, err := archive.ParseReference(r.Name)
			if err != nil {
				return nil, err
			}
			file, image, _ := strings.Cut(r.Name, ":")
			return archiveReference{ref, file, image}, nil
		case Dir:
			return directory.Transport.ParseReference(r.Name)
		default:
			return storage.Transport.ParseReference(r.Name)
		}
	}()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "check the path", "image %s: %w", r, err)
	}
	if err != nil {
		return nil, fault.New(fault.Usage, "check how the image is written", "image reference %q: %w", r, err)
	}
	return ref, nil
}
