package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

var signingKey = sync.OnceValues(func() ([2][]byte, error) {
	key, certificate, err := lab.SigningKey("kedge test")
	return [2][]byte{key, certificate}, err
})

// signing writes a key, its certificate and the configuration that names them into
// an /etc.
func (w *world) signing(etc string) {
	w.t.Helper()
	pair, err := signingKey()
	must(w.t, err)
	w.write(filepath.Join(etc, "kedge/uki.toml"), "key = \"/etc/kedge/uki.key\"\ncertificate = \"/var/lib/uki.crt\"\n")
	w.write(filepath.Join(etc, "kedge/uki.key"), string(pair[0]))
	must(w.t, os.Chmod(filepath.Join(etc, "kedge/uki.key"), 0o600))
	w.write(filepath.Join(w.dir, composefsVar, "lib/uki.crt"), string(pair[1]))
}

func (w *world) first() *deployment {
	w.t.Helper()
	h := w.open()
	defer h.Close()
	list, err := h.store.Deployments()
	must(w.t, err)
	return list[0]
}

// startedCmdline is that of the unified kernel image which systemd-boot would start,
// without what names the root.
func (w *world) startedCmdline(esp string) string {
	w.t.Helper()
	e, err := lab.DefaultEntry(esp)
	must(w.t, err)
	f, err := os.Open(filepath.Join(esp, e.EFI))
	must(w.t, err)
	defer f.Close()
	st, err := f.Stat()
	must(w.t, err)
	u, err := uki.Decode(f, st.Size())
	must(w.t, err)
	return u.Cmdline.Without("composefs").String()
}

// TestUnifiedSigned is the life of a host that has a key, not booted and booted.
func TestUnifiedSigned(t *testing.T) {
	ctx := context.Background()
	w := newWorldOf(t, "composefs")
	esp := espWorld(t, w)
	one, two := w.pushUKI("one", unified{version: 1, kargs: "root=LABEL=root rw"}), w.pushUKI("two", unified{version: 2, kargs: "rw quiet"})
	o := w.options(one)
	o.Bootloader = "systemd-boot"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	kargs := func(o KargsOptions) func(h *Host) (*v1.Result, error) {
		return func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, o) }
	}
	debug := kargs(KargsOptions{Append: []string{"debug"}})
	_, err = w.try(debug)
	wantKind(t, err, fault.Conflict, "has no debug")
	if !strings.Contains(fault.HintOf(err), "/etc/kedge/uki.toml") {
		t.Errorf("the hint is %q", fault.HintOf(err))
	}
	check := func(what, kernel, cmdline string, signed bool) {
		t.Helper()
		if got := w.started(esp); got != kernel {
			t.Errorf("%s: systemd-boot starts the kernel of %q, want %q", what, got, kernel)
		}
		if got := w.startedCmdline(esp); got != cmdline {
			t.Errorf("%s: the kernel has the arguments %q, want %q", what, got, cmdline)
		}
		if d := w.first(); !d.staged && d.signedHere != signed {
			t.Errorf("%s: signed on this host: %v", what, d.signedHere)
		}
		if p := w.problems(); len(p) > 0 {
			t.Errorf("%s: %q", what, p)
		}
	}
	w.signing(w.path(w.first().id, "etc"))
	w.do(debug)
	check("changed", "one", "root=LABEL=root rw debug", true)
	args, err := w.open().ListKargs(ctx)
	must(t, err)
	if len(args) != 3 || args[0] != (v1.Karg{Arg: "root=LABEL=root", Owner: v1.KargImage}) || args[2] != (v1.Karg{Arg: "debug", Owner: v1.KargUser}) {
		t.Errorf("its kernel arguments are %+v", args)
	}
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	check("rolled back", "one", "root=LABEL=root rw", false)
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	w.switchTo(two)
	check("switched", "two", "rw debug quiet", true)

	w.boot()
	w.plug(esp)
	if s := w.status().Status; s.Booted == nil || !s.Booted.Kedge.SignedHere || s.Booted.Composefs.BootType != "Uki" {
		t.Fatalf("the status of the booted root is %+v", s.Booted)
	}
	w.do(kargs(KargsOptions{Delete: []string{"quiet"}, Append: []string{"splash"}}))
	// What is staged is continued, not what runs.
	w.do(kargs(KargsOptions{Append: []string{"more=1"}}))
	w.pushTo(two, unified{version: 3, kargs: "rw quiet audit=0"})
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	w.shutdown()
	w.plug(esp)
	check("upgraded", "two", "rw debug splash more=1 audit=0", true)
	// With nothing of its own it starts what came with the image.
	w.do(kargs(KargsOptions{Delete: []string{"debug", "splash", "more=1"}, Append: []string{"quiet"}}))
	w.shutdown()
	w.plug(esp)
	check("as the image has it", "two", "rw quiet audit=0", false)

	w.do(func(h *Host) (*v1.Result, error) {
		_, err := h.Cleanup(ctx, CleanupOptions{Rollback: true})
		return nil, err
	})
	for dir, want := range map[string]int{filepath.Join(esp, "EFI/Linux/bootc"): 1, filepath.Join(esp, "EFI/Linux/kedge"): 0, filepath.Join(w.dir, "state/kedge/uki-made"): 0} {
		if names, err := os.ReadDir(dir); err != nil || len(names) != want {
			t.Errorf("%s has %v, %v; want what boots", dir, names, err)
		}
	}
}

