package boot

import (
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// leaveChecks puts checks of the administrator into a running root's /etc: a
// required one that fails in an image whose marker is sick, and one of greenboot's
// that is only wanted.
func (g *guest) leaveChecks() {
	g.t.Helper()
	g.sh(`mkdir -p /etc/kedge/health.d /etc/greenboot/check/wanted.d
		printf '#!/bin/sh\n! grep -q sick /usr/share/marker\n' >` + adminCheck + ` && chmod 755 ` + adminCheck + `
		echo 'echo wanted; exit 3' >/etc/greenboot/check/wanted.d/wish.sh`)
}

const adminCheck = "/etc/kedge/health.d/10-marker"

// checkSick looks at a root whose checks fail on a machine whose boot loader does
// not count boots: nothing is rebooted, everything is told. Its image has a check
// that kills what judges it.
func (g *guest) checkSick() {
	g.t.Helper()
	g.awaitJudged("signal")
	g.want("the boot cannot be complete", "{ systemctl start boot-complete.target 2>/dev/null || true; }; systemctl is-active boot-complete.target || true", "inactive")
	s := g.health()
	if s.AutoRollback.State != v1.RollbackUnsupported || s.AutoRollback.Reason == "" {
		g.t.Errorf("autoRollback = %+v, want unsupported and why", s.AutoRollback)
	}
	if s.Current == nil || s.Current.State != v1.HealthFailed || s.Current.Check != killsCheck {
		g.t.Errorf("health of the sick boot = %+v", s.Current)
	}
	if out := g.output("journalctl -b -u kedge-health-failed.service --no-pager"); !strings.Contains(out, "the machine is not rebooted") {
		g.t.Errorf("the journal does not say why the machine is not rebooted:\n%s", out)
	}
	// The same image, whose check now only fails.
	g.sh("ln -s /dev/null /etc/kedge/health.d/05-kills")
	if code := g.exitCode("systemctl restart kedge-health.service"); code == 0 {
		g.t.Error("the failing check let the unit start")
	}
	g.awaitJudged("exit-code")
	if s = g.health(); s.Current == nil || s.Current.Check != adminCheck || s.Current.Failures != 1 {
		g.t.Errorf("health after the second look = %+v", s.Current)
	}
}

const killsCheck = "/usr/lib/kedge/health.d/05-kills"

// buildSick makes a sick image of ref.
func (w *world) buildSick(t *testing.T, ref string) {
	w.build(t, ref, "FROM "+w.Registry.Repo(ref)+`
RUN echo sick >/usr/share/marker && mkdir -p /usr/lib/kedge/health.d && \
    printf '#!/bin/sh\nkill -9 $PPID\n' >`+killsCheck+` && chmod 755 `+killsCheck+`
LABEL org.opencontainers.image.version="sick"
`)
}

// checkWell looks at a root that somebody chose in the boot menu because the
// default's checks fail.
func (g *guest) checkWell() {
	g.t.Helper()
	g.awaitJudged("success")
	g.want("the boot can be complete", "systemctl start boot-complete.target && systemctl is-active boot-complete.target", "active")
	s := g.health()
	if s.Current == nil || s.Current.State != v1.HealthGood || s.Current.Passed != 1 || len(s.Current.Checks) != 1 || s.Current.Checks[0].Output != "wanted\n" {
		g.t.Errorf("health of a good boot = %+v", s.Current)
	}
	if r := s.LastRollback; r == nil || r.By != v1.ByMenu || r.Reason != v1.HeldCheck || r.FromVersion != "sick" || r.Check != adminCheck {
		g.t.Errorf("last rollback = %+v", r)
	}
	if len(s.Quarantine) != 1 || s.Quarantine[0].Version != "sick" {
		g.t.Errorf("quarantine = %+v", s.Quarantine)
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
	out := g.sh(g.program() + " health status --json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		g.t.Fatalf("kedge health status --json: %v\n%s", err, out)
	}
	g.t.Logf("guest: kedge health status --json\n%s", out)
	return s
}
