package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
)

// world is what the tests of this package share: a registry with the base image
// in it, a podman that knows the base, and the kedge under test.
type world struct {
	dir      string
	registry *lab.Registry
	podman   *lab.Podman
	kedge    string // static binary
	conf     string // registries.conf for programs on this machine
}

var (
	shared    *world
	sharedErr error
	once      sync.Once
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		if err := shared.close(); err != nil {
			fmt.Fprintln(os.Stderr, "cleaning up:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// theWorld makes the shared world at its first call.
func theWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "podman", "ostree", "mkfs.ext4", "mmdebstrap", "go")
	layout := lab.BaseImage(t)
	once.Do(func() { shared, sharedErr = newWorld(context.Background(), layout) })
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

func newWorld(ctx context.Context, layout string) (*world, error) {
	// Next to the cache, so that blobs can be hard-linked.
	cache, err := lab.CacheDir()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(cache, "e2e-")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, kedge: filepath.Join(dir, "kedge"), conf: filepath.Join(dir, "registries.conf")}
	if err := lab.BuildKedge(ctx, w.kedge); err != nil {
		return nil, err
	}
	if w.registry, err = lab.StartRegistry(filepath.Join(dir, "registry"), false); err != nil {
		return nil, err
	}
	if _, err := w.registry.Push(ctx, layout, lab.TagAgent, "base", "latest"); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", w.registry.Addr)
	if err := os.WriteFile(w.conf, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	if w.podman, err = lab.NewPodman(filepath.Join(dir, "podman")); err != nil {
		return nil, err
	}
	// Pulled from the registry and not from the layout: podman then remembers
	// that the registry has the base's layers and does not push them again.
	_, err = w.podman.Run(ctx, "pull", "--quiet", "--tls-verify=false", w.registry.Repo("base:latest"))
	return w, err
}

func (w *world) close() error {
	w.registry.Close()
	return errors.Join(w.podman.Remove(context.Background()), os.RemoveAll(w.dir))
}

// build builds the image ref (name:tag) from a Containerfile whose FROM names
// images below the registry, and pushes it.
func (w *world) build(t *testing.T, ref, containerfile string, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(w.kedge, filepath.Join(dir, "kedge")); err != nil {
		if _, err := lab.Command(t.Context(), "cp", w.kedge, filepath.Join(dir, "kedge")); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := w.podman.Build(t.Context(), containerfile, dir, w.registry.Repo(ref)); err != nil {
		t.Fatal(err)
	}
	t.Logf("built and pushed %s in %.1f s", ref, time.Since(began).Seconds())
}

// buildHostImage builds ref: the base with kedge in it and a marker.
func (w *world) buildHostImage(t *testing.T, ref, marker string) {
	t.Helper()
	w.build(t, ref, fmt.Sprintf(`FROM %s
COPY kedge /usr/bin/kedge
COPY *.service /usr/lib/systemd/system/
COPY lab.conf /etc/containers/registries.conf.d/lab.conf
RUN chmod 755 /usr/bin/kedge && \
    systemctl enable kedge-finalize-staged.service kedge-boot-complete.service && \
    echo %s >/usr/share/marker && \
    echo default >/etc/kedge-e2e.conf && \
    mkdir -p /usr/lib/bootc/kargs.d && \
    echo 'kargs = ["e2e.image=%s"]' >/usr/lib/bootc/kargs.d/10-e2e.toml
`, w.registry.Repo("base:latest"), marker, marker), w.hostFiles(t))
}

// hostFiles are the files that an image with kedge has beside it.
func (w *world) hostFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{"lab.conf": w.registry.GuestConfig()}
	for name, text := range unitTexts(t) {
		files[name] = text
	}
	return files
}

// run runs kedge on this machine.
func (w *world) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab.Command(t.Context(), "env", append([]string{"CONTAINERS_REGISTRIES_CONF=" + w.conf, w.kedge}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newDisk makes a disk with an empty file system labelled root.
func (w *world) newDisk(t *testing.T, fs string) *lab.Disk {
	t.Helper()
	path := filepath.Join(w.dir, strings.ReplaceAll(t.Name(), "/", "-")+".img")
	disk, err := lab.NewDisk(t.Context(), path, fs, "root", 6<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return disk
}

// machine puts a disk into a virtual machine.
func (w *world) machine(t *testing.T, disk *lab.Disk) *lab.Machine {
	t.Helper()
	// Kept after the run: a console is what one looks at when a boot fails.
	cache, err := lab.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "consoles", strings.ReplaceAll(t.Name(), "/", "-"))
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Logf("consoles in %s", dir)
	return &lab.Machine{Disk: disk, Dir: dir}
}
