package interop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
)

// TestMount has cfsctl mount what kedge wrote, and reads it through the kernel;
// in a sealed repository the kernel checks every object.
func TestMount(t *testing.T) {
	lab.NeedRoot(t)
	for name, where := range map[string]func(testing.TB) string{
		"unsealed": func(t testing.TB) string { return t.TempDir() },
		"sealed":   verityDir,
	} {
		t.Run(name, func(t *testing.T) {
			cfs, dir := cfsctl(t), where(t)
			r := openRepo(t, dir, name == "unsealed")
			im := newImport(t, r, composefs.ImportOptions{})
			importImage(t, im, layoutOf(t, plainImage(t)...), composefs.Container{Raw: true, Tags: []string{"t"}})
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			mnt := filepath.Join(t.TempDir(), "mnt")
			if err := os.Mkdir(mnt, 0o755); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(cfs, "--repo", filepath.Join(dir, "composefs"), "oci", "mount", "--bootable", "t", mnt).CombinedOutput()
			if err != nil {
				if _, serr := os.Stat("/sys/fs/erofs"); serr != nil {
					lab.Skip(t, "this kernel has no EROFS: %s", out)
				}
				t.Fatalf("cfsctl oci mount: %v\n%s", err, out)
			}
			defer run(t, "umount", mnt)
			for path, want := range map[string]string{"usr/bin/big": bigText(300000), "usr/bin/inline64": "now smaller", "var/lib/new": bigText(7), "usr/bin/big-link": bigText(300000)} {
				if got := readFile(t, filepath.Join(mnt, path)); got != want {
					t.Errorf("%s has %d bytes, want %d", path, len(got), len(want))
				}
			}
			for _, gone := range []string{"usr/share/before", "run/gone", "boot/uki.efi"} {
				if _, err := os.Lstat(filepath.Join(mnt, gone)); err == nil {
					t.Errorf("%s is there", gone)
				}
			}
			if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !strings.Contains(string(text), mnt) {
				t.Errorf("nothing is mounted at %s: %v", mnt, err)
			}
		})
	}
}
