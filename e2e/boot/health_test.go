package boot

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/lab"
)

// TestHealth boots an upgrade whose checks fail, on a machine whose boot loader
// does not count boots: nothing is rebooted, everything is told, and whoever
// takes the previous line of the menu finds it settled.
func TestHealth(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	w.buildHostImage(t, "os:healthy", "healthy")
	w.build(t, "os:healthy", "FROM "+w.Registry.Repo("os:healthy")+`
RUN mkdir -p /usr/lib/kedge/health.d /etc/greenboot/check/wanted.d && \
    printf '#!/bin/sh\ngrep -q healthy /usr/share/marker\n' >/usr/lib/kedge/health.d/10-marker && \
    chmod 755 /usr/lib/kedge/health.d/10-marker && \
    echo 'echo wanted; exit 3' >/etc/greenboot/check/wanted.d/wish.sh
`)
	w.build(t, "os:stable", "FROM "+w.Registry.Repo("os:healthy")+"\n")

	disk := w.newDisk(t, "ext4")
	w.install(t, disk, "os:stable")
	// One that fails, and kills what judges it.
	w.build(t, "os:stable", "FROM "+w.Registry.Repo("os:healthy")+`
RUN echo sick >/usr/share/marker && \
    printf '#!/bin/sh\nkill -9 $PPID\n' >/usr/lib/kedge/health.d/05-kills && chmod 755 /usr/lib/kedge/health.d/05-kills
LABEL org.opencontainers.image.version="sick"
`)
	w.upgrade(t, disk, "os:stable")

	m := w.machine(t, disk)
	m.BootTimeout = scriptTimeout
	g := start(t, m)
	g.awaitJudged("signal")
	g.want("the sick image runs, and is not rebooted", "cat /usr/share/marker", "sick")
	g.want("the boot cannot be complete", "{ systemctl start boot-complete.target 2>/dev/null || true; }; systemctl is-active boot-complete.target || true", "inactive")
	s := g.health()
	if s.AutoRollback.State != v1.RollbackUnsupported || s.AutoRollback.Reason == "" {
		t.Errorf("autoRollback = %+v, want unsupported and why", s.AutoRollback)
	}
	if s.Current == nil || s.Current.State != v1.HealthFailed || s.Current.Check != "/usr/lib/kedge/health.d/05-kills" {
		t.Errorf("health of the sick boot = %+v", s.Current)
	}
	if out := g.output("journalctl -b -u kedge-health-failed.service --no-pager"); !strings.Contains(out, "the machine is not rebooted") {
		t.Errorf("the journal does not say why the machine is not rebooted:\n%s", out)
	}
	// The same image, whose check now only fails.
	g.sh("mkdir -p /etc/kedge/health.d && ln -s /dev/null /etc/kedge/health.d/05-kills")
	if code := g.exitCode("systemctl restart kedge-health.service"); code == 0 {
		t.Error("the failing check let the unit start")
	}
	g.awaitJudged("exit-code")
	if s = g.health(); s.Current == nil || s.Current.Check != "/usr/lib/kedge/health.d/10-marker" || s.Current.Failures != 1 {
		t.Errorf("health after the second look = %+v", s.Current)
	}

	m.MenuEntry = 1 // chosen by hand
	g = g.reboot(m)
	m.MenuEntry = 0
	g.awaitJudged("success")
	g.want("the healthy image runs", "cat /usr/share/marker", "healthy")
	g.want("the boot can be complete", "systemctl start boot-complete.target && systemctl is-active boot-complete.target", "active")
	t.Logf("cost of the units:\n%s", g.output("systemctl show -P CPUUsageNSec kedge-health.service kedge-boot-complete.service; systemd-analyze blame | grep kedge; systemd-analyze"))
	s = g.health()
	if s.Current == nil || s.Current.State != v1.HealthGood || s.Current.Passed != 1 || len(s.Current.Checks) != 1 || s.Current.Checks[0].Output != "wanted\n" {
		t.Errorf("health of a good boot = %+v", s.Current)
	}
	if r := s.LastRollback; r == nil || r.By != v1.ByMenu || r.Reason != v1.HeldCheck || r.FromVersion != "sick" || r.Check != "/usr/lib/kedge/health.d/10-marker" {
		t.Errorf("last rollback = %+v", r)
	}
	if len(s.Quarantine) != 1 || s.Quarantine[0].Version != "sick" {
		t.Errorf("quarantine = %+v", s.Quarantine)
	}
	if code := g.exitCode("kedge upgrade"); code != 12 {
		t.Errorf("upgrade to what failed: exit code %d, want 12", code)
	}
	g.kedge("status")
	g.kedge("history")
	g.kedge("health quarantine clear")
	if code := g.exitCode("kedge upgrade --check"); code != 0 {
		t.Errorf("upgrade --check after the clearing: exit code %d", code)
	}
	g.checkHealth()
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, w, disk)
}

// upgrade moves a host on a disk to what the tag that it follows leads to.
func (w *world) upgrade(t *testing.T, disk *lab.Disk, ref string) {
	t.Helper()
	// The address at which the guest finds the registry is this machine's here.
	guest, _, _ := strings.Cut(w.Registry.GuestRepo(ref), "/")
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", guest, w.Registry.Addr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	err := disk.With(t.Context(), func(root string) error {
		out, err := lab.Command(t.Context(), "env", "CONTAINERS_REGISTRIES_CONF="+conf, w.Kedge, "--sysroot", root, "upgrade")
		t.Logf("kedge upgrade:\n%s", out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitJudged waits until kedge's unit has ended with a result.
func (g *guest) awaitJudged(result string) {
	g.t.Helper()
	g.sh(`for _ in $(seq 600); do
		case $(systemctl show -P ActiveState kedge-health.service) in active|failed) break;; esac; sleep 1
	done
	for _ in $(seq 600); do [ "$(systemctl show -P ActiveState kedge-health-failed.service)" != activating ] && break; sleep 1; done`)
	g.want("what judges the boot has ended", "systemctl show -P Result kedge-health.service", result)
}

func (g *guest) health() (s v1.HealthStatus) {
	g.t.Helper()
	out := g.sh("kedge health status --json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		g.t.Fatalf("kedge health status --json: %v\n%s", err, out)
	}
	g.t.Logf("guest: kedge health status --json\n%s", out)
	return s
}
