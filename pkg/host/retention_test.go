package host

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

func doDeploymentHistory(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.HistoryOfDeployments(s.ctx) })
}

// policy writes the admin's policy into the /etc that counts.
func policy(text string) step {
	return act("policy "+text, func(s *stage) {
		file := s.machine + "/etc/kedge/retention.toml"
		if _, err := os.Stat(s.machine + "/proc/cmdline"); err != nil { // nothing is booted
			file = s.etc(0, "kedge/retention.toml")
		}
		s.write(file, text)
	})
}

// versions returns the versions in the boot menu, in its order.
func (w *world) versions() string {
	w.t.Helper()
	h := w.open()
	defer h.Close()
	list, err := h.store.Deployments()
	must(w.t, err)
	var out []string
	for _, d := range list {
		name := d.image.version
		if d.staged {
			name += "*"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func wantMenu(want string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		if got := s.versions(); got != want {
			t.Errorf("the boot menu is %q, want %q", got, want)
		}
		wantIntact(t, s)
	}
}

// wantRemoved: a clean-up removes these versions, for a reason.
func wantRemoved(reason string, versions ...string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		var got []string
		for _, r := range s.last.(*v1.Cleanup).Removed {
			got = append(got, r.Version)
			if !strings.Contains(r.Reason, reason) {
				t.Errorf("%s goes because %q, want %q", r.Version, r.Reason, reason)
			}
		}
		if !slices.Equal(got, versions) {
			t.Errorf("cleanup removes %q, want %q", got, versions)
		}
	}
}

// retentionLife is how many deployments an offline sysroot keeps.
func retentionLife() []step {
	return []step{
		act("images", func(s *stage) {
			for i, tag := range []string{"a", "b", "c", "d"} {
				s.image(tag, i+1)
			}
			s.image("e", 5, smallimage.Dir("usr/lib/kedge"), smallimage.File("usr/lib/kedge/retention.toml", 0, "keep = 4\n"))
		}),
		{name: "install", do: doInstall("a", "rw")},
		policy("keep = 3\n"),
		{name: "switch to b", do: doSwitch(SwitchOptions{Image: "b"})},
		{name: "plan c", do: doPlan(PlanOptions{Image: "c"}), check: func(t *testing.T, s *stage) {
			if r := s.last.(*v1.Plan).Removes; len(r) > 0 {
				t.Errorf("a third deployment removes %+v", r)
			}
		}},
		{name: "switch to c", do: doSwitch(SwitchOptions{Image: "c"}), check: wantMenu("3.0 2.0 1.0")},
		{name: "cleanup of three", do: doCleanup(CleanupOptions{}), check: wantRemoved("")},
		{name: "plan d", do: doPlan(PlanOptions{Image: "d"}), check: func(t *testing.T, s *stage) {
			if r := s.last.(*v1.Plan).Removes; len(r) != 1 || r[0].Version != "1.0" || r[0].IfNeeded || !strings.Contains(r[0].Reason, "3 deployments") {
				t.Errorf("a fourth deployment removes %+v, want 1.0", r)
			}
		}},
		{name: "pin b", do: doPin(1, true)},
		{name: "switch to d", do: doSwitch(SwitchOptions{Image: "d"}), check: wantMenu("4.0 3.0 2.0 1.0")},
		{name: "unpin b", do: doPin(2, false)},
		{name: "cleanup --dry-run", do: doCleanup(CleanupOptions{DryRun: true}), check: wantRemoved("more than 3", "1.0")},
		{name: "status after it", do: doStatus, check: wantMenu("4.0 3.0 2.0 1.0")},
		policy("kep = 3\n"),
		{name: "cleanup with a wrong policy", do: doCleanup(CleanupOptions{}), check: func(t *testing.T, s *stage) {
			wantRemoved("")(t, s)
			if w := s.last.(*v1.Cleanup).Warnings; len(w) != 1 || !strings.Contains(w[0], `/etc/kedge/retention.toml: unknown key "kep"`) {
				t.Errorf("warnings = %q", w)
			}
		}},
		{name: "switch with a wrong policy", do: doSwitch(SwitchOptions{Image: "e"}), check: func(t *testing.T, s *stage) {
			if w := s.last.(*v1.Result).Warnings; !slices.ContainsFunc(w, func(w string) bool { return strings.Contains(w, "kep") }) {
				t.Errorf("warnings = %q", w)
			}
			wantMenu("5.0 4.0 3.0 2.0 1.0")(t, s)
		}},
		policy("# the image's\n"),
		{name: "cleanup by the image's policy", do: doCleanup(CleanupOptions{}), check: func(t *testing.T, s *stage) {
			wantRemoved("more than 4", "1.0")(t, s)
			wantMenu("5.0 4.0 3.0 2.0")(t, s)
		}},
		policy("max-age = \"6h\"\n"),
		{name: "cleanup of what is young", do: doCleanup(CleanupOptions{}), check: wantRemoved("")},
		act("a day", func(s *stage) { s.now = s.now.Add(24 * time.Hour) }),
		{name: "cleanup --dry-run by age", do: doCleanup(CleanupOptions{DryRun: true}), check: wantRemoved("not used since 2026-03-04", "3.0", "2.0")},
		{name: "rollback", do: doRollback},
		{name: "rollback again", do: doRollback},
		{name: "cleanup by age", do: doCleanup(CleanupOptions{}), check: wantMenu("5.0 4.0")},
		{name: "cleanup --rollback --dry-run", do: doCleanup(CleanupOptions{Rollback: true, DryRun: true}), check: wantRemoved("--rollback", "4.0")},
		{name: "cleanup --rollback", do: doCleanup(CleanupOptions{Rollback: true}), check: wantMenu("5.0")},
		{name: "history", do: doHistory},
		{name: "history of deployments", do: doDeploymentHistory, check: func(t *testing.T, s *stage) {
			want := []string{
				"5.0 switch kept none ",
				"4.0 switch removed none kedge cleanup --rollback",
				"3.0 switch removed none not used since 2026-03-04 (max-age)",
				"2.0 switch removed none not used since 2026-03-04 (max-age)",
				"1.0 install removed none more than 4 deployments (keep)",
			}
			if got := s.deployments(); !slices.Equal(got, want) {
				t.Errorf("history of deployments:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}},
	}
}

// deployments are the lines of the last step's history of deployments.
func (s *stage) deployments() (lines []string) {
	for _, d := range s.last.([]v1.DeploymentHistory) {
		lines = append(lines, fmt.Sprintf("%s %s %s %s %s", d.Version, d.Reason, d.State, d.Result, d.RemovedBecause))
	}
	return lines
}

// bootedRetentionLife is the same on a host that runs.
func bootedRetentionLife() []step {
	shutdown := act("shutdown", func(s *stage) { s.shutdown() })
	return []step{
		act("images", func(s *stage) {
			for i, tag := range []string{"a", "b", "c", "d", "e"} {
				s.image(tag, i+1)
			}
		}),
		{name: "install", do: doInstall("a", "rw")},
		act("boot", func(s *stage) { s.boot() }),
		policy("keep = 3\n"),
		{name: "mark a good", do: doMarkGood},
		{name: "switch to b", do: doSwitch(SwitchOptions{Image: "b"})},
		{name: "switch to c instead", do: doSwitch(SwitchOptions{Image: "c"}), check: wantMenu("3.0* 1.0")},
		shutdown,
		{name: "switch to d", do: doSwitch(SwitchOptions{Image: "d"})},
		shutdown,
		{name: "status of three", do: doStatus, check: wantMenu("4.0 3.0 1.0")},
		policy("keep = 2\n"),
		{name: "cleanup spares the last that is good", do: doCleanup(CleanupOptions{}), check: wantRemoved("")},
		{name: "mark d good", do: doMarkGood},
		{name: "switch to e", do: doSwitch(SwitchOptions{Image: "e"}), check: wantMenu("5.0* 4.0 3.0 1.0")},
		{name: "a staged one does not count", do: doCleanup(CleanupOptions{DryRun: true}), check: wantRemoved("more than 2", "1.0")},
		shutdown,
		{name: "status after the finalisation", do: doStatus, check: wantMenu("5.0 4.0")},
		{name: "boot complete", do: doBootComplete},
		{name: "rollback queues", do: doRollback},
		{name: "cleanup with a queued rollback", do: doCleanup(CleanupOptions{}), check: wantRemoved("")},
		{name: "status with a wrong policy", do: func(s *stage) (any, error) {
			s.write(s.machine+"/etc/kedge/retention.toml", "keep = 0\n")
			return doStatus(s)
		}, check: func(t *testing.T, s *stage) {
			if w := s.last.(*v1.Host).Status.Kedge.Warnings; !slices.ContainsFunc(w, func(w string) bool { return strings.Contains(w, "keep = 0") }) {
				t.Errorf("warnings = %q", w)
			}
		}},
		{name: "history", do: doHistory},
		{name: "history of deployments", do: doDeploymentHistory, check: func(t *testing.T, s *stage) {
			want := []string{
				"5.0 switch booted none ",
				"4.0 switch kept good ",
				"3.0 switch removed none more than 2 deployments (keep)",
				"2.0 switch removed none replaced before it was booted",
				"1.0 install removed good more than 2 deployments (keep)",
			}
			if got := s.deployments(); !slices.Equal(got, want) {
				t.Errorf("history of deployments:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}},
	}
}

// TestRetention takes the same steps on both backends.
func TestRetention(t *testing.T) {
	for name, steps := range map[string]func() []step{"offline": retentionLife, "booted": bootedRetentionLife} {
		t.Run(name, func(t *testing.T) { conform(t, func(*testing.T) []step { return steps() }) })
	}
}

// ballast is a file that does not compress.
func ballast(t *testing.T, name string, size int) smallimage.Entry {
	t.Helper()
	data := make([]byte, size)
	_, err := rand.Read(data)
	must(t, err)
	return smallimage.File(name, 0, string(data))
}

// onDisk puts the world's sysroot on a file system of its own.
func (w *world) onDisk(size int64) {
	w.t.Helper()
	w.dir = lab.Mounted(w.t, "ext4 -O verity", size)
	must(w.t, os.Remove(filepath.Join(w.dir, "lost+found")))
}

// TestRetentionUnderPressure: on a file system that holds three deployments and
// not four, whatever keep says, older ones go where there is too little room for
// a new one, or less than the policy wants, and never what a rollback leads to.
func TestRetentionUnderPressure(t *testing.T) { onBoth(t, testRetentionUnderPressure) }

func testRetentionUnderPressure(t *testing.T, w *world) {
	const size = 8 << 20
	w.onDisk(72 << 20)
	push := func(version int) string {
		ref, _ := w.push(fmt.Sprint(version), version, ballast(t, "usr/share/ballast", size))
		return ref
	}
	w.install(push(1), "rw")
	h := w.open()
	list, err := h.store.Deployments()
	must(t, err)
	h.Close()
	w.write(w.path(list[0].id, "etc/kedge/retention.toml"), "keep = 9\n")
	most := 0
	for v := 2; v <= 5; v++ {
		ref := push(v)
		var p *v1.Plan
		_, err := w.try(func(h *Host) (_ *v1.Result, err error) {
			p, err = h.Plan(context.Background(), PlanOptions{Image: ref})
			return nil, err
		})
		must(t, err)
		if !p.Possible {
			t.Fatalf("version %d: the plan says that it is not possible: %+v", v, p)
		}
		before := len(strings.Fields(w.versions()))
		w.switchTo(ref)
		menu := strings.Fields(w.versions())
		if len(menu) <= before && !mayMakeRoom(p) {
			t.Errorf("version %d: the plan did not tell that something goes: %q, %+v", v, menu, p.Removes)
		}
		if most = max(most, len(menu)); len(menu) < 2 || menu[0] != fmt.Sprintf("%d.0", v) || menu[1] != fmt.Sprintf("%d.0", v-1) {
			t.Fatalf("after version %d the menu is %q", v, menu)
		}
	}
	if most < 3 || most > 5 {
		t.Errorf("at most %d deployments were there: the test's file system is too large or too small", most)
	}
	if n := len(strings.Fields(w.versions())); n < 3 {
		t.Errorf("%d deployments are left where three have room", n)
	}
	w.agree()

	// What cannot come even if all goes that can be spared removes nothing.
	menu := w.versions()
	huge, _ := w.push("huge", 9, ballast(t, "usr/share/ballast", 32<<20))
	_, err = w.try(func(h *Host) (*v1.Result, error) {
		return h.Switch(context.Background(), SwitchOptions{Image: huge})
	})
	wantKind(t, err, fault.NoSpace, "too little space")
	if got := w.versions(); got != menu {
		t.Errorf("an image that cannot fit left %q of %q", got, menu)
	}

	// The policy wants a little more free than there is.
	h = w.open()
	list, err = h.store.Deployments()
	must(t, err)
	h.Close()
	free := func() float64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(w.dir, &st))
		return 100 * float64(st.Bavail) / float64(st.Blocks)
	}
	want := free() + 5
	w.write(w.path(list[0].id, "etc/kedge/retention.toml"), fmt.Sprintf("keep = 9\nmin-free = \"%.1f%%\"\n", want))
	var c *v1.Cleanup
	_, err = w.try(func(h *Host) (_ *v1.Result, err error) {
		c, err = h.Cleanup(context.Background(), CleanupOptions{})
		return nil, err
	})
	must(t, err)
	if len(c.Removed) != 1 || !strings.Contains(c.Removed[0].Reason, "min-free") {
		t.Errorf("cleanup = %+v", c)
	}
	if got := w.versions(); free() < want || got != "5.0 4.0" {
		t.Errorf("with %.1f %% free the menu is %q, want %.1f", free(), got, want)
	}
	w.agree()
	lines := w.history()
	if !strings.Contains(lines, `"to make room for a new image"`) || !strings.Contains(lines, `(min-free)"`) {
		t.Errorf("the history lacks why deployments went:\n%s", lines)
	}
}

// history returns the recorded changes as JSON.
func (w *world) history() string {
	w.t.Helper()
	h := w.open()
	defer h.Close()
	entries, err := h.History(context.Background())
	must(w.t, err)
	text, err := json.Marshal(entries)
	must(w.t, err)
	return string(text)
}

// TestRetentionOnSmallBoot: where /boot holds the kernels of three deployments, a
// booted host that is to keep more gives up the last before the new one comes.
func TestRetentionOnSmallBoot(t *testing.T) { onBoth(t, testRetentionOnSmallBoot) }

func testRetentionOnSmallBoot(t *testing.T, w *world) {
	push := func(version int) string {
		dir := fmt.Sprintf("usr/lib/modules/6.1.0-%d-test", version)
		ref, _ := w.push(fmt.Sprint(version), version, ballast(t, dir+"/initramfs.img", 3<<20))
		return ref
	}
	must(t, os.MkdirAll(w.dir+"/boot", 0o755))
	must(t, unix.Mount("boot", w.dir+"/boot", "tmpfs", 0, "size=11m"))
	w.t.Cleanup(func() { _ = unix.Unmount(w.dir+"/boot", unix.MNT_DETACH) })
	w.install(push(1), "rw")
	w.boot()
	w.write(w.machine+"/etc/kedge/retention.toml", "keep = 9\n")
	for v := 2; v <= 4; v++ {
		w.switchTo(push(v))
		w.shutdown()
	}
	if got := w.versions(); got != "4.0 3.0 2.0" {
		t.Errorf("the menu is %q, want as many as /boot has room for", got)
	}
	if lines := w.history(); !strings.Contains(lines, "no room for its kernel") {
		t.Errorf("the history lacks why deployments went:\n%s", lines)
	}
	if w.backend == "ostree" { // paths in the other's entries start at /boot
		w.agree()
	}
}

// TestHistoryIsBounded: years of boots leave the history short, with its newest
// lines, and with one boot of each deployment and result at least.
func TestHistoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	e := v1.HistoryEntry{V: v1.HistoryVersion, Result: "done", Image: strings.Repeat("x", 6000)}
	made := e
	made.Verb, made.ID = "install", "first"
	must(t, appendHistory(root, "state", made))
	e.Verb, e.ID, e.Result = verbBoot, "first", v1.HealthGood
	for i := range 400 {
		e.Time = time.Unix(int64(i), 0).UTC()
		must(t, appendHistory(root, "state", e))
	}
	st, err := os.Stat(dir + "/state/" + historyFile)
	must(t, err)
	if st.Size() > maxHistory {
		t.Errorf("the history has %d bytes", st.Size())
	}
	data, err := os.ReadFile(dir + "/state/" + historyFile)
	must(t, err)
	entries := parseHistory(data)
	if entries[0].Verb != "install" || !entries[len(entries)-1].Time.Equal(e.Time) || !slices.IsSortedFunc(entries[1:], func(a, b v1.HistoryEntry) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("of %d lines the first is %+v, the last %+v", len(entries), entries[0], entries[len(entries)-1])
	}
	// Changes alone cannot grow it either.
	for range 400 {
		made.Time = made.Time.Add(time.Second)
		must(t, appendHistory(root, "state", made))
	}
	if st, err = os.Stat(dir + "/state/" + historyFile); err != nil || st.Size() > maxHistory {
		t.Errorf("the history has %d bytes, %v", st.Size(), err)
	}
}

// TestLongHistory: what thousands of deployments cost grows with their number, not
// with its square.
func TestLongHistory(t *testing.T) {
	allocations := func(n int) float64 {
		var entries []v1.HistoryEntry
		for i := range n {
			id := fmt.Sprintf("%0128x", i)
			entries = append(entries, v1.HistoryEntry{Verb: "switch", ID: id}, v1.HistoryEntry{Verb: verbRemove, ID: id})
		}
		return testing.AllocsPerRun(1, func() {
			if got := deploymentsOf(entries, nil); len(got) != n || got[0].State != v1.DeploymentRemoved {
				t.Errorf("%d deployments of %d", len(got), n)
			}
		})
	}
	if few, many := allocations(100), allocations(1000); many > 20*few {
		t.Errorf("100 deployments take %.0f allocations, 1000 take %.0f", few, many)
	}
}
