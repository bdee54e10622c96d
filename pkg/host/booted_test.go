package host

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/jsonschema"
	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// TestBootedStages follows a booted host through what an admin does to it.
func TestBootedStages(t *testing.T) { onBoth(t, testBootedStages) }

func testBootedStages(t *testing.T, w *world) {
	ctx := context.Background()
	ref, one := w.push("stable", 1)
	first := w.install(ref, "rw").ID
	w.boot()
	if s := w.status(); s.Status.Booted == nil || s.Status.Booted.Kedge.ID != first || *s.Status.Type != v1.TypeBootcHost {
		t.Fatalf("status of a booted host = %+v, want %s booted", s.Status, first)
	}

	_, two := w.push("stable", 2)
	r := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	if !r.Staged || !r.Changed || r.Image.ImageDigest != two {
		t.Errorf("upgrade on a booted host = %+v, want %s staged", r, two)
	}
	s := w.status()
	if s.Status.Staged == nil || s.Status.Staged.Image.ImageDigest != two || !s.Status.Staged.Kedge.Next || s.Status.Booted.Kedge.Next {
		t.Errorf("status after the upgrade: staged = %+v, want %s, next", s.Status.Staged, two)
	}
	w.fitsSchema(s)
	if r = w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) }); r.Changed || !r.Staged {
		t.Errorf("upgrade again = %+v, want no change", r)
	}
	waits(t, w, r.ID, true) // upgrade --apply reboots into it
	// Kernel arguments are asked of the staged deployment, and stay asked when
	// it is replaced.
	w.do(func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Append: []string{"quiet"}}) })
	_, three := w.push("stable", 3)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	// Edits between the staging and the shutdown count.
	w.write(w.machine+"/etc/edited.conf", "late\n")
	w.shutdown()
	s = w.status()
	if s.Status.Staged != nil || s.Status.Booted.Image.ImageDigest != three || s.Status.Rollback.Image.ImageDigest != one {
		t.Errorf("status after the reboot = %+v, want %s booted and %s kept", s.Status, three, one)
	}
	if got := strings.Join(s.Status.Booted.Kedge.Kargs, " "); got != "rw quiet" {
		t.Errorf("kernel arguments after the reboot = %q", got)
	}
	if got := w.file(s.Status.Booted.Kedge.ID, "etc/edited.conf"); got != "late\n" {
		t.Errorf("/etc/edited.conf after the reboot = %q, want the late edit", got)
	}
	w.agree()

	rollback := func() *v1.Result {
		return w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	}
	if r = rollback(); r.Staged || r.Image.ImageDigest != one {
		t.Errorf("rollback on a booted host = %+v, want %s queued at once", r, one)
	}
	if s = w.status(); !s.Status.RollbackQueued || s.Spec.BootOrder != v1.BootOrderRollback || !s.Status.Rollback.Kedge.Next {
		t.Errorf("status after the rollback = %+v, want it queued", s.Status)
	}
	if r = rollback(); r.Image.ImageDigest != three {
		t.Errorf("rollback again = %+v, want it undone", r)
	}
	if s = w.status(); s.Status.RollbackQueued {
		t.Error("the rollback that was undone is still queued")
	}
	// An upgrade leaves a queued rollback alone; a switch to what runs calls it
	// off.
	rollback()
	if r = w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) }); r.Changed {
		t.Errorf("upgrade with a queued rollback = %+v, want no change", r)
	}
	waits(t, w, r.ID, false)
	if r = w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(ctx, "0") }); r.Changed {
		t.Errorf("deploy of what is queued = %+v, want no change", r)
	}
	waits(t, w, r.ID, true)
	if r = w.switchTo(ref); !r.Changed || r.Staged || w.status().Status.RollbackQueued {
		t.Errorf("switch to what runs with a queued rollback = %+v, want it called off", r)
	}
	rollback()
	w.shutdown()
	if s = w.status(); s.Status.Booted.Image.ImageDigest != one {
		t.Errorf("booted after the rollback: %+v, want %s", s.Status.Booted.Image, one)
	}
	w.agree()
}

