package boot

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestFallback is the story of hosts that come back by themselves: OVMF and
// systemd-boot, which counts boots, and roots whose check fails, whose init dies,
// and that a power cut interrupts.
func TestFallback(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "five boots by the firmware on each backend, a quarter of an hour")
	for _, b := range []struct {
		backend, fs string
		esp         string // where systemd-bless-boot finds the partition
		world       func(t *testing.T) *world
	}{
		{"ostree", "ext4", "/boot/efi", theWorld},
		{"composefs", "ext4 -O verity", "/boot", func(t *testing.T) *world { w, _ := sealedWorld(t); return w }},
	} {
		t.Run(b.backend, func(t *testing.T) {
			t.Parallel()
			s := &fallback{world: b.world(t)}
			s.images(t)
			s.disk = s.firmwareDisk(t, b.fs, func(cfg host.Config) error {
				return s.install(t, cfg, b.backend, "systemd.gpt_auto=0", "systemd.mount-extra=LABEL=ESP:"+b.esp+":vfat:umask=0077")
			})
			s.machine = s.world.machine(t, s.disk)
			s.machine.Firmware, s.machine.BootTimeout = true, scriptTimeout
			s.run(t)
		})
	}
}

type fallback struct {
	*world
	disk    *lab.Disk
	machine *lab.Machine
}

// The check of every image, as the host sees it.
const markerCheck = "/usr/lib/kedge/health.d/10-marker"

// derivedImage is what a command makes of another image.
type derivedImage struct{ name, change string }

// badImages are those that a host comes back from, in the order in which they are
// installed.
var badImages = []derivedImage{
	{"panics", `printf '#!/bin/sh\nexit 1\n' >/usr/lib/systemd/init && chmod 755 /usr/lib/systemd/init && mv /usr/lib/systemd/init /usr/lib/systemd/systemd`},
	{"sick", "true"},
}

// images builds those that the tag os:fallback leads to, one after the other, as
// os:fallback-NAME.
func (s *fallback) images(t *testing.T) {
	s.buildHostImage(t, "os:fallback-one", "one")
	s.build(t, "os:fallback-one", "FROM "+s.Registry.Repo("os:fallback-one")+`
RUN mkdir -p /usr/lib/kedge/health.d && \
    printf 'tries = 1\ntimeout = "20m"\n' >/usr/lib/kedge/health.toml && \
    printf '#!/bin/sh\necho this is $(cat /usr/share/marker)\n! grep sick /usr/share/marker\n' >`+markerCheck+` && \
    chmod 755 `+markerCheck+"\n")
	// The first boot of two lasts until the power is cut. In the second the menu is
	// written anew before the verdict.
	const cut = `printf '#!/bin/sh\n[ -e /var/lib/cut ] && exec kedge rollback\ntouch /var/lib/cut && sync && exec sleep 900\n' >/usr/lib/kedge/health.d/20-cut && ` +
		`chmod 755 /usr/lib/kedge/health.d/20-cut`
	for _, d := range append(slices.Clone(badImages), derivedImage{"two", cut}) {
		s.build(t, "os:fallback-"+d.name, "FROM "+s.Registry.Repo("os:fallback-one")+
			"\nRUN echo "+d.name+" >/usr/share/marker && "+d.change+
			"\nLABEL org.opencontainers.image.version=\""+d.name+"\"\n")
	}
	s.tag(t, "one")
}

// tag moves the tag that the host follows.
func (s *fallback) tag(t *testing.T, name string) {
	t.Helper()
	lab.Need(t, "skopeo")
	if _, err := lab.Command(t.Context(), "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests",
		"docker://"+s.Registry.Repo("os:fallback-"+name), "docker://"+s.Registry.Repo("os:fallback")); err != nil {
		t.Fatal(err)
	}
}

// install puts a host on a disk whose boot menu begins with two bad roots, each of
// which has one try.
func (s *fallback) install(t *testing.T, cfg host.Config, backend string, kargs ...string) error {
	if err := s.installFirmware(t, cfg, "systemd-boot", "os:fallback", backend, kargs...); err != nil {
		return err
	}
	cfg.Write = true
	for _, bad := range badImages {
		h, err := host.Open(t.Context(), cfg)
		if err != nil {
			return err
		}
		_, err = h.Switch(t.Context(), host.SwitchOptions{Image: s.Registry.Repo("os:fallback-" + bad.name), Retain: true, AllowMissingVerity: true})
		h.Close()
		if err != nil {
			return err
		}
	}
	counted, err := filepath.Glob(filepath.Join(cfg.Sysroot, "efi/loader/entries/*+3*.conf"))
	if err != nil || len(counted) != 2 {
		t.Errorf("%d entries are counted, want two: %v", len(counted), err)
	}
	for _, file := range counted {
		name, _, _ := strings.Cut(file, "+3")
		if err := os.Rename(file, name+"+1.conf"); err != nil {
			return err
		}
	}
	return nil
}

