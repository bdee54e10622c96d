package imageroot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/sdboot"
	"github.com/kedge-os/kedge/pkg/fault"
)

// onESP opens the sysroot with systemd-boot on a directory of its own.
func (w *world) onESP() *Sysroot {
	w.t.Helper()
	esp := filepath.Join(w.dir, "..", "esp")
	must(w.t, os.MkdirAll(esp, 0o755))
	root, err := os.OpenRoot(esp)
	must(w.t, err)
	o := w.options()
	o.Loader = sdboot.New(root, sdboot.Options{Arch: "amd64", NoSync: true})
	s, err := Open(w.dir, o)
	must(w.t, err)
	w.t.Cleanup(s.Close)
	must(w.t, s.Lock(context.Background()))
	return s
}

// boots follows the menu as systemd-boot does and fails where a line of it leads
// nowhere; it returns what the default starts.
func (w *world) boots(s *Sysroot) string {
	w.t.Helper()
	boot := s.boot.Name()
	list, err := lab.Entries(boot)
	must(w.t, err)
	for _, e := range list {
		for _, name := range []string{e.Linux, e.Initrd, e.EFI} {
			if _, err := os.Stat(filepath.Join(boot, strings.TrimPrefix(name, "/boot"))); err != nil {
				w.t.Errorf("entry %s: %v", e.File, err)
			}
		}
		if e.EFI != "" && e.Options != "" {
			w.t.Errorf("entry %s gives a unified kernel image the options %q", e.File, e.Options)
		}
	}
	data, err := os.ReadFile(filepath.Join(boot, strings.TrimPrefix(list[0].Linux+list[0].EFI, "/boot")))
	must(w.t, err)
	return string(data)
}

// TestUnifiedImages is the life of a host with unified kernel images: those of
// other images come and go, an image with a separate kernel in between.
func TestUnifiedImages(t *testing.T) {
	for name, open := range map[string]func(*world) *Sysroot{"loader": (*world).onESP, "boot directory": (*world).open} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := open(w)
			first := w.unified(osTree("").without("usr/lib/modules/6.1.0/vmlinuz", "usr/lib/modules/6.1.0/initramfs.img"), "root=UUID=1 rw quiet")
			d := w.deploy(s, request(s, first))
			if d.Type != TypeUKI || d.Kargs().String() != "root=UUID=1 rw quiet" || len(s.Problems()) > 0 {
				t.Errorf("deployed %+v with %q, problems %v", d, d.Kargs(), s.Problems())
			}
			if v, _ := d.Origin.Get("boot", "boot_type"); v != "uki" || len(d.BootDigest()) != 64 {
				t.Errorf("the origin says %q, digest %q", v, d.BootDigest())
			}
			file := "EFI/Linux/bootc/bootc_composefs-" + first + ".efi"
			if got := d.KernelFile(); strings.TrimPrefix(got, "boot/") != file || !strings.Contains(w.boots(s), "kernel of "+first) {
				t.Errorf("it starts %s", got)
			}
			// Another one, then back to it, and one with a separate kernel.
			second := w.unified(osTree("k").without("usr/lib/modules/6.1.0/vmlinuz"), "rw splash")
			d = w.deploy(s, request(s, second))
			if d.Kargs().String() != "rw splash" || !strings.Contains(w.boots(s), "kernel of "+second) {
				t.Errorf("the second has %q", d.Kargs())
			}
			must(t, s.Write(t.Context(), s.WithDefault(s.Deployments()[1])))
			if d := s.Deployments()[0]; d.Digest != first || !strings.Contains(w.boots(s), "kernel of "+first) {
				t.Errorf("after the rollback it is %s", d.Name())
			}
			third := w.image(osTree("k3"))
			d = w.deploy(s, request(s, third))
			if d.Type != TypeBLS || d.Kargs().String() != "root=UUID=1 rw quiet" || w.boots(s) != "k3" {
				t.Errorf("with a separate kernel it is %+v with %q", d, d.Kargs())
			}
			// What goes takes its unified kernel image along.
			must(t, s.Write(t.Context(), []*Deployment{d}))
			must(t, s.Cleanup(t.Context()))
			for _, digest := range []string{first, second} {
				if _, err := s.boot.Stat("EFI/Linux/bootc/bootc_composefs-" + digest + ".efi"); err == nil {
					t.Errorf("%.12s is gone and its unified kernel image is not", digest)
				}
			}
			if list, err := s.boot.Open("EFI/Linux/bootc"); err == nil {
				names, _ := list.Readdirnames(-1)
				if len(names) > 0 {
					t.Errorf("left behind: %q", names)
				}
			}
			// Back: the arguments of the machine are in the new one.
			d = w.deploy(s, request(s, first))
			if d.Type != TypeUKI || !strings.Contains(w.boots(s), "kernel of "+first) {
				t.Errorf("back it is %+v", d)
			}
		})
	}
}

