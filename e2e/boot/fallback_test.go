package boot

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestFallback is the user's story on a machine that boots by itself, with OVMF
// and systemd-boot, which counts boots: a host comes back from a root whose check
// fails and from one whose init dies, tells of both, and is then switched,
// upgraded and rolled back by hand.
func TestFallback(t *testing.T) {
	t.Parallel()
	t.Run("ostree", func(t *testing.T) {
		t.Parallel()
		s := &fallback{world: ostreeComposefsWorld(t), backend: "ostree"}
		s.images(t)
		s.seal(t)
		s.disk = s.firmwareDisk(t, "ext4 -O verity", func(cfg host.Config) error { return s.install(t, cfg) })
		s.prepare(t)
		s.sealedAndBack(t, s.comesBack(t))
	})
	t.Run("composefs", func(t *testing.T) {
		t.Parallel()
		w, layout := sealedWorld(t)
		s := &fallback{world: w, backend: "composefs"}
		s.images(t)
		s.disk = s.newFirmwareDisk(t, "ext4 -O verity", false)
		s.installFromMedium(t, layout)
		s.prepare(t)
		s.backAndDamaged(t, s.comesBack(t))
	})
}

type fallback struct {
	*world
	backend string
	disk    *lab.Disk
	machine *lab.Machine
}

// The check of every image, as the host sees it.
const markerCheck = "/usr/lib/kedge/health.d/10-marker"

// badImages are those that the host comes back from, by what makes them of the
// image one, in the order in which they are installed.
var badImages = []struct{ name, change string }{
	{"panics", `printf '#!/bin/sh\nexit 1\n' >/usr/lib/systemd/init && chmod 755 /usr/lib/systemd/init && mv /usr/lib/systemd/init /usr/lib/systemd/systemd`},
	{"sick", "true"},
}

// images builds the image os:fallback-one, what badImages makes of it, and
// os:fallback-two.
func (s *fallback) images(t *testing.T) {
	s.buildChecked(t)
	for _, bad := range badImages {
		s.derive(t, "os:fallback-", bad.name, "one", bad.change)
	}
	s.build(t, "os:fallback-two", "FROM "+s.Registry.Repo("os:fallback-one")+changesOfTwo)
	s.tag(t, "fallback-one", "fallback")
}

// buildChecked builds os:fallback-one, whose check looks at the marker, and which
// tries a new root once.
func (s *fallback) buildChecked(t *testing.T) {
	s.buildHostImage(t, "os:fallback-one", "one")
	if s.backend == "ostree" {
		s.addTests(t, "os:fallback-one")
	}
	s.build(t, "os:fallback-one", "FROM "+s.Registry.Repo("os:fallback-one")+defaultOfOne+addChecks)
}

// addChecks has an image try a new root once, and look at its marker.
const addChecks = `
RUN mkdir -p /usr/lib/kedge/health.d /etc/greenboot/check/wanted.d && \
    printf 'tries = 1\ntimeout = "20m"\n' >/usr/lib/kedge/health.toml && \
    printf '#!/bin/sh\necho this is $(cat /usr/share/marker)\n! grep sick /usr/share/marker\n' >` + markerCheck + ` && \
    chmod 755 ` + markerCheck + ` && \
    echo 'echo wanted; exit 3' >/etc/greenboot/check/wanted.d/wish.sh
`

// derive builds PREFIX+NAME from another image of that prefix: its marker and its
// version are the name.
func (w *world) derive(t *testing.T, prefix, name, from, change string) {
	w.build(t, prefix+name, "FROM "+w.Registry.Repo(prefix+from)+
		"\nRUN echo "+name+" >/usr/share/marker && "+change+
		"\nLABEL org.opencontainers.image.version=\""+name+"\"\n")
}

// tag lets a tag of os lead to what another does.
func (s *fallback) tag(t *testing.T, from, to string) {
	t.Helper()
	lab.Need(t, "skopeo")
	if _, err := lab.Command(t.Context(), "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests",
		"docker://"+s.Registry.Repo("os:"+from), "docker://"+s.Registry.Repo("os:"+to)); err != nil {
		t.Fatal(err)
	}
}

// kargs of the host. systemd-bless-boot wants the partition mounted.
func (s *fallback) kargs() []string {
	at := "/boot"
	if s.backend == "ostree" {
		at = "/boot/efi"
	}
	return []string{"systemd.gpt_auto=0", "systemd.mount-extra=LABEL=ESP:" + at + ":vfat:umask=0077"}
}

