package boot

import (
	"os"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestLifecycle is the user's story: install from a registry, boot, switch,
// upgrade and roll back, with a reboot after each.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	filesystems := []string{"ext4"}
	if os.Getenv("KEDGE_NIGHTLY") != "" {
		filesystems = append(filesystems, "xfs", "btrfs")
	}
	for _, fs := range filesystems {
		t.Run(fs, func(t *testing.T) { lifecycle(t, fs) })
	}
}

func lifecycle(t *testing.T, fs string) {
	w := theWorld(t)
	w.buildHostImage(t, "os:one", "one")
	w.build(t, "os:one", "FROM "+w.Registry.Repo("os:one")+"\nRUN echo default >/etc/kedge-e2e.conf\n")
	w.build(t, "os:two", "FROM "+w.Registry.Repo("os:one")+`
RUN echo two >/usr/share/marker && \
    echo new default >/etc/kedge-e2e.conf && \
    echo brought by two >/etc/brought && \
    rm /usr/share/doc/bash/copyright && \
    sed -i s/=one/=two/ /usr/lib/bootc/kargs.d/10-lab.toml
`)

	disk := w.newDisk(t, fs)
	w.install(t, disk, "os:one")

	m := w.machine(t, disk)
	g := start(t, m)
	g.checkHealth()
	g.want("the installed image is booted", "cat /usr/share/marker", "one")
	g.want("its kernel argument is there", "grep -o 'lab.image=[a-z]*' /proc/cmdline", "lab.image=one")
	if got := g.status().Status.Booted.Image.Image.Image; got != w.Registry.GuestRepo("os:one") {
		t.Errorf("status says that %q is booted, want the target image", got)
	}
	g.sh(`echo local >/etc/local && echo admin >>/etc/hosts && chmod 600 /etc/hosts && rm /etc/issue.net
		head -c 3000000 /dev/urandom >/etc/large && cp /etc/large /etc/large2
		mkdir -p /var/lib/e2e && echo data >/var/lib/e2e/data`)

	g.kedge("switch " + w.Registry.GuestRepo("os:two"))
	s := g.status()
	if s.Status.Staged == nil || s.Status.Staged.Image.Image.Image != w.Registry.GuestRepo("os:two") {
		t.Fatalf("after switch, status shows %+v as staged", s.Status.Staged)
	}
	g.want("libostree sees what is staged, and leaves it to kedge", "ostree admin status | grep -c 'finalization locked'", "1")
	// An edit between staging and shutdown is merged too, of a large file as well.
	large := g.sh("echo late >/etc/late; echo late >>/etc/large; cat /etc/large /etc/large2 | sha256sum")

	g = g.reboot(m)
	g.checkHealth()
	g.want("the new root is booted", "cat /usr/share/marker", "two")
	g.want("the new image's kernel argument replaced the old", "grep -o 'lab.image=[a-z]*' /proc/cmdline", "lab.image=two")
	g.want("arguments of the machine are kept", "grep -c root=LABEL=root /proc/cmdline", "1")
	g.want("a removed file is gone", "ls /usr/share/doc/bash/copyright 2>/dev/null || echo gone", "gone")
	g.want("a new default arrives", "cat /etc/kedge-e2e.conf", "new default")
	g.want("a new file arrives", "cat /etc/brought", "brought by two")
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("an edit survives", "tail -n 1 /etc/hosts", "admin")
	g.want("a changed mode survives", "stat -c %a /etc/hosts", "600")
	g.want("a local removal survives", "ls /etc/issue.net 2>/dev/null || echo gone", "gone")
	g.want("an edit after staging survives", "cat /etc/late", "late")
	g.want("large files survive", "cat /etc/large /etc/large2 | sha256sum", large)
	g.want("/var survives", "cat /var/lib/e2e/data", "data")
	before := g.status()
	if before.Status.Rollback == nil {
		t.Fatal("after a switch, status shows no rollback")
	}
	if code := g.exitCode("kedge upgrade --check --unchanged-exit-77"); code != 77 {
		t.Errorf("upgrade --check without news: exit code %d, want 77", code)
	}

	w.build(t, "os:two", "FROM "+w.Registry.Repo("os:two")+"\nRUN echo three >/usr/share/marker\n")
	if code := g.exitCode("kedge upgrade --check --unchanged-exit-77"); code != 0 {
		t.Errorf("upgrade --check with a newer digest: exit code %d, want 0", code)
	}
	g.kedge("upgrade")

	g = g.reboot(m)
	g.checkHealth()
	g.want("the upgrade is booted", "cat /usr/share/marker", "three")
	after := g.status()
	if after.Status.Booted.Image.ImageDigest == before.Status.Booted.Image.ImageDigest {
		t.Error("the booted image's digest did not change with the upgrade")
	}
	if after.Status.Rollback == nil || after.Status.Rollback.OSTree.Checksum != before.Status.Booted.OSTree.Checksum {
		t.Errorf("rollback is %+v, want what was booted before: %s", after.Status.Rollback, before.Status.Booted.OSTree.Checksum)
	}
	g.kedge("rollback")

	g = g.reboot(m)
	g.checkHealth()
	g.want("the old root is back", "cat /usr/share/marker", "two")
	if got := g.status().Status.Booted.OSTree.Checksum; got != before.Status.Booted.OSTree.Checksum {
		t.Errorf("booted %s, want the root from before the upgrade: %s", got, before.Status.Booted.OSTree.Checksum)
	}
	g.want("/var is shared", "cat /var/lib/e2e/data", "data")
	g.kedge("history")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, w, disk)
}

// checkDisk lets libostree and kedge check a host that is down.
func checkDisk(t *testing.T, w *world, disk *lab.Disk) {
	t.Helper()
	err := disk.With(t.Context(), func(root string) error {
		if _, err := lab.Command(t.Context(), "ostree", "fsck", "--repo="+root+"/ostree/repo"); err != nil {
			return err
		}
		_, err := w.Run(t.Context(), "--sysroot", root, "fsck")
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