// waits checks whether a reboot would start a deployment that does not run.
func waits(t *testing.T, w *world, id string, want bool) {
	t.Helper()
	h := w.open()
	defer h.Close()
	if got := h.Waits(id); got != want {
		t.Errorf("%s waits for the reboot: %v, want %v", id, got, want)
	}
}

func TestDownloadOnly(t *testing.T) { onBoth(t, testDownloadOnly) }

func testDownloadOnly(t *testing.T, w *world) {
	ctx := context.Background()
	ref, one := w.push("stable", 1)
	w.install(ref)
	w.boot()
	_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{FromDownloaded: true}) })
	wantKind(t, err, fault.NotFound, "nothing was downloaded")
	_, two := w.push("stable", 2)
	r := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{DownloadOnly: true}) })
	if !r.DownloadOnly || !r.Staged {
		t.Errorf("upgrade --download-only = %+v", r)
	}
	waits(t, w, r.ID, false)
	if s := w.status(); !s.Status.Staged.DownloadOnly || s.Status.Staged.Kedge.Next || !s.Status.Booted.Kedge.Next {
		t.Errorf("status = %+v, want the staged deployment held and the booted one next", s.Status)
	}
	h := w.open()
	must(t, h.Finalize(ctx))
	h.Close()
	if s := w.status(); s.Status.Staged == nil || s.Status.Booted.Image.ImageDigest != one {
		t.Errorf("after a shutdown: %+v, want nothing finalised", s.Status)
	}
	r = w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{FromDownloaded: true}) })
	if !r.Changed || r.DownloadOnly {
		t.Errorf("upgrade --from-downloaded = %+v", r)
	}
	w.shutdown()
	if s := w.status(); s.Status.Booted.Image.ImageDigest != two {
		t.Errorf("booted after the release: %+v, want %s", s.Status.Booted.Image, two)
	}
}

func TestStagedIsDiscarded(t *testing.T) { onBoth(t, testStagedIsDiscarded) }

func testStagedIsDiscarded(t *testing.T, w *world) {
	ctx := context.Background()
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.boot()
	w.push("stable", 2)
	staged := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) }).ID
	c, err := w.open().Cleanup(ctx, CleanupOptions{Staged: true})
	must(t, err)
	if len(c.Deployments) != 1 || c.Deployments[0] != staged || c.Objects == 0 {
		t.Errorf("cleanup --staged = %+v, want %s and its objects gone", c, staged)
	}
	if s := w.status(); s.Status.Staged != nil || len(s.Status.OtherDeployments) != 0 {
		t.Errorf("status after it = %+v", s.Status)
	}
	w.agree()
}

// TestForeignStaging takes the sign that kedge staged it from a staged
// deployment: then it is another program's.
func TestForeignStaging(t *testing.T) { onBoth(t, testForeignStaging) }

func testForeignStaging(t *testing.T, w *world) {
	ctx := context.Background()
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.boot()
	w.push("stable", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	if w.backend == "composefs" {
		file := filepath.Join(w.machine, "run/composefs/staged-deployment")
		data, err := os.ReadFile(file)
		must(t, err)
		marker := map[string]any{}
		must(t, json.Unmarshal(data, &marker))
		delete(marker, "kedge")
		data, err = json.Marshal(marker)
		must(t, err)
		must(t, os.WriteFile(file, data, 0o644))
	} else {
		file := filepath.Join(w.machine, "run/ostree/staged-deployment")
		data, err := os.ReadFile(file)
		must(t, err)
		marker, err := object.DecodeDict(data)
		must(t, err)
		marker.Delete("kedge.staged")
		must(t, os.WriteFile(file, marker.Encode(), 0o644))
	}

	w.push("stable", 3)
	for name, op := range map[string]func(*Host) (*v1.Result, error){
		"upgrade": func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) },
		"kargs":   func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Append: []string{"x"}}) },
	} {
		_, err := w.try(op)
		wantKind(t, err, fault.Conflict, "another program")
		if err != nil && !strings.HasPrefix(err.Error(), name) {
			t.Errorf("the error does not begin with what was done: %v", err)
		}
	}
	if _, err := w.open().Cleanup(ctx, CleanupOptions{Staged: true}); err != nil {
		t.Errorf("discarding it when asked: %v", err)
	}
}