// install puts a host on a disk whose boot menu begins with the bad roots, each of
// which has one try.
func (s *fallback) install(t *testing.T, cfg host.Config) error {
	if err := s.installFirmware(t, cfg, "systemd-boot", "os:fallback", s.backend, s.kargs()...); err != nil {
		return err
	}
	// Where an installer mounts the partition. systemd cannot make it: libostree's
	// /boot is of the read-only /sysroot.
	if err := os.Mkdir(filepath.Join(cfg.Sysroot, "boot/efi"), 0o755); err != nil {
		return err
	}
	cfg.Write = true
	for _, bad := range badImages {
		h, err := host.Open(t.Context(), cfg)
		if err != nil {
			return err
		}
		_, err = h.Switch(t.Context(), host.SwitchOptions{Image: s.Registry.Repo("os:fallback-" + bad.name), Retain: true})
		h.Close()
		if err != nil {
			return err
		}
	}
	counted, err := filepath.Glob(filepath.Join(cfg.Sysroot, "efi/loader/entries/*+3*.conf"))
	if err != nil || len(counted) != len(badImages) {
		t.Errorf("%d entries are counted, want those of the bad images: %v", len(counted), err)
	}
	for _, file := range counted {
		name, _, _ := strings.Cut(file, "+3")
		if err := os.Rename(file, name+"+1.conf"); err != nil {
			return err
		}
	}
	return nil
}

// installFromMedium does the same on the machine itself, whose kernel seals the
// files, and which finds the EFI system partition by its type.
func (s *fallback) installFromMedium(t *testing.T, layout string) {
	refs, change := []string{"os:fallback-one"}, ""
	for _, bad := range badImages {
		refs = append(refs, "os:fallback-"+bad.name)
		change += "kedge --sysroot /target switch --retain oci:/source:fallback-" + bad.name + " >>/run/log 2>&1\n"
	}
	s.fromMedium(t, s.disk, layout, refs, s.installSystemdBoot("/dev/vda2", "os:fallback-one", "os:fallback", s.kargs()...)+change+`
umount /target
mount -t vfat /dev/vda1 /target
ls /target/loader/entries >>/run/log
set -- /target/loader/entries/*+3*.conf
[ $# = 2 ]
for entry; do mv "$entry" "${entry%+3*}+1.conf"; done
umount /target
`)
}

// prepare puts the disk into a machine.
func (s *fallback) prepare(t *testing.T) {
	t.Helper()
	s.machine = s.world.machine(t, s.disk)
	s.machine.Firmware, s.machine.BootTimeout = true, scriptTimeout
}

// switched is a host that runs the image two.
type switched struct {
	*guest
	one, two string // roots
	made     edits
}

// comesBack boots the bad roots, then the image one, and from it the image two.
func (s *fallback) comesBack(t *testing.T) switched {
	s.givesUp(t)
	s.panics(t)
	g := s.start(t, "one")
	one := s.check(g, "one")
	s.told(g)
	t.Logf("cost of the units:\n%s", g.output("systemctl show -P CPUUsageNSec kedge-health.service kedge-boot-complete.service; systemd-analyze blame | grep kedge; systemd-analyze"))
	if s.backend == "ostree" {
		g.runTests()
		g.want("nothing is sealed yet", measureObjects+" | wc -l", "0")
	} else {
		g.checkRefusals(one)
	}

	g.edit()
	ref := s.Registry.GuestRepo("os:fallback-two")
	g.kedge("switch " + ref)
	g.kedge("kargs --append lab.more=1")
	if e := g.status().Status.Staged; e == nil || e.Image.Image.Image != ref {
		t.Fatalf("after switch, status shows %+v as staged", e)
	}
	if s.backend == "ostree" {
		g.want("the staged deployment's image is sealed", "fsverity measure $(ls -td /ostree/deploy/default/deploy/*.?/.ostree.cfs | head -n 1) | grep -c ^sha256:", "1")
		g.want("libostree sees what is staged, and leaves it to kedge", "ostree admin status | grep -c 'finalization locked'", "1")
	}
	made := g.editLate()
	g = s.reboot(g, "two")
	two := s.check(g, "two")
	if two == one {
		t.Fatalf("after switch and reboot, %s is booted still", one)
	}
	g.checkTwo()
	g.want("the user's kernel argument is there", "grep -o lab.more=1 /proc/cmdline", "lab.more=1")
	made.check(g)
	g.want("the entry is blessed", "systemctl is-active systemd-bless-boot.service", "active")
	g.want("no entry has tries left", "find /boot -name '*+[1-9]*.conf' | wc -l", "0")
	g.wantExit("kedge upgrade --check --unchanged-exit-77", 77)
	g.kedge("pin 0")
	if h := g.host(); !h.Booted.Pinned || h.Rollback == nil || rootOf(h.Rollback) != one {
		t.Errorf("status after switch and pin = %+v", h)
	}
	return switched{g, one, two, made}
}

