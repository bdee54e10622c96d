package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/internal/lab"
)

// patience bounds a script in an emulated machine.
const patience = 15 * time.Minute

// realDisk is the size of the file system of a host with a whole OS.
const realDisk = 4 << 30

// machine is a host with a whole OS, with systemd and the image's own units.
type machine struct {
	*lab.Machine
	t       *testing.T
	backend offline.Backend
	world   *lab.World
	guest   *lab.Guest
	entries string // digest of the boot entries before anything was finalised
}

// TestMachine interrupts the finalisation of a staged deployment in every way
// there is, and boots what power cuts during it left.
func TestMachine(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("16 boots of a whole OS; KEDGE_NIGHTLY=1 runs it")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "podman", "ostree", "mkfs.ext4", "mmdebstrap", "umoci", "go")
	layouts := map[offline.Backend]func(testing.TB) string{offline.OSTree: lab.MachineImage, offline.Composefs: lab.ComposefsBackendImage}
	for _, b := range offline.Backends {
		t.Run(string(b), func(t *testing.T) {
			w, err := lab.NewWorld(t.Context(), layouts[b](t), os.Getenv("KEDGE_BINARY"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
			m := newMachine(t, w, b)
			m.survive()
		})
	}
}

// newMachine installs version one of an OS; version two is in the registry.
func newMachine(t *testing.T, w *lab.World, b offline.Backend) *machine {
	t.Helper()
	ctx := t.Context()
	// Another kernel, by some zeros behind the initramfs.
	two := "FROM " + w.Registry.Repo("os:one") + "\nRUN echo two >/usr/share/marker && truncate -s +4096 /usr/lib/modules/*/initramfs.img\n"
	if err := errors.Join(w.BuildHostImage(ctx, "os:one", "one"), w.Build(ctx, "os:two", two, nil)); err != nil {
		t.Fatal(err)
	}
	disk, err := lab.NewDisk(ctx, filepath.Join(w.Dir, string(b)+".img"), "ext4", "root", realDisk)
	if err == nil {
		err = disk.With(ctx, func(root string) error {
			args := append([]string{"install", "to-filesystem", "--image", w.Registry.Repo("os:one"), "--target-image", w.Registry.GuestRepo("os:one")}, b.Flags()...)
			for _, k := range []string{"root=LABEL=root", "rw", "console=ttyS0", "panic=1"} {
				args = append(args, "--karg", k)
			}
			_, err := w.Run(ctx, append(args, root)...)
			return err
		})
	}
	if err == nil {
		err = os.Truncate(disk.Path, realDisk+story.MarkSize)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Kept after the run: a console is what one looks at when a boot fails.
	cache, err := lab.CacheDir()
	dir := filepath.Join(cache, "consoles", strings.ReplaceAll(t.Name(), "/", "-"))
	if err := errors.Join(err, os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return &machine{Machine: &lab.Machine{Disk: disk, Dir: dir}, t: t, backend: b, world: w}
}

func (m *machine) start() {
	m.t.Helper()
	began := time.Now()
	g, err := m.Boot(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(g.Kill)
	m.guest = g
	state, err := g.WaitBooted(patience)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("booted %s in %.0f s: %s", g.Entry.Title, time.Since(began).Seconds(), state)
	m.t.Logf("of that kedge's units:\n%s", m.sh(unitsCost))
}

func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := m.guest.Run(script, patience)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (m *machine) want(what, script, want string) {
	m.t.Helper()
	if got := m.sh(script); got != want {
		m.t.Errorf("%s: `%s` printed %q, want %q", what, script, got, want)
	}
}

// die is `reboot -ff`: no unit is stopped, nothing is synced or unmounted.
func (m *machine) die() {
	m.t.Helper()
	if err := m.guest.Shutdown("reboot -ff", patience); err != nil {
		m.t.Fatal(err)
	}
}

// unitsCost tells what kedge's units have cost a boot.
const unitsCost = "systemd-analyze; systemd-analyze blame | grep kedge; systemctl show -P CPUUsageNSec kedge-boot-complete kedge-health"

const (
	finalizer = "kedge-finalize-staged"
	isStaged  = `kedge status --json | grep -q '"staged": *{' && echo staged || echo none`
	failure   = "kedge status --json | grep -c finalizeFailure || true"
)

// staged checks that an interrupted finalisation left all as it was.
func (m *machine) staged(after string) {
	m.t.Helper()
	m.want("the deployment is staged still after "+after, isStaged, "staged")
	m.want("the boot entries are the old ones after "+after, entriesDigest, m.entries)
}

// entriesDigest finds /boot where the composefs backend has it without a
// partition of its own.
const entriesDigest = `cd /boot/loader/entries 2>/dev/null || cd /sysroot/boot/loader/entries; cat * | sha256sum`

func (m *machine) survive() {
	m.start()
	m.want("the installed image is booted", "cat /usr/share/marker", "one")
	m.sh("kedge switch " + m.world.Registry.GuestRepo("os:two"))
	m.want("the new image is staged", isStaged, "staged")
	m.die()

	m.WriteLog = m.Disk.Path + ".log"
	m.start()
	m.want("after reboot -ff the old root is booted", "cat /usr/share/marker", "one")
	m.want("and nothing is staged", isStaged, "none")
	m.entries = m.sh(entriesDigest)
	m.sh("kedge switch " + m.world.Registry.GuestRepo("os:two"))

	m.interrupt()
	m.fillDisk()
	m.mark(story.Begin)
	m.sh("systemctl start " + finalizer + " && systemctl stop " + finalizer + "; sleep 7")
	m.mark(story.End)
	m.want("the last finalisation succeeded", isStaged, "none")
	m.die()
	finalized := m.openLog()

	m.WriteLog = ""
	m.start()
	m.want("after a finalisation and reboot -ff the new root is booted", "cat /usr/share/marker", "two")
	m.want("no failure is shown", failure, "0")
	m.want("no unit of kedge failed", "systemctl list-units --failed --no-legend 'kedge*'", "")
	m.sh("kedge fsck")
	if err := m.guest.Shutdown("poweroff", patience); err != nil {
		m.t.Fatal(err)
	}
	m.bootCuts(finalized)
}

// openLog returns the log of the life that the machine had last.
func (m *machine) openLog() *record {
	m.t.Helper()
	r := &record{backend: m.backend, before: m.WriteLog + ".before", after: m.Disk.Path}
	var err error
	if r.log, err = lab.OpenWriteLog(m.WriteLog); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { r.log.Close() })
	r.checkLog(m.t, m.world.Dir)
	return r
}

// interrupt ends finalisations before their time: by the unit's time limit, and
// by killing all of it.
func (m *machine) interrupt() {
	m.sh(`mkdir -p /run/systemd/system/` + finalizer + `.service.d
printf '[Service]\nTimeoutStopSec=300ms\n' >/run/systemd/system/` + finalizer + `.service.d/lab.conf
systemctl daemon-reload; systemctl stop ` + finalizer + ` || true`)
	m.want("the unit's time limit ended the finalisation", "systemctl show -P Result "+finalizer, "timeout")
	m.staged("the unit's time limit")
	m.sh("rm -r /run/systemd/system/" + finalizer + ".service.d && systemctl daemon-reload && systemctl reset-failed " + finalizer)

	for _, delay := range []string{"0.1", "0.4"} {
		m.sh("systemctl start " + finalizer + "; systemctl stop --no-block " + finalizer + `
until [[ $(systemctl show -p ControlPID -p ActiveState ` + finalizer + `) =~ ControlPID=[1-9]|inactive|failed ]]; do sleep 0.05; done
sleep ` + delay + `
systemctl kill --signal=KILL --kill-whom=all ` + finalizer + `
while [ "$(systemctl is-active ` + finalizer + `)" = deactivating ]; do sleep 0.1; done`)
		m.want("kill -9 ended the finalisation", "systemctl show -P Result "+finalizer, "signal")
		m.staged("kill -9")
		m.sh("systemctl reset-failed " + finalizer)
	}
}

// fillDisk lets a finalisation fail on a full file system, which /boot is on.
func (m *machine) fillDisk() {
	m.sh(`systemctl start ` + finalizer + `
fallocate -l $(($(stat -f -c %f*%S /var) - 65536)) /var/fill || true
while dd if=/dev/zero of=/var/fill2 bs=4096 count=64 oflag=append conv=notrunc 2>/dev/null; do :; done
true`)
	m.sh("systemctl stop " + finalizer + " || true")
	m.want("a finalisation on a full /boot fails", "systemctl show -P Result "+finalizer, "exit-code")
	m.sh("rm -f /var/fill /var/fill2; systemctl reset-failed " + finalizer)
	m.staged("a full /boot")
}

// mark writes a mark to the place behind the file system.
func (m *machine) mark(text string) {
	m.sh(fmt.Sprintf("sync; printf '%%-4095s\\0' %q | tr ' ' '\\0' | dd of=/dev/vda bs=4096 seek=%d oflag=direct,sync conv=notrunc iflag=fullblock 2>/dev/null",
		strings.TrimSpace(text), realDisk/4096))
}

// bootCuts boots disks that power cuts during the finalisation left.
func (m *machine) bootCuts(life *record) {
	log := life.log
	marks, err := log.Marks(realDisk)
	if err != nil || len(marks) != 2 {
		m.t.Fatalf("the log has the marks %v, want two (%v)", marks, err)
	}
	from, to := marks[0].Entry+1, marks[1].Entry
	flushes := log.FlushCuts(from, to)
	cuts := append(log.RandomCuts(from, to, 3, rand.New(rand.NewPCG(seed, 0))), flushes[len(flushes)/2], flushes[len(flushes)-1])
	slices.SortStableFunc(cuts, func(a, b lab.Cut) int { return a.Flushed - b.Flushed })
	work := newReplayer(m.t, life, m.Disk.Path+".work")
	booted := map[string]int{}
	for i, c := range cuts {
		disk := fmt.Sprintf("%s.cut%d", m.Disk.Path, i)
		if err := work.Make(m.t.Context(), c, disk); err != nil {
			m.t.Fatal(err)
		}
		cut := &machine{Machine: &lab.Machine{Disk: &lab.Disk{Path: disk}, Dir: filepath.Join(m.Dir, fmt.Sprint("cut", i))}, t: m.t, backend: m.backend, world: m.world}
		if err := os.Mkdir(cut.Dir, 0o755); err != nil {
			m.t.Fatal(err)
		}
		cut.start()
		root := cut.sh("cat /usr/share/marker")
		cut.want("no unit of kedge failed", "systemctl list-units --failed --no-legend 'kedge*'", "")
		cut.sh("kedge status")
		m.t.Logf("power cut after entry %d of %d..%d with %d pieces of later writes: root %s", c.Flushed, from, to, len(c.Kept), root)
		booted[root]++
		cut.guest.Kill()
		os.Remove(disk)
	}
	if booted["one"]+booted["two"] != len(cuts) {
		m.t.Errorf("%d disks boot into the roots %v, want one or two", len(cuts), booted)
	}
}
