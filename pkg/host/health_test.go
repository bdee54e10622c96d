package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/fault"
)

// bootID gives the pretended machine a new boot.
func (w *world) bootID(id string) {
	w.t.Helper()
	must(w.t, os.RemoveAll(w.machine+"/"+runDir))
	w.write(w.machine+"/proc/sys/kernel/random/boot_id", id+"\n")
}

// check writes a check of the machine.
func (w *world) check(name, body string) {
	w.t.Helper()
	file := w.machine + "/etc/kedge/health.d/" + name
	w.write(file, "#!/bin/sh\n"+body+"\n")
	must(w.t, os.Chmod(file, 0o755))
}

// judge does what kedge's unit does after boot.
func (w *world) judge() error {
	w.t.Helper()
	must(w.t, CheckHealth(context.Background(), w.config()))
	h := w.open()
	defer h.Close()
	return h.JudgeBoot(context.Background())
}

func (w *world) bootComplete() {
	w.t.Helper()
	h := w.open()
	defer h.Close()
	must(w.t, h.BootComplete(context.Background()))
}

func (w *world) health() *v1.HealthStatus {
	w.t.Helper()
	h := w.open()
	defer h.Close()
	s, err := h.HealthStatus(context.Background())
	must(w.t, err)
	return s
}

// bootOther pretends that the boot loader passed over the default and took the
// next line of the menu.
func (w *world) bootOther() {
	w.t.Helper()
	h := w.open()
	list, err := h.store.Deployments()
	must(w.t, err)
	h.Close()
	w.bootFrom(list[1])
}

