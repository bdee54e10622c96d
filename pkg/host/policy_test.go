package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
)

// TestPolicyRefresh: a policy with modules of the machine's is linked anew by the
// new image's program, on both backends, and where /etc is an overlay; without
// such modules nothing is run.
func TestPolicyRefresh(t *testing.T) {
	lab.Need(t, "bwrap", "go")
	bin := filepath.Join(t.TempDir(), "semodule")
	cmd := exec.Command("go", "build", "-o", bin, "../boot/testdata/semodule")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(bin)
	must(t, err)
	policy := []smallimage.Entry{
		smallimage.File("usr/sbin/semodule", 0o755, string(program)), smallimage.File("usr/lib/semodule-refreshes", 0, ""),
		smallimage.File("etc/selinux/config", 0, "SELINUX=permissive\nSELINUXTYPE=default\n"),
		smallimage.File("etc/selinux/default/contexts/files/file_contexts", 0, "/.*\tsystem_u:object_r:default_t:s0\n"),
	}
	overlay := smallimage.File("usr/lib/composefs/setup-root-conf.toml", 0, "[etc]\nmount = \"overlay\"\n")
	for name, more := range map[string][]smallimage.Entry{"": nil, "overlay": {overlay}} {
		onBoth(t, func(t *testing.T, w *world) {
			etc := "etc"
			if name == "overlay" {
				if w.backend != "composefs" {
					t.Skip("the configuration is the composefs backend's")
				}
				etc = "etc/upper"
			}
			images := append(policy[:len(policy):len(policy)], more...)
			a, _ := w.push("a", 1, images...)
			b, _ := w.push("b", 2, images...)
			c, _ := w.push("c", 3, images...)
			w.install(a)
			id := w.switchTo(b).ID
			if _, err := os.Stat(w.path(id, etc+"/selinux/refreshed")); err == nil {
				t.Error("the policy was refreshed without local changes")
			}
			w.write(w.path(id, etc+"/selinux/default/active/modules/mine"), "m")
			id = w.switchTo(c).ID
			if _, err := os.Stat(w.path(id, etc+"/selinux/refreshed")); err != nil {
				t.Errorf("the policy was not refreshed after local changes: %v", err)
			}
			if _, err := os.Stat(filepath.Join(w.dir, "state/kedge/policy")); err == nil {
				t.Error("the place where the root was put together is left behind")
			}
		})
	}
}
