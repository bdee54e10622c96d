package boot

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestEnforcingWithBoot boots an image of kedge's with the SELinux policy
// enforced, where a wrong or missing label on anything that boots shows, and
// with /boot on a file system of its own, mounted read-only: kernels and entries
// have to go there and nowhere else.
func TestEnforcingWithBoot(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	w.buildHostImage(t, "os:selinux", "enforced")
	w.build(t, "os:selinux", "FROM "+w.Registry.Repo("os:selinux")+"\nRUN echo 'LABEL=boot /boot ext4 ro 0 2' >/etc/fstab\n")
	disk := w.newDisk(t, "ext4")
	w.addBoot(t, disk)
	w.install(t, disk, "os:selinux", "security=selinux", "selinux=1", "enforcing=1")
	if k := kernels(t, disk); len(k) != 1 {
		t.Fatalf("after the installation /boot has the kernels %v, want one", k)
	}

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
	g.checkBootMount()
	g.sh("echo local >/etc/local")

	// The update runs confined too: kedge, and its unit at shutdown. Zeros after
	// an initramfs change its checksum and nothing else: the kernel has to be
	// brought to /boot too.
	w.build(t, "os:selinux", "FROM "+w.Registry.Repo("os:selinux")+`
RUN echo updated >/usr/share/marker && cp /usr/bin/true /usr/bin/brought && touch /etc/brought.conf && \
    head -c 4096 /dev/zero | tee -a /usr/lib/modules/*/initramfs.img >/dev/null
`)
	g.kedge("upgrade")
	g.checkBootMount()

	g = g.reboot(m)
	g.checkSELinux()
	g.checkBootMount()
	g.want("the upgrade is booted", "cat /usr/share/marker", "updated")
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("a derived layer's program is labelled", "stat -c %C /usr/bin/brought | cut -d: -f3", "bin_t")
	g.kedge("rollback")
	g.want("libostree sees both", "ostree admin status >/dev/null && ls /boot/loader/entries | wc -l", "2")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	if k := kernels(t, disk); len(k) != 2 {
		t.Errorf("after the upgrade /boot has the kernels %v, want both", k)
	}
	checkDisk(t, w, disk)
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
	// /sysroot/boot lay under the mounted /boot when the rest was labelled.
	g.want("the disk's root has its label", "stat -c %C /sysroot /sysroot/ostree | cut -d: -f3 | xargs", "root_t default_t")
	if out := g.output("find /sysroot /boot -xdev \\( -path /sysroot/boot -o -path '*/repo/objects' -o -path '*/deploy/*.[0-9]' \\) -prune -o -context '*unlabeled_t*' -print | head"); out != "" {
		g.t.Errorf("unlabelled files of the sysroot:\n%s", out)
	}
	if out := g.output("dmesg | grep -c 'avc:.*denied'"); out != "0" {
		g.t.Logf("%s accesses were denied; Debian's policy denies some of any boot", out)
	}
}

// checkBootMount looks for a /boot that the host mounts itself, read-only, and
// for nothing of it in the directory underneath.
func (g *guest) checkBootMount() {
	g.t.Helper()
	g.want("/boot is a file system of its own", "findmnt -n -o SOURCE,FSTYPE /boot | tr -s ' '", "/dev/vdb ext4")
	g.want("/boot is read-only", "findmnt -n -o OPTIONS /boot | grep -o '^r[ow]'", "ro")
	g.want("the directory underneath is empty", "ls -A /sysroot/boot | wc -l", "0")
}

// kernels returns the kernel directories on the disk's /boot.
func kernels(t *testing.T, disk *lab.Disk) (found []string) {
	t.Helper()
	err := disk.With(t.Context(), func(root string) (err error) {
		found, err = filepath.Glob(filepath.Join(root, "boot/ostree/*/vmlinuz*"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