func (w *world) upgrade() (*v1.Result, error) {
	return w.try(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
}

// counted gives the entry of the default a counter, as a boot loader leaves it.
func (w *world) counted(left, done string) {
	w.t.Helper()
	entries, err := filepath.Glob(w.dir + "/boot/loader/entries/*.conf")
	must(w.t, err)
	slices.Sort(entries)
	name := entries[len(entries)-1] // ostree-2, or the sort-key of the default
	if w.backend == "composefs" {
		for _, e := range entries {
			if text, err := os.ReadFile(e); err == nil && strings.Contains(string(text), "-0\n") {
				name = e
			}
		}
	}
	must(w.t, os.Rename(name, strings.TrimSuffix(name, ".conf")+"+"+left+"-"+done+".conf"))
	if w.backend == "ostree" { // libostree drops counters that it is not told of
		config := w.dir + "/ostree/repo/config"
		text, err := os.ReadFile(config)
		must(w.t, err)
		must(w.t, os.WriteFile(config, []byte(strings.Replace(string(text), "[sysroot]\n", "[sysroot]\nboot-counting-tries=3\n", 1)), 0o644))
	}
}

// TestFailedCheck follows a host whose upgrade fails its check: the boot loader
// goes back, and kedge makes the best of it.
func TestFailedCheck(t *testing.T) { onBoth(t, testFailedCheck) }

func testFailedCheck(t *testing.T, w *world) {
	ctx := context.Background()
	ref, one := w.push("stable", 1)
	w.install(ref, "rw")
	w.boot()
	w.bootID("first")
	w.check("10-good", "exit 0")
	must(t, w.judge())
	if v := w.status().Status.Booted.Kedge.Health; v == nil || v.State != v1.HealthGood || v.Passed != 1 || v.Boot != "first" {
		t.Errorf("health of the first boot = %+v", v)
	}

	_, two := w.push("stable", 2)
	_, err := w.upgrade()
	must(t, err)
	w.shutdown()
	w.bootID("second")
	w.check("20-bad", "echo no web; exit 7")
	err = w.judge()
	wantKind(t, err, fault.Conflict, "/etc/kedge/health.d/20-bad failed (exit status 7)")
	h := w.open()
	must(t, h.BootFailed(ctx)) // no boot loader that counts: no reboot
	h.Close()
	s := w.status()
	w.fitsSchema(s)
	if v := s.Status.Booted.Kedge.Health; v == nil || v.State != v1.HealthFailed || v.Failures != 1 || v.Checks[0].Output != "no web\n" {
		t.Errorf("health of the failed boot = %+v", v)
	}
	if a := s.Status.Kedge.AutoRollback; a.State != v1.RollbackUnsupported || a.Reason == "" {
		t.Errorf("autoRollback = %+v, want unsupported and why", a)
	}
	if len(s.Status.Kedge.Quarantine) != 0 {
		t.Errorf("quarantine = %+v, before anybody went back", s.Status.Kedge.Quarantine)
	}

	w.counted("0", "1")
	w.bootOther()
	w.bootID("third")
	w.bootComplete()
	must(t, w.judge())
	s = w.status()
	w.fitsSchema(s)
	w.agree()
	if s.Status.Booted.Image.ImageDigest != one || !s.Status.Booted.Kedge.Next || s.Status.RollbackQueued {
		t.Errorf("booted = %+v, want the first image, and next again", s.Status.Booted.Kedge)
	}
	if e := s.Status.Rollback.Kedge; e.Held != v1.HeldCheck || e.Tries == nil || e.Tries.Left != 0 {
		t.Errorf("what failed = %+v, want it held, without tries", e)
	}
	back := s.Status.Kedge.LastRollback
	if back == nil || back.By != v1.ByLoader || back.Reason != v1.HeldCheck || back.Check != "/etc/kedge/health.d/20-bad" || back.FromDigest != two || back.To != s.Status.Booted.Kedge.ID {
		t.Errorf("last rollback = %+v", back)
	}
	q := s.Status.Kedge.Quarantine
	if len(q) != 1 || q[0].Identity.Image != two || q[0].Reason != v1.HeldCheck {
		t.Fatalf("quarantine = %+v, want %s", q, two)
	}

	// It is not taken again by itself,
	_, err = w.upgrade()
	wantKind(t, err, fault.Held, "in quarantine")
	_, err = w.try(func(h *Host) (*v1.Result, error) { return h.Switch(ctx, SwitchOptions{Image: ref}) })
	wantKind(t, err, fault.Held, "in quarantine")
	_, err = w.try(func(h *Host) (*v1.Result, error) { return h.CheckUpgrade(ctx, "") })
	wantKind(t, err, fault.Held, "in quarantine")
	if fault.HintOf(err) == "" || fault.KindOf(err).ExitCode() != 12 {
		t.Errorf("hint %q, exit code %d", fault.HintOf(err), fault.KindOf(err).ExitCode())
	}
	h = w.open()
	p, err := h.Plan(ctx, PlanOptions{})
	h.Close()
	if err != nil || p.Possible || !strings.Contains(strings.Join(p.Problems, " "), "in quarantine") {
		t.Errorf("plan = %+v, %v", p, err)
	}
	// with other kernel arguments it is,
	w.do(func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Append: []string{"nomodeset"}}) })
	if r, err := w.upgrade(); err != nil || !r.Changed {
		t.Errorf("upgrade with another argument = %+v, %v", r, err)
	}
	w.do(func(h *Host) (*v1.Result, error) {
		_, err := h.Cleanup(ctx, CleanupOptions{Staged: true})
		return nil, err
	})
	// by its name it is,
	if r, err := w.try(func(h *Host) (*v1.Result, error) { return h.Deploy(ctx, two) }); err != nil || !r.Changed {
		t.Errorf("deploy of what failed = %+v, %v", r, err)
	}
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) }) // undone
	// and a newer one is.
	_, three := w.push("stable", 3)
	if r, err := w.upgrade(); err != nil || r.Image.ImageDigest != three {
		t.Errorf("upgrade to a newer image = %+v, %v", r, err)
	}
	w.do(func(h *Host) (*v1.Result, error) {
		_, err := h.Cleanup(ctx, CleanupOptions{Staged: true})
		return nil, err
	})

	w.push("stable", 2)
	_, err = w.upgrade()
	wantKind(t, err, fault.Held, "in quarantine")
	h = w.open()
	_, err = h.ClearQuarantine(ctx, "sha256:00")
	wantKind(t, err, fault.NotFound, "sha256:00")
	gone, err := h.ClearQuarantine(ctx, two)
	h.Close()
	if err != nil || len(gone) != 1 {
		t.Errorf("clear = %+v, %v", gone, err)
	}
	if r, err := w.upgrade(); err != nil || !r.Changed {
		t.Errorf("upgrade after the clearing = %+v, %v", r, err)
	}
	h = w.open()
	history, err := h.History(ctx)
	h.Close()
	must(t, err)
	var boots []string
	for _, e := range slices.Backward(history) {
		if e.Verb == "boot" || e.Verb == "rollback" && strings.Contains(e.Detail, "boot loader") {
			boots = append(boots, e.Verb+" "+e.Result)
		}
	}
	if got := strings.Join(boots, ", "); got != "boot good, boot failed, rollback done, boot good" {
		t.Errorf("history of boots: %s", got)
	}
}

