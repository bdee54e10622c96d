package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/builder"
	"github.com/kedge-os/kedge/pkg/fault"
)

// unified describes an image with a unified kernel image.
type unified struct {
	version  int
	kargs    string // of the unified kernel image, beside composefs=
	separate bool   // it has a separate kernel too
	wrong    bool   // the unified kernel image names another tree
	more     []smallimage.Entry
}

// pushUKI builds an image as one with a unified kernel image is built: the tree,
// its digest, then a layer with what names that.
func (w *world) pushUKI(tag string, u unified) (ref string) {
	w.t.Helper()
	entries := smallimage.OS(u.version)
	if !u.separate {
		entries = nil
		for _, e := range smallimage.OS(u.version) {
			if base := filepath.Base(e.Name); base != "vmlinuz" && base != "initramfs.img" {
				entries = append(entries, e)
			}
		}
	}
	entries = append(entries, bootProgram()...)
	img, err := smallimage.Image("1.0", layer(w.t, append(entries, u.more...)))
	must(w.t, err)
	return w.pushSealed(tag, img, u)
}

// bootProgram is systemd-boot, where images have it.
func bootProgram() []smallimage.Entry {
	return []smallimage.Entry{
		smallimage.Dir("usr/lib/systemd"), smallimage.Dir("usr/lib/systemd/boot"), smallimage.Dir("usr/lib/systemd/boot/efi"),
		smallimage.File("usr/lib/systemd/boot/efi/systemd-bootx64.efi", 0o755, string(loadertest.Program("257"))),
	}
}

// pushSealed puts a unified kernel image for the tree of an image on it.
func (w *world) pushSealed(tag string, img ociv1.Image, u unified) (ref string) {
	w.t.Helper()
	dir := w.t.TempDir()
	_, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	must(w.t, err)
	root, err := builder.Digest(context.Background(), "oci:"+dir, builder.DigestOptions{})
	must(w.t, err)
	digest := root.Digest.String()
	if u.wrong {
		digest = strings.Repeat("a", len(digest))
	}
	cmdline := strings.TrimSpace("composefs=?" + digest + " " + u.kargs)
	program := loadertest.UKI(cmdline, "kernel "+tag, "initrd "+tag)
	layers, err := img.Layers()
	must(w.t, err)
	img, err = smallimage.Image(tag, append(layers, layer(w.t, []smallimage.Entry{
		smallimage.Dir("boot/EFI"), smallimage.Dir("boot/EFI/Linux"),
		smallimage.File("boot/EFI/Linux/os.efi", 0, string(program)),
	}))...)
	must(w.t, err)
	ref, _ = w.pushImage(tag, img)
	return ref
}

// started is the kernel that systemd-boot would start.
func (w *world) started(esp string) string {
	w.t.Helper()
	e, err := lab.DefaultEntry(esp)
	must(w.t, err)
	data, err := os.ReadFile(filepath.Join(esp, e.Linux+e.EFI))
	must(w.t, err)
	_, kernel, _ := strings.Cut(string(data), "kernel ")
	kernel, _, _ = strings.Cut(kernel, "initrd ")
	return strings.TrimRight(kernel, "\x00") // a section that was written anew has padding
}

