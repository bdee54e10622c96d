package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestBadImages gives Switch what it must refuse: each with its kind, and the
// sysroot as it was.
func TestBadImages(t *testing.T) { onBoth(t, testBadImages) }

func testBadImages(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	before := w.snapshot()
	relabel := func(change func(*ociv1.ConfigFile)) ociv1.Image {
		img := image(t, 2)
		c, err := img.ConfigFile()
		must(t, err)
		c = c.DeepCopy()
		change(c)
		img, err = mutate.ConfigFile(img, c)
		must(t, err)
		return img
	}
	single := func(entries ...smallimage.Entry) ociv1.Image {
		img, err := smallimage.Image("2.0", layer(t, entries))
		must(t, err)
		return img
	}
	without := func(prefix string) []smallimage.Entry {
		return slices.DeleteFunc(smallimage.OS(2), func(e smallimage.Entry) bool { return strings.HasPrefix(e.Name, prefix) })
	}
	noEtc := without("etc/")
	for _, c := range []struct {
		name string
		img  ociv1.Image
		kind fault.Kind
		text string
	}{
		{"arch", relabel(func(c *ociv1.ConfigFile) { c.Architecture = "s390x" }), fault.Conflict, "s390x"},
		{"label", relabel(func(c *ociv1.ConfigFile) { c.Config.Labels = nil }), fault.Conflict, "containers.bootc"},
		{"nokernel", single(without("usr/lib/modules/")...), fault.Conflict, "kernel"},
		{"noetc", single(noEtc...), fault.Conflict, "no /etc"},
		{"etcfile", single(append(noEtc[:len(noEtc):len(noEtc)], smallimage.File("etc", 0, "x"))...), fault.Conflict, "not a directory"},
		{"twokernels", image(t, 2, smallimage.Kernel("6.1.0-other")...), fault.Conflict, "kernel"},
		{"dotdot", image(t, 2, smallimage.File("usr/../../escape", 0, "x")), fault.Corrupt, "escape"},
		{"hardlink", image(t, 2, smallimage.Hardlink("usr/bin/x", "nowhere/at/all")), fault.Corrupt, "usr/bin/x"},
	} {
		ref, _ := w.pushImage(c.name, c.img)
		_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) })
		wantKind(t, err, c.kind, c.text)
		if fault.HintOf(err) == "" {
			t.Errorf("%s: the error %q has no hint", c.name, err)
		}
		if got := w.snapshot(); got != before {
			t.Errorf("%s: boot entries and deployments changed:\n%s\nbefore:\n%s", c.name, got, before)
		}
	}
	if w.backend == "ostree" { // the other one's entries have a name without it
		unnamed := slices.DeleteFunc(smallimage.OS(2), func(e smallimage.Entry) bool { return strings.HasSuffix(e.Name, "/os-release") })
		ref, _ := w.pushImage("norelease", single(unnamed...))
		_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) })
		wantKind(t, err, fault.Corrupt, "os-release")
	}
	for _, c := range []struct {
		image string
		kind  fault.Kind
	}{
		{w.registry + "/os:absent", fault.NotFound},
		{"localhost:1/os:1", fault.Unavailable},
		{"NOT A REFERENCE", fault.Usage},
		{"oci:/nonexistent:x", fault.NotFound},
	} {
		_, err := w.try(func(h *Host) (*v1.Result, error) {
			return h.Switch(context.Background(), SwitchOptions{Image: c.image})
		})
		wantKind(t, err, c.kind, "switch")
	}
	_, err := w.try(func(h *Host) (*v1.Result, error) {
		return h.Switch(context.Background(), SwitchOptions{Image: ref, EnforceSigpolicy: true})
	})
	wantKind(t, err, fault.Untrusted, "switch")
	w.agree()
}