// TestUnifiedRefused: nothing is changed where another unified kernel image would
// be needed, or the one that is there is not the image's.
func TestUnifiedRefused(t *testing.T) {
	w := newWorld(t)
	s := w.onESP()
	w.deploy(s, request(s, w.unified(osTree("a"), "root=UUID=1 rw")))
	tree := osTree("b")
	good := w.unified(tree, "rw")
	withKargs := w.unified(tree.with(files{"usr/lib/bootc/kargs.d/10.toml": `kargs = ["quiet"]`}), "rw")
	for _, c := range []struct {
		name  string
		r     DeployRequest
		kind  fault.Kind
		words string
	}{
		{"an argument more", DeployRequest{Digest: good, Kargs: karg.Args{"rw", "debug"}, ExactKargs: true}, fault.Conflict, "has no debug"},
		{"an argument less", DeployRequest{Digest: good, Kargs: karg.Args{}, ExactKargs: true}, fault.Conflict, "has rw"},
		{"the machine's", DeployRequest{Digest: good, Kargs: karg.Args{"root=LABEL=x"}}, fault.Conflict, "has no root=LABEL=x"},
		{"the image's kargs.d", DeployRequest{Digest: withKargs}, fault.Conflict, "has no quiet"},
		{"without fs-verity", DeployRequest{Digest: good, VerityOptional: true}, fault.Conflict, "demands fs-verity"},
	} {
		before := w.snapshot()
		c.r.Origin = origin("os:2")
		_, err := s.Deploy(t.Context(), c.r)
		wantKind(t, err, c.kind, c.words)
		if fault.HintOf(err) == "" {
			t.Errorf("%s: no hint", c.name)
		}
		if got := w.snapshot(); got != before {
			t.Errorf("%s: the refusal changed the sysroot", c.name)
		}
	}
	for cmdline, c := range map[string]struct {
		kind  fault.Kind
		words string
	}{
		"composefs=" + strings.Repeat("a", 128): {fault.Untrusted, "boots aaaaaaaaaaaa"},
		"rw":                                    {fault.Conflict, "names no image"},
	} {
		digest := w.image(osTree("c " + cmdline))
		w.uki(digest, cmdline)
		_, err := s.Deploy(t.Context(), DeployRequest{Digest: digest, Origin: origin("os:3")})
		wantKind(t, err, c.kind, c.words)
	}
	w.uki(s.Deployments()[0].Digest, "composefs="+s.Deployments()[0].Digest+" rw splash")
	_, err := s.Deploy(t.Context(), DeployRequest{Digest: s.Deployments()[0].Digest, Origin: origin("os:3")})
	wantKind(t, err, fault.Conflict, "another unified kernel image")
	w.write(filepath.Join(repoDir, good+".efi"), "no program")
	_, err = s.Deploy(t.Context(), DeployRequest{Digest: good, Origin: origin("os:3")})
	wantKind(t, err, fault.Conflict, "not a PE file")
	if len(s.Deployments()) != 1 || len(w.names(deployDir)) != 1 {
		t.Errorf("there are %d deployments and the states %q", len(s.Deployments()), w.names(deployDir))
	}
}

// TestUnifiedFromSeparate: the arguments of a machine have to be in the unified
// kernel image that it goes to; those that its image brought need not.
func TestUnifiedFromSeparate(t *testing.T) {
	w := newWorld(t)
	s := w.onESP()
	w.deploy(s, request(s, w.image(osTree("a").with(files{"usr/lib/bootc/kargs.d/10.toml": `kargs = ["quiet"]`}))))
	lacking, having := w.unified(osTree("b"), "rw"), w.unified(osTree("c"), "splash root=UUID=1 root=UUID=2 rw")
	_, err := s.Deploy(t.Context(), request(s, lacking))
	wantKind(t, err, fault.Conflict, "has no root=UUID=1")
	d := w.deploy(s, request(s, having))
	if d.Type != TypeUKI || d.Kargs().String() != "splash root=UUID=1 root=UUID=2 rw" {
		t.Errorf("deployed %+v with %q", d, d.Kargs())
	}
}