// TestExhausted: a root that never came as far as its checks.
func TestExhausted(t *testing.T) { onBoth(t, testExhausted) }

func testExhausted(t *testing.T, w *world) {
	upgraded := func() {
		w.push("stable", 2)
		_, err := w.upgrade()
		must(t, err)
		w.shutdown()
	}
	ref, _ := w.push("stable", 1)
	w.install(ref, "rw")
	w.boot()
	upgraded()
	// A power cut spends a try and no verdict: somebody chose the old line then.
	w.counted("2", "1")
	w.bootOther()
	w.bootComplete()
	s := w.status()
	if s.Status.Kedge.LastRollback != nil || len(s.Status.Kedge.Quarantine) != 0 || !s.Status.RollbackQueued {
		t.Errorf("after a power cut: %+v, want the default as it was", s.Status.Kedge)
	}
	must(t, exhaust(w))
	w.bootComplete()
	s = w.status()
	if r := s.Status.Kedge.LastRollback; r == nil || r.By != v1.ByLoader || r.Reason != v1.HeldExhausted {
		t.Errorf("last rollback = %+v", r)
	}
	if q := s.Status.Kedge.Quarantine; len(q) != 1 || q[0].Reason != v1.HeldExhausted {
		t.Errorf("quarantine = %+v", q)
	}
	_, err := w.upgrade()
	wantKind(t, err, fault.Held, "tries exhausted")
	w.agree()
	// When it is explicitly asked for, and boots well, it is out.
	w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(context.Background(), "2.0") })
	w.boot()
	w.bootID("well")
	must(t, w.judge())
	if s := w.health(); len(s.Quarantine) != 0 || s.Current.State != v1.HealthGood {
		t.Errorf("health = %+v, want it out of quarantine", s)
	}
}

// exhaust lets the counted entry have no tries left.
func exhaust(w *world) error {
	entries, err := filepath.Glob(w.dir + "/boot/loader/entries/*+2-1.conf")
	if err != nil || len(entries) != 1 {
		w.t.Fatalf("counted entries: %q, %v", entries, err)
	}
	return os.Rename(entries[0], strings.Replace(entries[0], "+2-1", "+0-3", 1))
}

// TestRolledBackByHand: an upgrade does not bring back what somebody rolled back,
// whoever names it gets it.
func TestRolledBackByHand(t *testing.T) { onBoth(t, testRolledBackByHand) }

