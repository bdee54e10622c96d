package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Tags of a base image's OCI layout (hack/lab/base-image.sh). All hold the same
// file system; TagAgent has the lab's agent in a second layer.
const (
	TagGzip    = "base"    // one gzip layer
	TagZstd20  = "base20"  // twenty zstd layers
	TagAgent   = "lab"     // base and the agent that Guest.Run talks to
	TagChunked = "chunked" // in the layout that ChunkedImage returns
)

// BaseImage returns the OCI layout of the lab's bootable Debian, making it when
// the cache does not hold it (root, three minutes).
func BaseImage(t testing.TB) string {
	t.Helper()
	return made(t, "base-image.sh")
}

// MachineImage returns the OCI layout of a Debian for virtual machines, a third of
// the base image, making it when the cache does not hold it (root, two minutes).
// It has TagGzip and TagAgent.
func MachineImage(t testing.TB) string {
	t.Helper()
	return made(t, "base-image.sh", "machine")
}

// ChunkedImage returns the OCI layout of the base image as an ostree-chunked
// image of 40 layers, made by the real ostree-ext (root, cargo, two minutes).
func ChunkedImage(t testing.TB) string {
	t.Helper()
	NeedCargo(t)
	return made(t, "chunked/large.sh")
}

// OSTreeComposefsImage returns the OCI layout of MachineImage with an ostree
// that has composefs, which its prepare-root.conf enables (root, three minutes).
// It has TagAgent alone.
func OSTreeComposefsImage(t testing.TB) string {
	t.Helper()
	return made(t, "composefs-image.sh")
}

// ComposefsBackendImage returns the OCI layout of MachineImage for the
// composefs backend: no ostree, and kedge-initramfs in the initramfs (root, two
// minutes). It has TagGzip and TagAgent, in zstd.
func ComposefsBackendImage(t testing.TB) string {
	t.Helper()
	return made(t, "composefs-backend-image.sh")
}

// PackageImages returns a directory with two small images, one of each package
// manager, in rpm/oci and deb/oci, with TagGzip in zstd and TagAgent, for both
// backends, and a repository for each in rpm/repository and deb/repository (root,
// three minutes).
func PackageImages(t testing.TB) string {
	t.Helper()
	return made(t, "packages-image.sh")
}

// BootFiles returns the kernel and the initramfs of what a recipe of this
// package made, outside of any image.
func BootFiles(layout string) (kernel, initramfs string, err error) {
	found, err := filepath.Glob(filepath.Join(filepath.Dir(layout), "modules/*"))
	if err != nil || len(found) != 1 {
		return "", "", fmt.Errorf("beside %s are the kernels %v, want one", layout, found)
	}
	return filepath.Join(found[0], "vmlinuz"), filepath.Join(found[0], "initramfs.img"), nil
}

func made(t testing.TB, recipe string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "making base images needs root")
	}
	layout, err := Make(t.Context(), recipe, args...)
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

// Make runs a recipe of hack/lab, which prints where what it made is.
func Make(ctx context.Context, recipe string, args ...string) (string, error) {
	return makeWith(recipe, func(path string) (string, error) { return Command(ctx, path, args...) })
}

// MakeAloud is Make with the recipe's words on this process's stderr.
func MakeAloud(ctx context.Context, recipe string) (string, error) {
	return makeWith(recipe, func(path string) (string, error) {
		cmd := exec.CommandContext(ctx, path)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		return string(out), err
	})
}

func makeWith(recipe string, run func(path string) (string, error)) (string, error) {
	out, err := run(filepath.Join(SourceDir(), "hack/lab", recipe))
	if err != nil {
		return "", fmt.Errorf("lab recipe %s: %w", recipe, err)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	made := lastLines(strings.TrimSpace(out), 1)
	return made, keepUsed(cache, made)
}

// SourceDir returns the top of kedge's source tree, where the recipes lie: the
// nearest directory above the working directory that has a go.mod. Tests and
// `go run` start inside the tree; the paths in a -trimpath binary lead nowhere.
func SourceDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			return dir
		}
	}
}

// CacheDir is where the lab keeps what takes long to make.
func CacheDir() (string, error) {
	if dir := os.Getenv("KEDGE_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "kedge"), nil
}