// told: the host says what it came back from, and does not take it again.
func (s *fallback) told(g *guest) {
	g.t.Helper()
	h := g.health()
	if h.AutoRollback.State != v1.RollbackSupported {
		g.t.Errorf("autoRollback = %+v, want supported", h.AutoRollback)
	}
	if c := h.Current; c == nil || c.State != v1.HealthGood || c.Passed != 1 || len(c.Checks) != 1 || c.Checks[0].Output != "wanted\n" {
		g.t.Errorf("health of a good boot = %+v", c)
	}
	g.want("the boot is complete", "systemctl is-active boot-complete.target", "active")
	if r := h.LastRollback; r == nil || r.By != v1.ByLoader || r.FromVersion != "sick" || r.Reason != v1.HeldCheck || r.Check != markerCheck ||
		time.Since(r.Time).Abs() > time.Hour {
		g.t.Fatalf("last rollback = %+v, want one from sick by the boot loader", r)
	}
	held := map[string]string{}
	for _, q := range h.Quarantine {
		held[q.Version] = q.Reason + " " + q.Check
	}
	if want := (map[string]string{"sick": v1.HeldCheck + " " + markerCheck, "panics": v1.HeldExhausted + " "}); !maps.Equal(held, want) {
		g.t.Errorf("quarantine = %q, want %q", held, want)
	}
	g.wantIn("kedge status", "Rolled back from sick ", "by the boot loader: check failed: "+markerCheck+" failed (exit status 1)")
	g.wantIn("kedge health quarantine list", "check failed", "sick", markerCheck, "tries exhausted", "panics")
	for _, bad := range badImages {
		s.tag(g.t, "fallback-"+bad.name, "fallback")
		g.wantExit("kedge upgrade", 12)
		g.wantExit("kedge switch "+s.Registry.GuestRepo("os:fallback-"+bad.name), 12)
	}
	if os.Getenv("KEDGE_NIGHTLY") != "" {
		g.kedge("deploy " + h.LastRollback.FromDigest)
		g.kedge("rollback")
	}
	g.kedge("health quarantine clear")
	g.wantExit("kedge upgrade --check", 0)
}

// check looks for what must hold on every booted host, and returns its root.
func (s *fallback) check(g *guest, marker string) string {
	g.t.Helper()
	g.checkLoaded(marker, s.backend, `"name": "systemd-boot"`, `"info": "systemd-boot `, `"secureBoot": "disabled"`)
	if s.backend == "composefs" {
		return g.checkSealed()
	}
	g.checkComposefs()
	return rootOf(g.host().Booted)
}

// rolledBack looks at a host after a rollback by hand, and turns it off.
func (s *fallback) rolledBack(h switched) {
	h.t.Helper()
	h.made.check(h.guest)
	h.wantIn("kedge health quarantine list", v1.HeldByHand)
	h.wantIn("kedge history", "by the boot loader: check failed")
	h.kedge("status")
	host := h.host()
	roots := len(host.OtherDeployments) + 2
	if host.Booted == nil || host.Rollback == nil || host.Staged != nil {
		h.t.Errorf("status after a rollback = %+v", host)
	}
	if err := h.Shutdown("poweroff", scriptTimeout); err != nil {
		h.t.Fatal(err)
	}
	checkESP(h.t, s.disk, roots, false)
}

// start boots what is to be a good root of that name.
func (s *fallback) start(t *testing.T, marker string) *guest {
	t.Helper()
	g := start(t, s.machine)
	g.awaitJudged("success")
	g.want("what runs", "cat /usr/share/marker", marker)
	return g
}

func (s *fallback) reboot(g *guest, marker string) *guest {
	g.t.Helper()
	s.shutdown(g)
	return s.start(g.t, marker)
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
	t.Logf("a root whose check fails took %.0f s of processor", g.CPU().Seconds())
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
