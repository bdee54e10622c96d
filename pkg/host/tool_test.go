package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// TestComposefsTool installs with mkcomposefs as the writer of composefs images,
// on each backend where it can be, and without: the bytes are the same.
func TestComposefsTool(t *testing.T) {
	lab.Need(t, "mmdebstrap")
	tool := filepath.Join(t.TempDir(), "mkcomposefs")
	script := "#!/bin/sh\nexec " + filepath.Join(lab.SourceDir(), "hack/lab/mkcomposefs.sh") + " mkcomposefs \"$@\"\n"
	must(t, os.WriteFile(tool, []byte(script), 0o755))
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			var written []string
			for _, with := range []string{"", tool} {
				w := newWorldOf(t, b.name)
				if b.name == "composefs" {
					root, err := os.OpenRoot(w.dir)
					must(t, err)
					repo, err := composefs.CreateRepo(root, composefsDir, composefs.CreateOptions{Algorithm: fsverity.SHA256, AllowMissingVerity: true})
					must(t, err)
					must(t, repo.Close())
				}
				ref, _ := w.push("1", 1)
				cfg := w.config()
				cfg.ComposefsTool = with
				r, err := Install(context.Background(), cfg, w.options(ref))
				must(t, err)
				if b.name == "composefs" {
					written = append(written, r.ID) // the digest of the image
					continue
				}
				image, err := os.ReadFile(w.path(r.ID, cfsName))
				must(t, err)
				written = append(written, string(image))
			}
			if written[0] != written[1] || written[0] == "" {
				t.Errorf("mkcomposefs wrote another image than kedge")
			}
		})
	}
}
