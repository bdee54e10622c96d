package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

const prepareRoot = "usr/lib/ostree/prepare-root.conf"

// TestCFSIsOSTrees: the composefs image of a deployment has the bytes that
// libostree with composefs writes for the same commit.
func TestCFSIsOSTrees(t *testing.T) {
	lab.Need(t, "mmdebstrap")
	w := newWorld(t)
	ref, _ := w.push("1", 1, smallimage.File(prepareRoot, 0, "[composefs]\nenabled=yes\n"))
	id := w.install(ref).ID
	name, _ := strings.CutPrefix(id, "default/")
	commit, _, _ := strings.Cut(name, ".")
	deploy := filepath.Join(w.dir, "ostree/deploy/default/deploy")
	ours, err := os.ReadFile(filepath.Join(deploy, name, cfsName))
	must(t, err)

	sid := filepath.Join(lab.SourceDir(), "hack/lab/mkcomposefs.sh")
	cmd := exec.Command(sid, "ostree", "admin", "deploy", "--sysroot="+w.dir, "--os=default", "--retain", commit)
	cmd.Env = append(os.Environ(), "OSTREE_SYSROOT_OPTS=skip-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ostree admin deploy: %v: %s", err, out)
	}
	theirs, err := os.ReadFile(filepath.Join(deploy, commit+".1", cfsName))
	must(t, err)
	if string(ours) != string(theirs) {
		t.Errorf("%s has %d bytes and is not that of libostree, which has %d", cfsName, len(ours), len(theirs))
	}
	st, err := os.Stat(filepath.Join(deploy, name, cfsName))
	must(t, err)
	if st.Mode() != 0o644 {
		t.Errorf("%s has the mode %v, want 0644", cfsName, st.Mode())
	}
}

// TestVerityIsRefused: an image that would not boot without fs-verity is not
// deployed.
func TestVerityIsRefused(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.push("1", 1)
	w.install(ref)
	before := w.snapshot()
	for _, value := range []string{"verity", "signed"} {
		ref, _ := w.push(value, 2, smallimage.File(prepareRoot, 0, "[composefs]\nenabled="+value+"\n"))
		_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) })
		wantKind(t, err, fault.Conflict, "fs-verity")
		if got := w.snapshot(); got != before {
			t.Errorf("enabled=%s: boot entries and deployments changed:\n%s\nbefore:\n%s", value, got, before)
		}
	}
}
