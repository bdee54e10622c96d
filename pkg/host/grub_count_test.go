package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/units"
)

// TestGRUBCounts: a GRUB that kedge installed has a new root tried, where that can
// say that a boot of it was good, and gives it up.
func TestGRUBCounts(t *testing.T) { onBoth(t, testGRUBCounts) }

func testGRUBCounts(t *testing.T, w *world) {
	lab.Need(t, "grub-editenv")
	ctx := context.Background()
	esp := espWorld(t, w)
	w.bootDisk()
	block := filepath.Join(esp, "EFI/debian/kedge.env")
	pushBlessed := func(tag string, version int) string {
		link := "usr/lib/systemd/system/multi-user.target.wants"
		return w.pushGRUBWith(tag, version, "2.12-1", smallimage.Dir("usr/lib/systemd"), smallimage.Dir("usr/lib/systemd/system"), smallimage.Dir(link),
			smallimage.File("usr/lib/systemd/system/"+units.Bless, 0o644, "[Unit]\n"), smallimage.Symlink(link+"/"+units.Bless, "../"+units.Bless))
	}
	o := w.options(pushBlessed("one", 1), "rw")
	o.Bootloader = "grub"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	counted := regexp.MustCompile(`(?m)^# kedge: (\d) ([0-9a-f]{8}) 3 `)
	run := func(when string, should bool) []string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(w.dir, "boot/grub/kedge.cfg"))
		must(t, err)
		m := counted.FindStringSubmatch(string(text))
		if (m != nil) != should {
			t.Fatalf("%s: counted is %v, want %v:\n%s", when, m != nil, should, text)
		}
		return m
	}
	spend := func(m []string, left int) {
		t.Helper()
		if out, err := exec.Command("grub-editenv", block, "set", fmt.Sprintf("kedge_%s=%s:%d", m[1], m[2], left)).CombinedOutput(); err != nil {
			t.Fatalf("grub-editenv: %v: %s", err, out)
		}
	}
	run("the only root", false)
	w.switchTo(w.pushGRUB("unblessed", 2, "2.12-1"))
	run("a root that cannot say that it is good", false)
	w.switchTo(pushBlessed("two", 3))
	first := run("a new root", true)

	// It is tried twice; the second boot is good.
	spend(first, 1)
	w.boot()
	w.plug(esp)
	if a := w.status().Status.Kedge.AutoRollback; a == nil || a.State != v1.RollbackSupported {
		t.Errorf("booted and counted: automatic rollback %+v", a)
	}
	h := w.open()
	must(t, h.BlessBoot(ctx))
	h.Close()
	run("a good boot", false)
	must(t, func() error { h := w.open(); defer h.Close(); return h.BlessBoot(ctx) }())

	// The next one uses its tries up, and GRUB starts what was before.
	w.switchTo(pushBlessed("three", 4))
	w.shutdown()
	second := run("another new root", true)
	if second[2] == first[2] {
		t.Errorf("two roots have the same run %s", second[2])
	}
	spend(second, 0)
	w.bootOther()
	w.plug(esp)
	w.bootComplete()
	s := w.status()
	if r := s.Status.Kedge.LastRollback; r == nil || r.By != v1.ByLoader || r.Reason != v1.HeldExhausted || r.FromVersion != "4.0" {
		t.Errorf("last rollback = %+v", r)
	}
	w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(ctx, "4.0") })
	w.shutdown()
	if third := run("asked for after it was given up", true); third[2] == second[2] {
		t.Error("asked for after it was given up it has the old tries")
	}
}
