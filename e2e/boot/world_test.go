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

// world is what the tests of this package share.
type world struct{ *lab.World }

var (
	shared    *lab.World
	sharedErr error
	once      sync.Once
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		if err := shared.Close(); err != nil {
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
	layout := lab.MachineImage(t)
	// Not the first test's context: the others use the world, too.
	once.Do(func() { shared, sharedErr = lab.NewWorld(context.Background(), layout, "") })
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return &world{shared}
}

// build builds the image ref from a Containerfile and pushes it.
func (w *world) build(t *testing.T, ref, containerfile string) {
	t.Helper()
	began := time.Now()
	if err := w.Build(t.Context(), ref, containerfile, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("built and pushed %s in %.1f s", ref, time.Since(began).Seconds())
}

// buildHostImage builds ref: the base with kedge in it and a marker.
func (w *world) buildHostImage(t *testing.T, ref, marker string) {
	t.Helper()
	if err := w.BuildHostImage(t.Context(), ref, marker); err != nil {
		t.Fatal(err)
	}
}

// install installs the image ref on a disk with kedge, to follow it from there.
func (w *world) install(t *testing.T, disk *lab.Disk, ref string, kargs ...string) {
	t.Helper()
	err := disk.With(t.Context(), func(root string) error {
		args := []string{
			"install", "to-filesystem", "--image", w.Registry.Repo(ref),
			"--target-image", w.Registry.GuestRepo(ref), "--bootloader", "none",
		}
		for _, k := range append(rootArgs, kargs...) {
			args = append(args, "--karg", k)
		}
		out, err := w.Run(t.Context(), append(args, root)...)
		t.Logf("kedge install:\n%s", out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// newDisk makes a disk with an empty file system labelled root.
func (w *world) newDisk(t *testing.T, fs string) *lab.Disk {
	t.Helper()
	path := filepath.Join(w.Dir, strings.ReplaceAll(t.Name(), "/", "-")+".img")
	disk, err := lab.NewDisk(t.Context(), path, fs, "root", 6<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return disk
}

// addBoot gives a disk a file system of its own for /boot, of a usual size.
func (w *world) addBoot(t *testing.T, disk *lab.Disk) {
	t.Helper()
	path := strings.TrimSuffix(disk.Path, ".img") + "-boot.img"
	if err := disk.AddBoot(t.Context(), path, "ext4", 512<<20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
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
