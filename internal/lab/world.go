package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kedge-os/kedge/internal/dirfd"
)

// World is what stories about hosts need: a registry with the base image in it
// as os:base, a podman that knows the base, and a kedge to go into images.
type World struct {
	Dir      string // on the cache's file system; gone after Close
	Registry *Registry
	Podman   *Podman
	Kedge    string // static binary
	Conf     string // registries.conf for programs on this machine: CONTAINERS_REGISTRIES_CONF

	unlock func()
}

// NewWorld makes a World from the base image's OCI layout and a kedge binary;
// an empty kedge is built from this source tree.
func NewWorld(ctx context.Context, layout, kedge string) (*World, error) {
	// Next to the cache, so that blobs can be hard-linked.
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir, unlock, err := newWorldDir(ctx, cache)
	if err != nil {
		return nil, err
	}
	w := &World{Dir: dir, Kedge: kedge, Conf: filepath.Join(dir, "registries.conf"), unlock: unlock}
	if err := w.fill(ctx, layout); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *World) fill(ctx context.Context, layout string) (err error) {
	if w.Kedge == "" {
		w.Kedge = filepath.Join(w.Dir, "kedge")
		if err := BuildKedge(ctx, w.Kedge); err != nil {
			return err
		}
	}
	if w.Registry, err = StartRegistry(filepath.Join(w.Dir, "registry"), false); err != nil {
		return err
	}
	if _, err := w.Registry.Push(ctx, layout, TagAgent, "os", "base"); err != nil {
		return err
	}
	conf := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", w.Registry.Addr)
	if err := os.WriteFile(w.Conf, []byte(conf), 0o644); err != nil {
		return err
	}
	if w.Podman, err = NewPodman(filepath.Join(w.Dir, "podman")); err != nil {
		return err
	}
	// Pulled from the registry and not from the layout: podman then remembers
	// that this repository of it has the base's layers and does not push them
	// again: all images of a world are tags of os.
	_, err = w.Podman.Run(ctx, "pull", "--quiet", "--tls-verify=false", w.Registry.Repo("os:base"))
	return err
}

// Close ends the registry and removes everything.
func (w *World) Close() error {
	defer w.unlock()
	var err error
	if w.Registry != nil {
		w.Registry.Close()
	}
	if w.Podman != nil {
		err = w.Podman.Remove(context.Background())
	}
	return errors.Join(err, removeTree(w.Dir))
}

// removeTree removes a directory that may hold sysroots: the roots of their
// deployments are immutable.
func removeTree(dir string) error {
	parent, err := dirfd.OpenPath(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Remove(filepath.Base(dir))
}

// Build builds the image ref (name:tag in the registry) from a Containerfile
// given as text, with files as its context, and pushes it. kedge is in the
// context by its name.
func (w *World) Build(ctx context.Context, ref, containerfile string, files map[string]string) error {
	dir, err := os.MkdirTemp(w.Dir, "context-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "Containerfile"), []byte(containerfile), 0o644); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if _, err := Command(ctx, "cp", w.Kedge, filepath.Join(dir, "kedge")); err != nil {
		return err
	}
	return w.Podman.Build(ctx, dir, w.Registry.Repo(ref))
}

// AcceptUnsigned is a policy.json for hosts of the lab, whose images nobody signs.
const AcceptUnsigned = `{"default": [{"type": "insecureAcceptAnything"}]}`

// BuildHostImage builds ref: the base with kedge and its units in it, the lab's
// registry and AcceptUnsigned in its configuration, the text marker in /usr/share/marker, and a
// kernel argument lab.image=MARKER.
func (w *World) BuildHostImage(ctx context.Context, ref, marker string) error {
	containerfile := fmt.Sprintf(`FROM %s
COPY kedge /usr/bin/kedge
COPY lab.conf /etc/containers/registries.conf.d/lab.conf
COPY policy.json /etc/containers/policy.json
RUN chmod 755 /usr/bin/kedge && \
    kedge self units && \
    systemctl enable kedge-finalize-staged.service kedge-boot-complete.service kedge-health.service kedge-bless-boot.service && \
    echo %s >/usr/share/marker && \
    mkdir -p /usr/lib/bootc/kargs.d && \
    echo 'kargs = ["lab.image=%s"]' >/usr/lib/bootc/kargs.d/10-lab.toml
LABEL org.opencontainers.image.version="%s"
`, w.Registry.Repo("os:base"), marker, marker, marker)
	return w.Build(ctx, ref, containerfile, map[string]string{"lab.conf": w.Registry.GuestConfig(), "policy.json": AcceptUnsigned})
}

// Run runs kedge on this machine and returns what it printed to stdout.
func (w *World) Run(ctx context.Context, args ...string) (string, error) {
	return Command(ctx, "env", append([]string{"CONTAINERS_REGISTRIES_CONF=" + w.Conf, w.Kedge}, args...)...)
}