// pushTo is pushUKI behind a reference that is there.
func (w *world) pushTo(ref string, u unified) {
	w.t.Helper()
	w.pushUKI(ref[strings.LastIndexByte(ref, ':')+1:], u)
}

// TestUnifiedSigningRefused: a key that others may have read, and what is none.
func TestUnifiedSigningRefused(t *testing.T) {
	ctx := context.Background()
	w := newWorldOf(t, "composefs")
	esp := espWorld(t, w)
	o := w.options(w.pushUKI("one", unified{version: 1, kargs: "rw"}))
	o.Bootloader = "systemd-boot"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	etc := w.path(w.first().id, "etc/kedge")
	_, other, err := lab.SigningKey("another")
	must(t, err)
	for range 2 {
		for _, c := range []struct {
			name   string
			damage func()
			kind   fault.Kind
			words  string
		}{
			{"a key that others can read", func() { must(t, os.Chmod(etc+"/uki.key", 0o640)) }, fault.Untrusted, "others than root may read"},
			{"of another user", func() { must(t, os.Chown(etc+"/uki.key", 1000, 0)) }, fault.Untrusted, "belongs to 1000"},
			{"no key", func() { must(t, os.Remove(etc+"/uki.key")) }, fault.Conflict, "/etc/kedge/uki.key"},
			{"a link", func() {
				must(t, os.Rename(etc+"/uki.key", etc+"/elsewhere"))
				must(t, os.Symlink("elsewhere", etc+"/uki.key"))
			}, fault.Conflict, "not a file"},
			{"huge", func() { must(t, os.Truncate(etc+"/uki.key", 1<<30)) }, fault.Conflict, "not a file of at most"},
			{"no certificate", func() { must(t, os.Remove(filepath.Join(w.dir, composefsVar, "lib/uki.crt"))) }, fault.Conflict, "/var/lib/uki.crt"},
			{"another certificate", func() { w.write(filepath.Join(w.dir, composefsVar, "lib/uki.crt"), string(other)) }, fault.Conflict, "belongs to another key"},
			{"half a configuration", func() { w.write(etc+"/uki.toml", "key = \"/etc/kedge/uki.key\"\n") }, fault.Corrupt, "certificate"},
		} {
			w.signing(filepath.Dir(etc))
			c.damage()
			_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Append: []string{"debug"}}) })
			wantKind(t, err, c.kind, c.words)
			if fault.HintOf(err) == "" {
				t.Errorf("%s: no hint", c.name)
			}
			_, err = w.try(func(h *Host) (*v1.Result, error) {
				return h.ChangePackages(ctx, PackagesOptions{Verb: "pkg add", Add: []string{"htop"}})
			})
			wantKind(t, err, c.kind, c.words)
			must(t, os.RemoveAll(etc))
		}
		w.boot()
		w.plug(esp)
	}
}

// TestUnifiedPackages puts packages, and an initramfs of the host's own, on an image
// that boots a unified kernel image.
func TestUnifiedPackages(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("runs apt and dracut: set KEDGE_NIGHTLY=1")
	}
	ctx := context.Background()
	l := newPackageLab(t, "apt")
	w := newWorldOf(t, "composefs")
	esp := espWorld(t, w)
	image := func(version int) unified { return unified{version: version, kargs: "rw"} }
	push := func(version int) string {
		return w.pushSealed("os", l.image(t, "apt", version, append(bootProgram(), smallimage.File("usr/share/version", 0, string(rune('0'+version))))...), image(version))
	}
	ref := push(1)
	o := w.options(ref)
	o.Bootloader = "systemd-boot"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	s := &stage{world: w, ctx: ctx}
	l.configure(s, 0)
	add := func(h *Host) (*v1.Result, error) {
		return h.ChangePackages(ctx, PackagesOptions{Verb: "pkg add", Add: []string{"lab-chain"}})
	}
	_, err = w.try(add)
	wantKind(t, err, fault.Conflict, "packages and another initramfs cannot come in")
	w.signing(w.path(w.first().id, "etc"))
	check := func(what, cmdline string, signed, initramfs bool) {
		t.Helper()
		d := w.first()
		if got := w.startedCmdline(esp); got != cmdline || d.signedHere != signed {
			t.Errorf("%s: the kernel has the arguments %q, signed here: %v", what, got, d.signedHere)
		}
		if kernel := w.started(esp); initramfs && kernel == "os" || !initramfs && kernel != "os" {
			t.Errorf("%s: the kernel is %.40q", what, kernel)
		}
		if p := w.problems(); len(p) > 0 {
			t.Errorf("%s: %q", what, p)
		}
	}
	w.do(add)
	check("a package", "rw", true, false)
	w.do(func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Append: []string{"debug"}}) })
	check("an argument more", "rw debug", true, false)
	push(2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	check("upgraded", "rw debug", true, false)
	wantFiles(0, "usr/bin/lab-chain")(t, s)
	w.do(func(h *Host) (*v1.Result, error) {
		return h.ChangeInitramfs(ctx, InitramfsOptions{Regenerate: true, Args: small})
	})
	check("another initramfs", "rw debug", true, true)
	w.do(func(h *Host) (*v1.Result, error) { return h.ChangeInitramfs(ctx, InitramfsOptions{}) })
	w.do(func(h *Host) (*v1.Result, error) {
		return h.ChangePackages(ctx, PackagesOptions{Verb: "pkg remove", Remove: []string{"lab-chain"}})
	})
	check("without packages", "rw debug", true, false)
	w.do(func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Delete: []string{"debug"}}) })
	check("as the image has it", "rw", false, false)
}