// TestUnifiedStaged is a booted host with unified kernel images.
func TestUnifiedStaged(t *testing.T) {
	w := newWorld(t)
	s := w.onESP()
	a := w.deploy(s, request(s, w.unified(osTree("a"), "root=UUID=1 rw")))
	s.Close()
	w.boot(a)
	s = w.onESP()
	if b := s.Booted(); b == nil || b.Digest != a.Digest {
		t.Fatalf("booted is %+v", b)
	}
	d := w.stage(s, w.unified(osTree("b"), "rw quiet"))
	if d == nil || !d.Staged || d.Type != TypeUKI || d.Kargs().String() != "rw quiet" {
		t.Fatalf("staged is %+v, problems %v", d, s.Problems())
	}
	must(t, s.Cleanup(t.Context()))
	if s.Staged() == nil || s.CheckKernel(t.Context(), s.Staged()) != nil {
		t.Error("the clean-up took what is staged")
	}
	if _, err := s.Finalize(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := s.Deployments()[0]
	if b.Digest != d.Digest || !strings.Contains(w.boots(s), "kernel of "+d.Digest) {
		t.Errorf("after the shutdown %s boots", b.Name())
	}
	// What is on the partition is checked.
	must(t, s.CheckKernel(t.Context(), b))
	file := filepath.Join(s.boot.Name(), b.KernelFile())
	data, err := os.ReadFile(file)
	must(t, err)
	data[len(data)-1] ^= 1
	must(t, os.WriteFile(file, data, 0o644))
	wantKind(t, s.CheckKernel(t.Context(), b), fault.Corrupt, "not what came with the image")
	must(t, os.Remove(file))
	must(t, s.Load())
	if len(s.Problems()) != 1 || len(s.Deployments()) != 2 {
		t.Errorf("without its unified kernel image: %d deployments, problems %v", len(s.Deployments()), s.Problems())
	}
	// It comes back with the next menu.
	must(t, s.Write(t.Context(), s.Deployments()))
	must(t, s.CheckKernel(t.Context(), s.Deployments()[0]))
}

// TestOtherLoaders: of an image with both kernels each loader gets what it can
// start.
func TestOtherLoaders(t *testing.T) {
	w := newWorld(t)
	both := w.unified(osTree("a"), "rw")
	alone := w.unified(osTree("b").without("usr/lib/modules/6.1.0/vmlinuz"), "root=UUID=1 rw")
	grub := func(w *world) *Sysroot {
		o := w.options()
		o.Loader = loader.None{As: loader.NameGRUB}
		s, err := Open(w.dir, o)
		must(t, err)
		t.Cleanup(s.Close)
		return s
	}
	for _, c := range []struct {
		name    string
		open    func(*world) *Sysroot
		digest  string
		unified bool
		kind    fault.Kind
	}{
		{"systemd-boot", (*world).onESP, both, true, 0},
		{"systemd-boot", (*world).onESP, alone, true, 0},
		{"none", (*world).open, both, false, 0},
		{"none", (*world).open, alone, true, 0},
		{"grub", grub, both, false, 0},
		{"grub", grub, alone, false, fault.Conflict},
	} {
		s := c.open(w)
		got, err := s.BootsUKI(t.Context(), c.digest)
		if got != c.unified || fault.KindOf(err) != c.kind {
			t.Errorf("%s: unified %v, %v; want %v, %v", c.name, got, err, c.unified, c.kind)
		}
		s.Close()
	}
}

// TestBootcsUnifiedImages: bootc's entries are listed and kept, in another order
// too, also with the other key.
func TestBootcsUnifiedImages(t *testing.T) {
	w := newWorld(t)
	a, b := w.unified(osTree("a"), "rw"), w.unified(osTree("b"), "rw")
	for i, d := range []string{a, b} {
		w.bootcState(d, "example.com/os", "")
		w.write("boot/EFI/Linux/bootc/bootc_composefs-"+d+".efi", w.read(repoDir+"/"+d+".efi"))
		w.write("boot/loader/entries/bootc_x-1-"+string("10"[i])+".conf",
			"title X\nversion 1\nuki /EFI/Linux/bootc/bootc_composefs-"+d+".efi\nsort-key bootc-x-"+string("01"[i])+"\n")
	}
	s := w.open()
	list := s.Deployments()
	if len(list) != 2 || list[0].Digest != a || list[0].Type != TypeUKI || list[0].Kargs().String() != "rw" {
		t.Fatalf("list = %+v", list)
	}
	must(t, s.Write(context.Background(), s.WithDefault(list[1])))
	golden(t, "uki.entries", w.entries(entriesDir), map[string]string{a: "DIGEST", b: "DIGEST2"})
}