func testRolledBackByHand(t *testing.T, w *world) {
	ctx := context.Background()
	ref, one := w.push("stable", 1)
	w.install(ref, "rw")
	_, two := w.push("stable", 2)
	_, err := w.upgrade()
	must(t, err)
	rollback := func() *v1.Result {
		return w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	}
	if r := rollback(); r.Image.ImageDigest != one {
		t.Fatalf("rollback = %+v", r)
	}
	s := w.status()
	if q := s.Status.Kedge.Quarantine; len(q) != 1 || q[0].Reason != v1.HeldByHand || q[0].Identity.Image != two {
		t.Errorf("held = %+v", q)
	}
	if r := s.Status.Kedge.LastRollback; r == nil || r.By != v1.ByUser || r.FromDigest != two {
		t.Errorf("last rollback = %+v", r)
	}
	_, err = w.upgrade()
	wantKind(t, err, fault.Held, "rolled back by hand")
	// Undone, nothing is held that boots.
	rollback()
	if r, err := w.upgrade(); err != nil || r.Changed {
		t.Errorf("upgrade after the rollback was undone = %+v, %v", r, err)
	}
	rollback()
	if r := w.switchTo(ref); !r.Changed || r.Image.ImageDigest != two {
		t.Errorf("switch by name = %+v", r)
	}
	if q := w.status().Status.Kedge.Quarantine; len(q) != 0 {
		t.Errorf("held after the switch = %+v", q)
	}
	rollback()
	w.push("stable", 3)
	if r, err := w.upgrade(); err != nil || !r.Changed {
		t.Errorf("upgrade to a newer image = %+v, %v", r, err)
	}
	if q := w.status().Status.Kedge.Quarantine; len(q) != 0 {
		t.Errorf("held after moving on = %+v", q)
	}
}

// TestRolledBackBeforeVerdict: what somebody rolls back while its checks still run
// stays held, whichever way the verdict goes.
func TestRolledBackBeforeVerdict(t *testing.T) {
	for _, tc := range []struct{ name, left, done, before, check, want string }{
		{"the last try", "0", "2", "", "exit 0", v1.HeldByHand},
		{"it failed in the boot before", "1", "1", "exit 1", "exit 0", v1.HeldByHand},
		{"it fails then", "0", "2", "", "exit 1", v1.HeldCheck},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, w *world) {
				ref, _ := w.push("stable", 1)
				w.install(ref, "rw")
				w.boot()
				_, two := w.push("stable", 2)
				_, err := w.upgrade()
				must(t, err)
				w.shutdown()
				if tc.before != "" {
					w.bootID("before")
					w.check("10-check", tc.before)
					wantKind(t, w.judge(), fault.Conflict, "10-check")
				}
				w.counted(tc.left, tc.done)
				w.bootID("last")
				w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(context.Background()) })
				w.check("10-check", tc.check)
				if err := w.judge(); (err == nil) != (tc.want == v1.HeldByHand) {
					t.Errorf("verdict: %v", err)
				}
				s := w.status()
				if q := s.Status.Kedge.Quarantine; len(q) != 1 || q[0].Reason != tc.want || q[0].Identity.Image != two {
					t.Errorf("held = %+v, want %s: %s", q, two, tc.want)
				}
				if r := s.Status.Kedge.LastRollback; r == nil || r.By != v1.ByUser {
					t.Errorf("last rollback = %+v, want one by the user", r)
				}
				w.boot()
				_, err = w.upgrade()
				wantKind(t, err, fault.Held, tc.want)
				w.agree()
			})
		})
	}
}

// TestKilledJudge: what judges the boot is killed, once while a check runs and
// once later.
func TestKilledJudge(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.boot()
	w.bootID("killed")
	w.write(w.machine+"/"+checkFile, "/etc/kedge/health.d/50-kills")
	h := w.open()
	if err := h.JudgeBoot(ctx); fault.KindOf(err) != fault.NotFound {
		t.Errorf("judging without a report: %v", err)
	}
	must(t, h.BootFailed(ctx))
	if v := w.health().Current; v.State != v1.HealthFailed || v.Check != "/etc/kedge/health.d/50-kills" || v.Failures != 1 {
		t.Errorf("verdict = %+v, want the check that ran", v)
	}
	must(t, h.BootFailed(ctx))
	if v := w.health().Current; v.Failures != 1 {
		t.Errorf("one boot counts as %d failures", v.Failures)
	}
	w.bootID("killed later")
	must(t, CheckHealth(ctx, w.config()))
	must(t, h.BootFailed(ctx))
	if v := w.health().Current; v.State != v1.HealthFailed || v.Check != "" || v.Failures != 2 {
		t.Errorf("verdict = %+v", v)
	}
	r, err := h.MarkGood(ctx)
	if err != nil || !r.Changed {
		t.Errorf("mark-good = %+v, %v", r, err)
	}
	if v := w.health().Current; v.State != v1.HealthGood || v.Boot != "killed later" {
		t.Errorf("verdict = %+v", v)
	}
	h.Close()
}