// snapshot is everything that decides what boots.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	for _, pattern := range []string{"boot/loader", "boot/loader/entries/*", "ostree/boot.?", "ostree/deploy/*/deploy/*.origin", "state/deploy/*/*.origin"} {
		names, err := filepath.Glob(filepath.Join(w.dir, pattern))
		must(w.t, err)
		for _, n := range names {
			target, _ := os.Readlink(n)
			text, _ := os.ReadFile(n)
			b.WriteString(strings.TrimPrefix(n, w.dir) + " " + target + "\n" + string(text))
		}
	}
	return b.String()
}

func TestForeignIntentIsNotLost(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.push("stable", 1)
	id := w.install(ref).ID
	origin := filepath.Join(w.dir, "ostree/deploy/default/deploy", strings.TrimPrefix(id, "default/")+".origin")
	text, err := os.ReadFile(origin)
	must(t, err)
	must(t, os.WriteFile(origin, append(text, "\n[packages]\nrequested=htop;vim;\n\n[overrides]\nremove=nano;\n"...), 0o644))
	w.push("stable", 2)
	_, err = w.try(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	wantKind(t, err, fault.Conflict, "htop")
	must(t, os.WriteFile(origin, append(text, "\n[packages]\nrequested=\n\n[rpmostree]\nregenerate-initramfs=false\n"...), 0o644))
	if r := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) }); !r.Changed {
		t.Errorf("upgrade of a host whose rpm-ostree settings ask for nothing = %+v", r)
	}
	if e := w.status().Status.OtherDeployments[0]; e.Incompatible || e.Image == nil {
		t.Errorf("status after it = %+v, want the empty settings gone", e)
	}
}

func TestForeignIntentIsShown(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.push("stable", 1)
	id := w.install(ref).ID
	origin := filepath.Join(w.dir, "ostree/deploy/default/deploy", strings.TrimPrefix(id, "default/")+".origin")
	text, err := os.ReadFile(origin)
	must(t, err)
	must(t, os.WriteFile(origin, append(text, "\n[packages]\nrequested=htop;vim;\n\n[overrides]\nremove=nano;\n"...), 0o644))
	e := w.status().Status.OtherDeployments[0]
	if !e.Incompatible || e.Image != nil || e.Kedge.Packages == nil || e.Kedge.Digest == "" {
		t.Errorf("status of a host with client-side packages = %+v, want it incompatible as bootc has it, with what it is made of", e)
	}
}

func TestInstallRefuses(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	ref, _ := w.push("stable", 1)
	tool := w.config()
	tool.ComposefsTool = "mkcomposefs"
	_, err := Install(ctx, tool, InstallOptions{Image: ref, Backend: "composefs", AllowMissingVerity: true})
	wantKind(t, err, fault.Usage, "sha512")
	if left, err := os.ReadDir(w.dir); err != nil || len(left) > 0 {
		t.Errorf("what was refused left %v, %v", left, err)
	}
	for _, c := range []struct {
		o    InstallOptions
		kind fault.Kind
		text string
	}{
		{InstallOptions{Image: ref, Backend: "lvm"}, fault.Usage, "lvm"},
		{InstallOptions{Image: ref, Backend: "composefs", Stateroot: "mine"}, fault.Usage, "mine"},
		{InstallOptions{Image: ref, Bootloader: "lilo"}, fault.Usage, "lilo"},
		{InstallOptions{Image: ref, Kargs: []string{"a b"}}, fault.Usage, "a b"},
		{InstallOptions{Image: ref, Stateroot: "a/b"}, fault.Usage, "stateroot"},
		{InstallOptions{Image: w.registry + "/os:absent"}, fault.NotFound, "install"},
	} {
		_, err := Install(ctx, w.config(), c.o)
		wantKind(t, err, c.kind, c.text)
		if left, err := os.ReadDir(w.dir); err != nil || len(left) > 0 {
			t.Errorf("what was refused (%s) left %v, %v", c.text, left, err)
		}
	}
	must(t, os.Mkdir(w.dir+"/home", 0o755))
	_, err = Install(ctx, w.config(), InstallOptions{Image: ref})
	wantKind(t, err, fault.Conflict, "not empty")
	must(t, os.Remove(w.dir+"/home"))
	w.install(ref)
	_, err = Install(ctx, w.config(), InstallOptions{Image: ref})
	wantKind(t, err, fault.Conflict, "has deployments already")
	cfg := w.config()
	cfg.Sysroot += "/nowhere"
	_, err = Install(ctx, cfg, InstallOptions{Image: ref})
	wantKind(t, err, fault.NotFound, "does not exist")
}

