package boot

import (
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestLifecycle is the user's story on a root that is a plain tree of the ostree
// backend: install from a registry, boot, switch, upgrade and roll back, with a
// reboot after each.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "four boots on each file system, a quarter of an hour")
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) { lifecycle(t, fs) })
	}
}

func lifecycle(t *testing.T, fs string) {
	w := theWorld(t)
	w.buildHostImage(t, "os:one", "one")
	w.build(t, "os:one", "FROM "+w.Registry.Repo("os:one")+defaultOfOne)
	w.build(t, "os:two", "FROM "+w.Registry.Repo("os:one")+changesOfTwo)

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
	g.edit()

	g.kedge("switch " + w.Registry.GuestRepo("os:two"))
	s := g.status()
	if s.Status.Staged == nil || s.Status.Staged.Image.Image.Image != w.Registry.GuestRepo("os:two") {
		t.Fatalf("after switch, status shows %+v as staged", s.Status.Staged)
	}
	g.want("libostree sees what is staged, and leaves it to kedge", "ostree admin status | grep -c 'finalization locked'", "1")
	made := g.editLate()

	g = g.reboot(m)
	g.checkHealth()
	g.checkTwo()
	made.check(g)
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
