package smallimage_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
)

// TestUmociUnpacksTheImage shows that the images are right for others too.
func TestUmociUnpacksTheImage(t *testing.T) {
	lab.Need(t, "umoci")
	lab.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "layout")
	smallimage.Layout(t, dir, map[string]v1.Image{"v1": smallimage.New(t, "1", smallimage.OS(1)), "v2": smallimage.New(t, "2", smallimage.OS(2))})
	out, err := exec.Command("umoci", "unpack", "--image", dir+":v1", filepath.Join(t.TempDir(), "bundle")).CombinedOutput()
	if err != nil {
		t.Fatalf("umoci unpack: %v\n%s", err, strings.TrimSpace(string(out)))
	}
}
