package boot

import (
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestCutBoot: the power is cut while a new root is judged, which costs a try and
// no verdict; in its next boot the menu is written anew before the verdict, and the
// entry is blessed all the same.
func TestCutBoot(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "three boots by the firmware on each backend, ten minutes")
	for _, b := range []struct {
		backend, fs string
		world       func(t *testing.T) *world
	}{
		{"ostree", "ext4", theWorld},
		{"composefs", "ext4 -O verity", func(t *testing.T) *world { w, _ := sealedWorld(t); return w }},
	} {
		t.Run(b.backend, func(t *testing.T) {
			t.Parallel()
			s := &fallback{world: b.world(t), backend: b.backend}
			s.buildChecked(t)
			s.derive(t, "os:fallback-", "cut", "one", `printf '#!/bin/sh\n[ -e /var/lib/cut ] && exec kedge rollback\ntouch /var/lib/cut && sync && exec sleep 900\n' >/usr/lib/kedge/health.d/20-cut && `+
				`chmod 755 /usr/lib/kedge/health.d/20-cut`)
			s.tag(t, "fallback-one", "fallback")
			s.disk = s.firmwareDisk(t, b.fs, func(cfg host.Config) error {
				return s.installFirmware(t, cfg, "systemd-boot", "os:fallback", s.backend, s.kargs()...)
			})
			s.prepare(t)
			s.cutBoot(t)
		})
	}
}

func (s *fallback) cutBoot(t *testing.T) {
	g := s.start(t, "one")
	s.tag(t, "fallback-cut", "fallback")
	g.sh("mkdir -p /etc/kedge && echo 'tries = 2' >/etc/kedge/health.toml")
	g.kedge("upgrade")
	s.shutdown(g)
	s.cut(t)

	g = s.start(t, "cut")
	g.want("the entry is blessed", "systemctl is-active systemd-bless-boot.service", "active")
	g.want("none is counted", "find /boot -name '*+*.conf' | wc -l", "0")
	if h := g.health(); h.Current == nil || h.Current.State != v1.HealthGood || len(h.Quarantine) != 1 {
		t.Errorf("health after a power cut and a good boot = %+v", h)
	}
	// Its check has rolled back by hand meanwhile, which is undone.
	g.wantIn("kedge health quarantine list", v1.HeldByHand)
	g.kedge("rollback")
	if q := g.health().Quarantine; len(q) != 0 {
		t.Errorf("quarantine = %+v, want nothing", q)
	}
	g.kedge("cleanup")
	g.kedge("history")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkESP(t, s.disk, 2, true)
}

// cut ends a boot that is not judged yet.
func (s *fallback) cut(t *testing.T) {
	t.Helper()
	g, err := s.machine.Boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	if _, err := g.Run("until [ -e /var/lib/cut ]; do sleep 1; done; sync", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	g.Kill()
}
