package host

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/lab"
)

// TestCfsctlFindsWhatIsDeployed asks composefs-rs's own program, in the version
// that bootc has: it checks the repository, names the images by the tags that
// bootc looks for, and collects nothing that a deployment needs.
func TestCfsctlFindsWhatIsDeployed(t *testing.T) {
	lab.Need(t, "cargo")
	script := filepath.Join(lab.SourceDir(), "hack/lab/cfsctl.sh")
	out, err := exec.Command(script, "--path").Output()
	if err != nil {
		lab.Skip(t, "hack/lab/cfsctl.sh cannot build cfsctl: %v", err)
	}
	w := newWorldOf(t, "composefs")
	cfsctl := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(strings.TrimSpace(string(out)), append([]string{"--repo", w.dir + "/composefs", "--hash", "sha512", "--insecure"}, args...)...)
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cfsctl %s: %v\n%s", strings.Join(args, " "), err, text)
		}
		return string(text)
	}
	ref, one := w.push("1", 1)
	w.install(ref)
	_, two := w.push("1", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	images := cfsctl("oci", "images")
	for _, digest := range []string{one, two} {
		if !strings.Contains(images, "localhost/bootc-"+digest) {
			t.Errorf("cfsctl does not find the image %s:\n%s", digest, images)
		}
	}
	cfsctl("gc")
	if got := cfsctl("fsck"); !strings.Contains(got, "status: ok") {
		t.Errorf("cfsctl fsck says:\n%s", got)
	}
	w.agree()
}