// TestRebootDecision: of a machine as systemd-boot starts it, what is known is
// what counts.
func TestRebootDecision(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.push("stable", 2)
	_, err := w.upgrade()
	must(t, err)
	w.boot()
	const vars, guid = "/sys/firmware/efi/efivars/", "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	w.write(w.machine+vars+"LoaderFeatures"+guid, "\x06\x00\x00\x00"+string(binary.LittleEndian.AppendUint64(nil, 1<<4)))
	w.write(w.machine+vars+"LoaderBootCountPath"+guid, "\x06\x00\x00\x00a\x00")
	w.write(w.machine+"/usr/lib/systemd/systemd-bless-boot", "")
	h := w.open()
	defer h.Close()
	d, err := h.bootedDeployment()
	must(t, err)
	v := &v1.Health{State: v1.HealthFailed, Failures: 1}
	if ok, why := h.failedState(d, v).Reboot(); !ok {
		t.Errorf("no reboot: %s", why)
	}
	if a := h.autoRollback(); a.State != v1.RollbackSupported {
		t.Errorf("autoRollback = %+v", a)
	}
	h.noteGood()
	if ok, why := h.failedState(d, v).Reboot(); ok || why != "this boot was found good before" {
		t.Errorf("after a good verdict: %v, %q", ok, why)
	}
	w.bootID("next")
	list, unlock, err := h.lockList(context.Background())
	must(t, err)
	must(t, h.store.Remove(context.Background(), list[1]))
	unlock()
	if ok, why := h.failedState(d, v).Reboot(); ok || !strings.Contains(why, "no other deployment") {
		t.Errorf("with nothing to go back to: %v, %q", ok, why)
	}
}

func doHealthStatus(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.HealthStatus(s.ctx) })
}

func doQuarantine(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.Quarantine(s.ctx) })
}

func doMarkGood(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.MarkGood(s.ctx) })
}

func doClear(names ...string) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.ClearQuarantine(s.ctx, names...) })
	}
}

func doJudge(check string, kind fault.Kind) step {
	return step{name: "judge: " + check, kind: kind, do: func(s *stage) (any, error) {
		s.bootID(s.status().Status.Booted.Kedge.Version)
		s.check("10-check", check)
		return nil, s.judge()
	}}
}

// healthLife is a host on which an upgrade fails.
func healthLife() []step {
	return []step{
		act("images", func(s *stage) { s.image("a", 1); s.image("b", 2, smallimage.File("usr/share/more", 0, "more\n")) }),
		{name: "install", do: doInstall("a", "rw")},
		{name: "mark-good offline", do: doMarkGood},
		act("boot", func(s *stage) { s.boot() }),
		doJudge("exit 0", 0),
		{name: "status", do: doStatus},
		{name: "switch", do: doSwitch(SwitchOptions{Image: "b"})},
		act("shutdown", func(s *stage) { s.shutdown() }),
		doJudge("echo bad; exit 1", fault.Conflict),
		{name: "status of the failed", do: doStatus},
		act("the boot loader goes back", func(s *stage) { s.counted("0", "1"); s.bootOther() }),
		{name: "boot complete", do: doBootComplete, check: wantIntact},
		doJudge("exit 0", 0),
		{name: "status after it", do: doStatus},
		{name: "health status", do: doHealthStatus},
		{name: "switch to what failed", do: doSwitch(SwitchOptions{Image: "b"}), kind: fault.Held},
		{name: "plan of it", do: doPlan(PlanOptions{Image: "b"})},
		{name: "quarantine list", do: doQuarantine},
		{name: "clear of another", do: doClear("sha256:0"), kind: fault.NotFound},
		{name: "clear", do: doClear()},
		{name: "clear again", do: doClear()},
		{name: "switch after the clearing", do: doSwitch(SwitchOptions{Image: "b"}), check: wantIntact},
		{name: "mark-good", do: doMarkGood},
		{name: "history", do: doHistory},
	}
}

