// Package interop_test holds the composefs backend against the programs that
// share its repositories, and against ocibridge.
package interop_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// store makes an Import an ocibridge.Store.
type store struct{ *composefs.Import }

func (s store) Begin(diffID string) (ocibridge.LayerWriter, error) { return s.Import.Begin(diffID) }

var _ ocibridge.ArchiveWriter = (*composefs.LayerImport)(nil)

// verityDir returns a directory on a file system that has fs-verity.
func verityDir(t testing.TB) string {
	t.Helper()
	work := t.TempDir()
	if hasVerity(t, work) {
		return work
	}
	lab.NeedRoot(t)
	lab.Need(t, "mkfs.ext4", "mount", "umount")
	image, dir := filepath.Join(work, "disk"), filepath.Join(work, "mnt")
	run(t, "truncate", "-s", "6G", image)
	run(t, "mkfs.ext4", "-q", "-O", "verity", "-E", "lazy_itable_init=1", image)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no ext4 with fs-verity can be mounted: %s", out)
	}
	t.Cleanup(func() { run(t, "umount", dir) })
	if !hasVerity(t, dir) {
		t.Skip("this kernel has no fs-verity") // no package brings that: in CI too
	}
	return dir
}

func hasVerity(t testing.TB, dir string) bool {
	t.Helper()
	probe := filepath.Join(dir, "probe")
	if err := os.WriteFile(probe, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(probe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = fsverity.Seal(f, composefs.SHA512)
	return !errors.Is(err, fsverity.ErrNoVerity)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// openRepo makes or opens the repository dir/composefs.
func openRepo(t testing.TB, dir string, insecure bool) *composefs.Repo {
	t.Helper()
	r, err := composefs.CreateRepo(openRoot(t, dir), "composefs", composefs.CreateOptions{AllowMissingVerity: insecure})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func newImport(t testing.TB, r *composefs.Repo, o composefs.ImportOptions) *composefs.Import {
	t.Helper()
	im, err := r.NewImport(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func testStore(t *testing.T, r *composefs.Repo) {
	storetest.Run(t, func(t *testing.T) func() ocibridge.Store {
		if err := newImport(t, r, composefs.ImportOptions{}).Discard(); err != nil {
			t.Fatal(err)
		}
		var last *composefs.Import
		t.Cleanup(func() { _ = last.Close() })
		return func() ocibridge.Store {
			if last != nil { // one import at a time: the next process
				if err := last.Close(); err != nil {
					t.Fatal(err)
				}
			}
			last = newImport(t, r, composefs.ImportOptions{})
			return store{last}
		}
	})
}

func TestImportIsAStore(t *testing.T) {
	t.Run("unsealed", func(t *testing.T) { testStore(t, openRepo(t, t.TempDir(), true)) })
	t.Run("sealed", func(t *testing.T) { testStore(t, openRepo(t, verityDir(t), false)) })
}

func writePolicy(t testing.TB, name string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
}

// result is what came of an import.
type result struct {
	image   *ocibridge.Image
	written *composefs.Written
}

// importImage imports the image of an OCI layout, "DIR:TAG".
func importImage(t testing.TB, im *composefs.Import, layout string, c composefs.Container) (*ocibridge.Image, *composefs.Written) {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.json")
	writePolicy(t, policy)
	r, err := tryImport(im, layout, policy, c)
	if err != nil {
		t.Fatal(err)
	}
	return r.image, r.written
}

func tryImport(im *composefs.Import, layout, policy string, c composefs.Container) (r result, err error) {
	ref, err := ocibridge.ParseReference(layout, ocibridge.OCI)
	if err != nil {
		return r, err
	}
	ctx := context.Background()
	src, err := ocibridge.Open(ctx, ref, ocibridge.Options{PolicyFile: policy, AllowUnbootable: true, AllowPlatform: true})
	if err != nil {
		return r, err
	}
	defer src.Close()
	src.Plain()
	if r.image, err = src.Import(ctx, store{im}); err != nil {
		return r, err
	}
	c.ManifestDigest, c.Manifest, c.Config, c.Tree = r.image.ManifestDigest, r.image.Manifest, r.image.Config, r.image.Tree
	for _, l := range r.image.Layers {
		c.DiffIDs = append(c.DiffIDs, l.DiffID)
	}
	r.written, err = im.WriteImage(ctx, c)
	return r, err
}