func (s *fallback) run(t *testing.T) {
	s.givesUp(t)
	s.panics(t)
	g := s.start(t, "one")
	h := g.health()
	if h.AutoRollback.State != v1.RollbackSupported {
		t.Errorf("autoRollback = %+v, want supported", h.AutoRollback)
	}
	if r := h.LastRollback; r == nil || r.By != v1.ByLoader || r.FromVersion != "sick" || r.Reason != v1.HeldCheck || r.Check != markerCheck ||
		time.Since(r.Time).Abs() > time.Hour {
		t.Fatalf("last rollback = %+v, want one from sick by the boot loader", r)
	}
	held := map[string]string{}
	for _, q := range h.Quarantine {
		held[q.Version] = q.Reason + " " + q.Check
	}
	if want := (map[string]string{"sick": v1.HeldCheck + " " + markerCheck, "panics": v1.HeldExhausted + " "}); !maps.Equal(held, want) {
		t.Errorf("quarantine = %q, want %q", held, want)
	}
	g.wantIn("kedge status", "Rolled back from sick ", "by the boot loader: check failed: "+markerCheck+" failed (exit status 1)")
	g.wantIn("kedge health quarantine list", "check failed", "sick", markerCheck, "tries exhausted", "panics")
	for _, name := range []string{"sick", "panics"} {
		s.tag(t, name)
		g.wantExit("kedge upgrade", 12)
		g.wantExit("kedge switch "+s.Registry.GuestRepo("os:fallback-"+name), 12)
	}
	g.kedge("deploy " + h.LastRollback.FromDigest)
	g.kedge("rollback")

	// A power cut, with another try left; the tag has moved on.
	s.tag(t, "two")
	g.sh("mkdir -p /etc/kedge && echo 'tries = 2' >/etc/kedge/health.toml")
	g.kedge("upgrade")
	s.shutdown(g)
	s.cut(t)
	g = s.start(t, "two")
	g.want("the entry is blessed", "systemctl is-active systemd-bless-boot.service", "active")
	g.want("only what is pinned and failed is counted", "find /boot -name '*+*.conf' | wc -l", "2")
	if h := g.health(); h.Current == nil || h.Current.State != v1.HealthGood || len(h.Quarantine) != 3 {
		t.Errorf("health after a power cut and a good boot = %+v", h)
	}

	// Its check has rolled back by hand meanwhile, which is undone.
	g.wantIn("kedge health quarantine list", v1.HeldByHand)
	g.kedge("rollback")
	if q := g.health().Quarantine; len(q) != 2 {
		t.Errorf("quarantine = %+v, want what failed", q)
	}
	g.kedge("cleanup")
	g.kedge("status")
	g.kedge("history")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkESP(t, s.disk, 4, true)
}

// start boots what is to be a good root of that name.
func (s *fallback) start(t *testing.T, marker string) *guest {
	t.Helper()
	g := start(t, s.machine)
	g.awaitJudged("success")
	g.want("what runs", "cat /usr/share/marker", marker)
	return g
}

func (s *fallback) shutdown(g *guest) {
	g.t.Helper()
	if err := g.Shutdown("reboot", scriptTimeout); err != nil {
		g.t.Fatal(err)
	}
}

// givesUp boots a root that reboots the machine by itself.
func (s *fallback) givesUp(t *testing.T) {
	t.Helper()
	g, err := s.machine.Boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	if err := g.WaitDown(scriptTimeout); err != nil {
		t.Fatal(err)
	}
}

// panics boots a root whose kernel panics for want of an init.
func (s *fallback) panics(t *testing.T) {
	t.Helper()
	g, err := s.machine.Boot(t.Context())
	if err == nil {
		g.Kill()
		t.Fatal("a root without an init boots")
	}
	// The kernel's last words before it reboots, which only a panic has.
	if errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "Rebooting in 1 seconds") {
		t.Fatalf("a root without an init: %v", err)
	}
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

func (g *guest) wantIn(script string, want ...string) {
	g.t.Helper()
	out := g.sh(script)
	g.t.Logf("guest: %s\n%s", script, out)
	for _, text := range want {
		if !strings.Contains(out, text) {
			g.t.Errorf("`%s` does not say %q", script, text)
		}
	}
}

func (g *guest) wantExit(script string, want int) {
	g.t.Helper()
	if code := g.exitCode(script); code != want {
		g.t.Errorf("`%s`: exit code %d, want %d", script, code, want)
	}
}