func TestNothingToRollBackTo(t *testing.T) { onBoth(t, testNothingToRollBackTo) }

func testNothingToRollBackTo(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Rollback(context.Background()) })
	wantKind(t, err, fault.Conflict, "no deployment to go back to")
	_, err = w.try(func(h *Host) (*v1.Result, error) { return h.Pin(context.Background(), 5, true) })
	wantKind(t, err, fault.NotFound, "index 5")
	cfg := w.config()
	cfg.Sysroot = t.TempDir()
	_, err = Open(context.Background(), cfg)
	wantKind(t, err, fault.NotFound, "ostree/deploy")
}

func TestTwoWriters(t *testing.T) { onBoth(t, testTwoWriters) }

func testTwoWriters(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	h := w.open()
	unlock, err := h.lock(context.Background())
	must(t, err)
	defer unlock()
	_, err = w.try(func(h *Host) (*v1.Result, error) { return h.Pin(context.Background(), 0, true) })
	wantKind(t, err, fault.Busy, "process")
	w.status() // readers do not wait
}

func TestCancelledBeforeTheCommitPoint(t *testing.T) { onBoth(t, testCancelledBeforeTheCommitPoint) }

func testCancelledBeforeTheCommitPoint(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	before := w.snapshot()
	ref, _ = w.push("2", 2)
	ctx, cancel := context.WithCancel(context.Background())
	cfg := w.config()
	cfg.Progress = cancelAt{cancel: cancel}
	h, err := Open(ctx, cfg)
	must(t, err)
	_, err = h.Switch(ctx, SwitchOptions{Image: ref})
	h.Close()
	wantKind(t, err, fault.Interrupted, "")
	if got := w.snapshot(); got != before {
		t.Errorf("a cancelled switch changed what boots:\n%s", got)
	}
	if r := w.switchTo(ref); !r.Changed {
		t.Errorf("the switch after a cancelled one = %+v", r)
	}
	w.agree()
}

// cancelAt interrupts an operation when the image is there and about to be
// deployed.
type cancelAt struct {
	silent
	cancel context.CancelFunc
}

func (c cancelAt) Step(task, _ string) {
	if task == v1.TaskStaging {
		c.cancel()
	}
}

func TestNoSpace(t *testing.T) {
	err := checkSpace([]v1.PlanSpace{{Path: "/", Needed: 1, Free: 2, Enough: true}, {Path: "/boot", Needed: 80e6, Free: 7e6}})
	wantKind(t, err, fault.NoSpace, "/boot has too little space: about 80 MB are needed, 7 MB are free")
}

func TestTornHistory(t *testing.T) { onBoth(t, testTornHistory) }

func testTornHistory(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	w.install(ref)
	state := map[string]string{"ostree": stateDir, "composefs": composefsState}[w.backend]
	f, err := os.OpenFile(filepath.Join(w.dir, state, historyFile), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(`{"v":1,"time":"2026-`)
	must(t, err)
	must(t, f.Close())
	must(t, appendHistory(w.open().root, state, v1.HistoryEntry{V: v1.HistoryVersion, Verb: "etc reset", Detail: strings.Repeat("x", 100<<10)}))
	w.do(func(h *Host) (*v1.Result, error) { return h.Pin(context.Background(), 0, true) })
	entries, err := w.open().History(context.Background())
	must(t, err)
	if len(entries) != 3 || entries[0].Verb != "pin" || entries[2].Verb != "install" {
		t.Errorf("history with a torn line and a long one = %d lines, want the whole ones", len(entries))
	}
}
