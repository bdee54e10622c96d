package boot

import (
	"strings"
	"testing"
)

// TestSELinuxEnforcing boots an image of kedge's with the policy enforced: a
// wrong or missing label on anything that boots would show here.
func TestSELinuxEnforcing(t *testing.T) {
	w := theWorld(t)
	w.buildHostImage(t, "os:selinux", "enforced")
	disk := w.newDisk(t, "ext4")
	w.install(t, disk, "os:selinux", "security=selinux", "selinux=1", "enforcing=1")

	g := start(t, w.machine(t, disk))
	g.checkHealth()
	g.want("SELinux enforces", "getenforce", "Enforcing")
	g.want("the policy's label is on a program", "stat -c %C /usr/bin/bash", "system_u:object_r:shell_exec_t:s0")
	g.want("the policy's label is on /etc", "stat -c %C /etc/shadow", "system_u:object_r:shadow_t:s0")
	g.want("a new file in /etc has its directory's label", "touch /etc/e2e && stat -c %C /etc/e2e | cut -d: -f3", "etc_t")
	if out := g.sh("matchpathcon -V /usr/bin/* /usr/sbin/* /usr/lib/systemd/* /etc/* | grep -v verified || true"); out != "" {
		t.Errorf("labels that are not the policy's:\n%s", out)
	}
	if out := g.sh("find / -xdev -context '*unlabeled_t*' 2>/dev/null | head"); out != "" {
		t.Errorf("unlabelled files:\n%s", out)
	}
	if out := g.output("journalctl -b --no-pager | grep -i 'avc:.*denied' | head -n 20"); strings.TrimSpace(out) != "" {
		t.Logf("what the policy denied (Debian's own policy denies some of a normal boot):\n%s", out)
	}
}
