package boot

import (
	"encoding/json"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// TestPackages puts a daemon of Debian on a booted host, from Debian: it runs
// after the reboot, stays over an upgrade of the image, and leaves no trace.
func TestPackages(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "four boots and two runs of apt in the machine, twelve minutes")
	w := theWorld(t)
	w.buildHostImage(t, "os:packages", "one")
	w.build(t, "os:packages", "FROM "+w.Registry.Repo("os:packages")+`
RUN mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt && \
    ln -sfn ../../usr/lib/sysimage/dpkg /var/lib/dpkg && \
    apt-get update && apt-get install -y --no-install-recommends bubblewrap && \
    rm -rf /var/lib/dpkg /var/lib/apt /var/cache/apt /var/log/apt
`)
	disk := w.newDisk(t, "ext4")
	w.install(t, disk, "os:packages")
	m := w.machine(t, disk)
	g := start(t, m)
	g.checkHealth()
	plain := bootedEntry(g)

	// A clock that the emulator lets fall behind makes Release files of the future.
	g.sh("printf 'Acquire::Check-Date \"false\";\\n' >/etc/apt/apt.conf.d/90lab")
	g.kedge("pkg add cron")
	g.want("what runs is as it was", "command -v cron || echo none", "none")

	g = g.reboot(m)
	g.checkHealth()
	g.want("the daemon runs", "systemctl is-active cron.service", "active")
	g.want("its database is consistent", "dpkg --admindir=/usr/lib/sysimage/dpkg --verify cron && echo clean", "clean")
	g.want("its spool is there, and its group's", "stat -c %G /var/spool/cron/crontabs", "crontab")
	g.want("bootc's garbage collection keeps the base", "ostree refs --repo=/ostree/repo --list ostree/container/baseimage/kedge | wc -l", "1")
	e := bootedEntry(g)
	if e.Kedge.Packages == nil || len(e.Kedge.Packages.Requested) != 1 || e.Kedge.BaseImage == nil || e.Kedge.BaseImage.ImageDigest != plain.Image.ImageDigest || !e.Incompatible {
		t.Errorf("status of a host with packages = %+v", e.Kedge)
	}

	w.build(t, "os:packages", "FROM "+w.Registry.Repo("os:packages")+"\nRUN echo two >/usr/share/marker\n")
	g.kedge("upgrade")
	g = g.reboot(m)
	g.checkHealth()
	g.want("the upgrade is booted", "cat /usr/share/marker", "two")
	g.want("the daemon runs still", "systemctl is-active cron.service", "active")
	g.kedge("pkg remove cron")

	g = g.reboot(m)
	g.checkHealth()
	g.want("the daemon is gone", "command -v cron || echo none", "none")
	g.want("the upgrade is not", "cat /usr/share/marker", "two")
	s := bootedEntry(g)
	if s.Incompatible || s.Kedge.Packages != nil {
		t.Errorf("status of the plain image = %+v", s)
	}
	var images []v1.StoredImage
	if err := json.Unmarshal([]byte(g.sh("kedge image list --json")), &images); err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		if i.Digest == s.Image.ImageDigest && i.Base != "" {
			t.Errorf("the root is %+v, want the plain image", i)
		}
	}
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, w, disk)
}

// bootedEntry is all that status says of what runs.
func bootedEntry(g *guest) *v1.BootEntry {
	g.t.Helper()
	var h v1.Host
	if err := json.Unmarshal([]byte(g.sh("kedge status --json")), &h); err != nil || h.Status.Booted == nil {
		g.t.Fatalf("status of a booted host: %v, %+v", err, h.Status)
	}
	return h.Status.Booted
}
