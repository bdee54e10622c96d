package offline

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// BuildKedge builds the program to test, unless KEDGE_BINARY names it.
func BuildKedge(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("KEDGE_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "kedge")
	if err := lab.BuildKedge(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Install makes a sysroot that runs an image and has been lived in: /etc differs from
// the image's defaults by a change, an addition and a removal.
func Install(t testing.TB, kedge, image string) string {
	t.Helper()
	sysroot := filepath.Join(t.TempDir(), "sysroot")
	if err := os.Mkdir(sysroot, 0o755); err != nil {
		t.Fatal(err)
	}
	Run(t, kedge, "install", "to-filesystem", "--image", image, "--bootloader", "none", "--karg", "root=LABEL=root", "--karg", "rw", sysroot)
	t.Cleanup(func() { Release(t, sysroot) })
	d := OSTreeDeployments(t, sysroot)
	if len(d) != 1 {
		t.Fatalf("after the installation ostree sees the deployments %v, want one", d)
	}
	for name, text := range map[string]string{"etc/edited.conf": "by the admin\n", "etc/added.conf": "by the admin\n"} {
		if err := os.WriteFile(filepath.Join(sysroot, d[0].Dir(), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(sysroot, d[0].Dir(), "etc/hostname")); err != nil {
		t.Fatal(err)
	}
	return sysroot
}