func TestPublishedStatus(t *testing.T) { onBoth(t, testPublishedStatus) }

func testPublishedStatus(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.boot()
	must(t, w.open().Publish(context.Background()))
	file := filepath.Join(w.machine, publishedFile)
	st, err := os.Stat(file)
	must(t, err)
	if st.Mode().Perm() != 0o644 {
		t.Errorf("%s has mode %o, want it readable for all", publishedFile, st.Mode())
	}
	s, err := published(w.config().withDefaults())
	must(t, err)
	if s.Status.Booted == nil || len(s.Status.Kedge.Warnings) != 0 {
		t.Errorf("published status = %+v", s.Status)
	}
	// Whatever changes the deployments makes it stale until it is published
	// again, which every writer of kedge does.
	now := w.now
	must(t, os.Chtimes(filepath.Join(w.dir, map[string]string{"ostree": "ostree/deploy", "composefs": "state/deploy"}[w.backend]), now, now))
	if s, err = published(w.config().withDefaults()); err != nil || len(s.Status.Kedge.Warnings) == 0 {
		t.Errorf("published status after a change by another program = %+v, %v, want a warning", s.Status.Kedge, err)
	}
	w.do(func(h *Host) (*v1.Result, error) { return h.Pin(context.Background(), 0, true) })
	if s, err = published(w.config().withDefaults()); err != nil || len(s.Status.Kedge.Warnings) != 0 {
		t.Errorf("published status after a change by kedge = %+v, %v", s.Status.Kedge, err)
	}
}

// fitsSchema checks a status against the published schema.
func (w *world) fitsSchema(s *v1.Host) {
	w.t.Helper()
	schema, err := os.ReadFile("../../docs/schema/host-v1.schema.json")
	must(w.t, err)
	doc, err := json.Marshal(s)
	must(w.t, err)
	if err := jsonschema.Validate(schema, doc); err != nil {
		w.t.Errorf("status does not fit its schema: %v\n%s", err, doc)
	}
}

func TestSelfInstallSurvivesSwitch(t *testing.T) { onBoth(t, testSelfInstallSurvivesSwitch) }

func testSelfInstallSurvivesSwitch(t *testing.T, w *world) {
	ctx := context.Background()
	ref, _ := w.push("stable", 1)
	w.install(ref)
	w.boot()
	plan := func() string {
		p, err := w.open().Plan(ctx, PlanOptions{Inspect: true})
		must(t, err)
		for _, m := range p.Missing {
			if m.What == "kedge" {
				return m.Consequence
			}
		}
		return ""
	}
	if got := plan(); !strings.Contains(got, "kedge is gone after the reboot") {
		t.Errorf("plan before self install says %q", got)
	}
	must(t, os.Remove(w.machine+"/usr/lib/systemd/system/"+units.Finalize))
	w.push("stable", 2)
	_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	wantKind(t, err, fault.Conflict, "puts a staged deployment in place")
	paths, err := w.open().SelfInstall(ctx, "test")
	must(t, err)
	for _, p := range paths {
		if _, err := os.Lstat(filepath.Join(w.machine, p)); err != nil {
			t.Errorf("self install said %s: %v", p, err)
		}
	}
	if got := plan(); !strings.Contains(got, "goes on working") {
		t.Errorf("plan after self install says %q", got)
	}
	w.push("stable", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	w.shutdown()
	for _, p := range paths {
		if _, err := os.Stat(filepath.Join(w.machine, p)); err != nil {
			t.Errorf("after the switch: %v", err)
		}
	}
}