// TestUnifiedKernelImages is the life of a host with unified kernel images, not
// booted and booted.
func TestUnifiedKernelImages(t *testing.T) {
	ctx := context.Background()
	w := newWorldOf(t, "composefs")
	esp := espWorld(t, w)
	one, two := w.pushUKI("one", unified{version: 1, kargs: "root=LABEL=root rw"}), w.pushUKI("two", unified{version: 2, kargs: "rw quiet", separate: true})
	o := w.options(one)
	o.Bootloader = "systemd-boot"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	check := func(what, kernel string) {
		t.Helper()
		if got := w.started(esp); got != kernel {
			t.Errorf("%s: systemd-boot starts the kernel of %q, want %q", what, got, kernel)
		}
		if p := w.problems(); len(p) > 0 {
			t.Errorf("%s: %q", what, p)
		}
	}
	check("installed", "one")
	w.switchTo(two)
	check("switched", "two")
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	check("rolled back", "one")

	refused := func(kind fault.Kind, words string, op func(h *Host) (*v1.Result, error)) {
		t.Helper()
		before := w.status().Status
		_, err := w.try(op)
		wantKind(t, err, kind, words)
		if fault.HintOf(err) == "" {
			t.Error("the refusal has no hint")
		}
		if got := w.status().Status; got.Kedge.Generation != before.Kedge.Generation || (got.Staged == nil) != (before.Staged == nil) {
			t.Errorf("the refusal changed something: %+v", got)
		}
	}
	for range 2 {
		refused(fault.Conflict, "has no debug", func(h *Host) (*v1.Result, error) {
			return h.Kargs(ctx, KargsOptions{Append: []string{"debug"}})
		})
		refused(fault.Conflict, "has rw", func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Delete: []string{"rw"}}) })
		refused(fault.Conflict, "packages and another initramfs cannot come in", func(h *Host) (*v1.Result, error) {
			return h.ChangePackages(ctx, PackagesOptions{Verb: "pkg add", Add: []string{"htop"}})
		})
		wrong := w.pushUKI("wrong", unified{version: 3, kargs: "rw", wrong: true})
		refused(fault.Untrusted, "its UKI says", func(h *Host) (*v1.Result, error) { return h.Switch(ctx, SwitchOptions{Image: wrong}) })
		kargsd := w.pushUKI("kargsd", unified{version: 3, kargs: "rw", more: []smallimage.Entry{
			smallimage.Dir("usr/lib/bootc"), smallimage.Dir("usr/lib/bootc/kargs.d"), smallimage.File("usr/lib/bootc/kargs.d/10.toml", 0, `kargs = ["audit=0"]`),
		}})
		refused(fault.Conflict, "has no audit=0", func(h *Host) (*v1.Result, error) { return h.Switch(ctx, SwitchOptions{Image: kargsd}) })
		w.boot()
		w.plug(esp)
	}

	// The same files with another kernel argument: one file would have to be
	// written over, which boots.
	other := w.pushUKI("other", unified{version: 1, kargs: "root=LABEL=root rw debug"})
	refused(fault.Conflict, "another unified kernel image", func(h *Host) (*v1.Result, error) { return h.Switch(ctx, SwitchOptions{Image: other}) })
	check("not replaced", "one")

	// Booted: an image with a separate kernel and back.
	s := w.status().Status
	if s.Booted == nil || s.Booted.Composefs == nil || s.Booted.Composefs.BootType != "Uki" || s.Booted.Composefs.BootDigest == nil {
		t.Fatalf("the status of the booted root is %+v", s.Booted)
	}
	args, err := w.open().ListKargs(ctx)
	must(t, err)
	if len(args) != 2 || args[0] != (v1.Karg{Arg: "root=LABEL=root", Owner: v1.KargImage}) {
		t.Errorf("its kernel arguments are %+v, want the image's", args)
	}
	separate := w.pushBoot("separate", 4, "257")
	w.switchTo(separate)
	check("staged", "one")
	w.shutdown()
	w.plug(esp)
	if e, err := lab.DefaultEntry(esp); err != nil || e.EFI != "" || !strings.Contains(e.Options, "root=LABEL=root rw") {
		t.Errorf("an image with a separate kernel boots by %+v, %v", e, err)
	}
	w.switchTo(one)
	w.shutdown()
	w.plug(esp)
	check("back", "one")
	// What went took its unified kernel image along.
	w.do(func(h *Host) (*v1.Result, error) {
		_, err := h.Cleanup(ctx, CleanupOptions{Rollback: true})
		return nil, err
	})
	for dir, want := range map[string]int{filepath.Join(esp, "EFI/Linux/bootc"): 1, filepath.Join(w.dir, ukiDir): 1} {
		if names, err := os.ReadDir(dir); err != nil || len(names) != want {
			t.Errorf("%s has %v, %v; want what boots", dir, names, err)
		}
	}
	check("cleaned up", "one")

	// What is on the partition is checked.
	file, err := lab.DefaultEntry(esp)
	must(t, err)
	data, err := os.ReadFile(filepath.Join(esp, file.EFI))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(esp, file.EFI), append(data[:len(data)-1], '!'), 0o644))
	if p := w.problems(); len(p) != 1 || !strings.Contains(p[0], "is not what came with the image") {
		t.Errorf("fsck of a damaged unified kernel image: %q", p)
	}
}

// TestUnifiedInstalls: what an installation makes of an image with a unified
// kernel image.
func TestUnifiedInstalls(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name, backend, loader string
		image                 unified
		kargs                 []string
		want                  string // backend and boot type
		kind                  fault.Kind
		words                 string
	}{
		{name: "auto", backend: "auto", loader: "systemd-boot", want: "composefs Uki"},
		{name: "auto, both kernels", backend: "auto", loader: "systemd-boot", image: unified{separate: true}, want: "composefs Uki"},
		{name: "ostree", backend: "ostree", loader: "systemd-boot", kind: fault.Conflict, words: "cannot boot from the ostree backend"},
		{name: "ostree, both kernels", backend: "ostree", loader: "systemd-boot", image: unified{separate: true}, want: "ostree "},
		{name: "none", backend: "composefs", loader: "none", want: "composefs Uki"},
		{name: "none, both kernels", backend: "composefs", loader: "none", image: unified{separate: true}, want: "composefs Bls"},
		{name: "another tree", backend: "composefs", loader: "none", image: unified{wrong: true}, kind: fault.Untrusted, words: "its UKI says"},
		{name: "its arguments", backend: "composefs", loader: "systemd-boot", image: unified{kargs: "root=LABEL=x rw"}, kargs: []string{"rw"}, want: "composefs Uki"},
		{name: "other arguments", backend: "composefs", loader: "systemd-boot", kargs: []string{"debug"}, kind: fault.Conflict, words: "has no debug"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorldOf(t, c.backend)
			espWorld(t, w)
			c.image.version = 1
			o := w.options(w.pushUKI("one", c.image), c.kargs...)
			o.Bootloader = c.loader
			_, err := Install(ctx, w.config(), o)
			if c.kind != 0 {
				wantKind(t, err, c.kind, c.words)
				if fault.HintOf(err) == "" {
					t.Error("the refusal has no hint")
				}
				return
			}
			must(t, err)
			h := w.open()
			defer h.Close()
			got := h.backend.name + " "
			list, err := h.store.Deployments()
			must(t, err)
			e := v1.BootEntry{}
			if h.store.Describe(list[0], &e); e.Composefs != nil {
				got += e.Composefs.BootType
			}
			if got != c.want {
				t.Errorf("installed as %q, want %q", got, c.want)
			}
		})
	}
}
