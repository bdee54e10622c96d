package boot

import (
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestSELinuxEnforcing boots an image of kedge's with the policy enforced: a
// wrong or missing label on anything that boots would show here.
func TestSELinuxEnforcing(t *testing.T) {
	w := theWorld(t)
	w.buildHostImage(t, "os:selinux", "enforced")
	disk := w.newDisk(t, "ext4")
	w.install(t, disk, "os:selinux", "security=selinux", "selinux=1", "enforcing=1")

	// A machine without SELinux installed it, and labelled it all the same.
	err := disk.With(t.Context(), func(root string) error {
		out, err := lab.Command(t.Context(), "getfattr", "--absolute-names", "--only-values", "-n", "security.selinux",
			root, root+"/boot", root+"/boot/loader/entries/ostree-1.conf", root+"/ostree/repo/config")
		want := "root_t:s0\x00system_u:object_r:boot_t:s0\x00system_u:object_r:boot_t:s0\x00system_u:object_r:default_t:s0\x00"
		if !strings.HasSuffix(out, want) {
			t.Errorf("after the installation the sysroot has the labels %q, want %q", out, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	m := w.machine(t, disk)
	g := start(t, m)
	g.checkSELinux()
	g.sh("echo local >/etc/local")

	// The update runs confined too: kedge, and its unit at shutdown.
	w.build(t, "os:selinux", "FROM "+w.Registry.Repo("os:selinux")+`
RUN echo updated >/usr/share/marker && cp /usr/bin/true /usr/bin/brought && touch /etc/brought.conf
`)
	g.kedge("upgrade")

	g = g.reboot(m)
	g.checkSELinux()
	g.want("the upgrade is booted", "cat /usr/share/marker", "updated")
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("a derived layer's program is labelled", "stat -c %C /usr/bin/brought | cut -d: -f3", "bin_t")
}

// checkSELinux looks for what must hold while the policy is enforced.
func (g *guest) checkSELinux() {
	g.t.Helper()
	g.checkHealth()
	g.want("SELinux enforces", "getenforce", "Enforcing")
	g.want("a program has its label", "stat -c %C /usr/bin/bash", "system_u:object_r:shell_exec_t:s0")
	g.want("a secret has its label", "stat -c %C /etc/shadow", "system_u:object_r:shadow_t:s0")
	if out := g.output("matchpathcon -V /usr/bin/* /usr/sbin/* /usr/lib/systemd/* | grep -v verified"); out != "" {
		g.t.Errorf("labels that are not the policy's:\n%s", out)
	}
	if out := g.output("find /usr /etc /var -xdev -context '*unlabeled_t*' | head"); out != "" {
		g.t.Errorf("unlabelled files:\n%s", out)
	}
	g.want("the disk's root has its label", "stat -c %C /sysroot /sysroot/ostree | cut -d: -f3 | xargs", "root_t default_t")
	if out := g.output("find /sysroot /boot -xdev \\( -path '*/repo/objects' -o -path '*/deploy/*.[0-9]' \\) -prune -o -context '*unlabeled_t*' -print | head"); out != "" {
		g.t.Errorf("unlabelled files of the sysroot:\n%s", out)
	}
	if out := g.output("dmesg | grep -c 'avc:.*denied'"); out != "0" {
		g.t.Logf("%s accesses were denied; Debian's policy denies some of any boot", out)
	}
}