// TestCountedEntries: with systemd-boot a new root is counted where it can be
// blessed, and one that was given up is tried again when somebody asks for it.
func TestCountedEntries(t *testing.T) { onBoth(t, testCountedEntries) }

func testCountedEntries(t *testing.T, w *world) {
	ctx := context.Background()
	esp := espWorld(t, w)
	counters := func() string {
		entries, err := lab.Entries(esp) // in the order of the menu
		must(t, err)
		var all []string
		for _, e := range entries {
			c := "-"
			if n := bls.CounterOf(e.File); n != nil {
				c = fmt.Sprintf("+%d-%d", n.Left, n.Done)
			}
			all = append(all, c)
		}
		return strings.Join(all, " ")
	}
	want := func(when, want string) {
		t.Helper()
		if got := counters(); got != want {
			t.Errorf("%s: the menu's counters are %q, want %q", when, got, want)
		}
	}
	pushBlessed := func(tag string, version int) string {
		ref, _ := w.push(tag, version,
			smallimage.Dir("usr/lib/systemd"), smallimage.Dir("usr/lib/systemd/boot"), smallimage.Dir("usr/lib/systemd/boot/efi"),
			smallimage.File("usr/lib/systemd/boot/efi/systemd-bootx64.efi", 0o755, string(loadertest.Program("257.1"))),
			smallimage.File(loader.BlessProgram, 0o755, "#!/bin/sh\n"))
		return ref
	}
	o := w.options(pushBlessed("one", 1), "rw")
	o.Bootloader = "systemd-boot"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	want("the only root", "-")
	w.switchTo(w.pushBoot("unblessed", 2, "257.1"))
	want("a root without systemd-bless-boot", "- -")
	w.switchTo(pushBlessed("two", 3))
	want("a new root", "+3-0 -")
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	want("after a rollback", "- +3-0")
	w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(ctx, "3.0") })
	want("asked for again", "+3-0 -")

	counted, err := filepath.Glob(esp + "/loader/entries/*+3-0.conf")
	must(t, err)
	if len(counted) != 1 {
		t.Fatalf("counted entries: %q", counted)
	}
	must(t, os.Rename(counted[0], strings.Replace(counted[0], "+3-0", "+0-3", 1)))
	w.bootOther()
	w.plug(esp)
	w.bootComplete()
	want("after the fallback", "- +0-3")
	s := w.status()
	if r := s.Status.Kedge.LastRollback; r == nil || r.By != v1.ByLoader || r.Reason != v1.HeldExhausted || r.FromVersion != "3.0" {
		t.Errorf("last rollback = %+v", r)
	}
	w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(ctx, "3.0") })
	want("asked for after it was given up", "+3-0 -")
}

// TestNoteGood wants it told that a good boot could not be noted, whichever step
// fails: a later failure of this boot then gives the root up.
func TestNoteGood(t *testing.T) {
	for where, blocked := range map[string]string{"no directory": "run", "no file": goodFile} {
		t.Run(where, func(t *testing.T) {
			var log bytes.Buffer
			h := Host{cfg: Config{Machine: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil))}}
			path := filepath.Join(h.cfg.Machine, blocked)
			if blocked == "run" {
				must(t, os.WriteFile(path, nil, 0o644))
			} else {
				must(t, os.MkdirAll(path, 0o755))
			}
			h.noteGood()
			if !strings.Contains(log.String(), "that this boot is good was not noted") {
				t.Errorf("the log says %q", &log)
			}
		})
	}
}
