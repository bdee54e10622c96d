package imageroot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

var newKey = sync.OnceValues(func() ([2][]byte, error) {
	key, certificate, err := lab.SigningKey("kedge test")
	return [2][]byte{key, certificate}, err
})

// signingKey puts a key and its certificate beside the sysroot.
func (w *world) signingKey() {
	w.t.Helper()
	pair, err := newKey()
	must(w.t, err)
	for i, name := range []string{"uki.key", "uki.crt"} {
		must(w.t, os.WriteFile(filepath.Join(filepath.Dir(w.dir), name), pair[i], 0o600))
	}
}

// signer signs with the key in a directory.
func signer(dir string) func() (uki.Signer, error) {
	return func() (uki.Signer, error) {
		key, err := os.ReadFile(filepath.Join(dir, "uki.key"))
		if err != nil {
			return nil, err
		}
		certificate, err := os.ReadFile(filepath.Join(dir, "uki.crt"))
		if err != nil {
			return nil, err
		}
		return (&uki.Config{}).NewSigner(key, certificate)
	}
}

// withKargs asks for an image, or nil for the default's, with these arguments.
func (w *world) withKargs(s *Sysroot, args string) DeployRequest {
	r := request(s, s.MergeFor().Digest)
	r.Kargs, r.ExactKargs, r.Sign = karg.Parse(args), true, signer(filepath.Dir(w.dir))
	return r
}

// alone is a tree whose kernel is in its unified kernel image.
func alone(v string) files {
	return version(v).without("usr/lib/modules/6.1.0/vmlinuz", "usr/lib/modules/6.1.0/initramfs.img")
}

// TestMadeHere is the life of a host with a key: its kernel arguments change, which
// an update carries along, and go away again.
func TestMadeHere(t *testing.T) {
	for name, open := range map[string]func(*world) *Sysroot{"loader": (*world).onESP, "boot directory": (*world).open} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.signingKey()
			s := open(w)
			one, two := w.unified(alone("1"), "root=UUID=1 rw quiet"), w.unified(alone("2"), "root=UUID=1 rw splash")
			original := w.deploy(s, request(s, one))
			check := func(digest, args string, deployments int) *Deployment {
				t.Helper()
				d := s.Deployments()[0]
				if d.Digest != digest || d.Type != TypeUKI || d.Kargs().String() != args || len(s.Deployments()) != deployments || len(s.Problems()) > 0 {
					t.Errorf("%d deployments, the default %+v with %q, problems %v", len(s.Deployments()), d, d.Kargs(), s.Problems())
				}
				if got := w.boots(s); !strings.Contains(got, "composefs="+digest+" "+args) || !strings.Contains(got, "kernel of "+one) && !strings.Contains(got, "kernel of "+two) {
					t.Errorf("the default starts %.300q", got)
				}
				must(t, s.CheckKernel(t.Context(), d))
				return d
			}
			w.deploy(s, w.withKargs(s, "root=UUID=1 rw debug"))
			mine := check(one, "root=UUID=1 rw debug", 2)
			if mine.localUKI() == "" || mine.BootDigest() != original.BootDigest() || !mine.SharesState {
				t.Errorf("it starts %s, of boot digest %s, the image's %s", mine.KernelFile(), mine.BootDigest(), original.BootDigest())
			}
			if image, err := s.ImageKargs(t.Context(), mine); err != nil || image.String() != "root=UUID=1 rw quiet" {
				t.Errorf("its image brings %q, %v", image, err)
			}
			// The same again is the same, and needs no key.
			r := w.withKargs(s, "root=UUID=1 rw debug")
			r.Sign = nil
			w.deploy(s, r)
			if again := check(one, "root=UUID=1 rw debug", 2); again.KernelFile() != mine.KernelFile() {
				t.Errorf("deployed again it starts %s", again.KernelFile())
			}
			// There and back by the menu.
			must(t, s.Write(t.Context(), s.WithDefault(s.Deployments()[1])))
			check(one, "root=UUID=1 rw quiet", 2)
			must(t, s.Write(t.Context(), s.WithDefault(s.Deployments()[1])))
			check(one, "root=UUID=1 rw debug", 2)
			// An update: quiet stays away, splash comes.
			r = request(s, two)
			r.Sign = signer(filepath.Dir(w.dir))
			w.deploy(s, r)
			check(two, "root=UUID=1 rw debug splash", 3)
			if n := len(w.names(localCopies)); n != 2 {
				t.Errorf("%d copies of two that were made", n)
			}
			// What the image has needs none that was made.
			w.deploy(s, w.withKargs(s, "root=UUID=1 rw splash"))
			if d := check(two, "root=UUID=1 rw splash", 4); d.localUKI() != "" {
				t.Errorf("it starts %s", d.KernelFile())
			}
			must(t, s.Write(t.Context(), s.Deployments()[:1]))
			must(t, s.Cleanup(t.Context()))
			w.wantNames(localCopies)
			if left, err := os.ReadDir(filepath.Join(s.boot.Name(), localDir)); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			check(two, "root=UUID=1 rw splash", 1)
		})
	}
}

// TestMadeHereFor changes the files of an image: packages came, and maybe a kernel
// with them.
func TestMadeHereFor(t *testing.T) {
	w := newWorld(t)
	w.signingKey()
	s := w.onESP()
	base := w.unified(version("1"), "root=UUID=1 rw")
	w.deploy(s, request(s, base))
	derive := func(f files) DeployRequest {
		digest := w.image(f)
		w.write(filepath.Join(repoDir, digest+".efi"), w.read(filepath.Join(repoDir, base+".efi")))
		r := request(s, digest)
		r.Derived = true
		return r
	}
	r := derive(version("1").with(files{"usr/bin/more": "more"}))
	_, err := s.Deploy(t.Context(), r)
	wantKind(t, err, fault.Conflict, "packages and another initramfs cannot come in")
	if !strings.Contains(fault.HintOf(err), "/etc/kedge/uki.toml") {
		t.Errorf("the hint is %q", fault.HintOf(err))
	}
	broken := errors.New("the key is gone")
	r.Sign = func() (uki.Signer, error) { return nil, broken }
	if _, err = s.Deploy(t.Context(), r); !errors.Is(err, broken) {
		t.Errorf("with a key that cannot be read: %v", err)
	}
	for _, c := range []struct {
		tree  files
		words []string
	}{
		{version("1").with(files{"usr/bin/more": "more"}), []string{"kernel of " + base, "initrd"}},
		{version("1").with(files{"usr/lib/modules/6.1.0/initramfs.img": "regenerated"}), []string{"kernel of " + base, "regenerated"}},
		{version("2"), []string{"kernel 2", "initramfs of kernel 2"}},
	} {
		r := derive(c.tree)
		r.Sign = signer(filepath.Dir(w.dir))
		d := w.deploy(s, r)
		text := w.boots(s)
		for _, words := range append(c.words, "composefs="+d.Digest+" root=UUID=1 rw") {
			if !strings.Contains(text, words) {
				t.Errorf("the default has no %q", words)
			}
		}
		if d.Kargs().String() != "root=UUID=1 rw" || s.CheckKernel(t.Context(), d) != nil {
			t.Errorf("deployed %+v with %q", d, d.Kargs())
		}
	}
	// And then other arguments.
	r = w.withKargs(s, "rw debug")
	r.Derived = true
	if d := w.deploy(s, r); d.Kargs().String() != "rw debug" || !strings.Contains(w.boots(s), "kernel 2") {
		t.Errorf("deployed %+v with %q", d, d.Kargs())
	}
}

// TestMadeHereFromSeparate: what the machine said to a separate kernel it says to a
// unified kernel image, and comes before what that one says.
func TestMadeHereFromSeparate(t *testing.T) {
	w := newWorld(t)
	w.signingKey()
	s := w.onESP()
	w.deploy(s, request(s, w.image(version("1").with(files{"usr/lib/bootc/kargs.d/10.toml": `kargs = ["quiet"]`}))))
	r := request(s, w.unified(version("2"), "root=LABEL=root rw splash"))
	r.Sign = signer(filepath.Dir(w.dir))
	if d := w.deploy(s, r); d.Type != TypeUKI || d.Kargs().String() != "root=UUID=1 rw splash" {
		t.Errorf("deployed %+v with %q", d, d.Kargs())
	}
	// Back: all of them are the machine's.
	if d := w.deploy(s, request(s, w.image(version("3")))); d.Type != TypeBLS || d.Kargs().String() != "root=UUID=1 rw splash" {
		t.Errorf("deployed %+v with %q", d, d.Kargs())
	}
}

// TestMadeHereStaged is a booted host; its key is gone when it shuts down.
func TestMadeHereStaged(t *testing.T) {
	w := newWorld(t)
	w.signingKey()
	s := w.onESP()
	digest := w.image(alone("1"))
	w.write(filepath.Join(repoDir, digest+".efi"), string(loadertest.PE(".osrel", "ID=test\n", ".cmdline", "composefs="+digest+" root=UUID=1 rw",
		".pcrsig", "{}", ".linux", "kernel of "+digest, ".initrd", "initrd")))
	a := w.deploy(s, request(s, digest))
	s.Close()
	w.boot(a)
	s = w.onESP()
	d, err := s.Stage(t.Context(), StageRequest{DeployRequest: w.withKargs(s, "rw debug")})
	must(t, err)
	if !d.Staged || d.localUKI() == "" || d.Kargs().String() != "rw debug" || !s.DroppedPCRs() {
		t.Fatalf("staged is %+v, problems %v", d, s.Problems())
	}
	must(t, os.Remove(filepath.Join(filepath.Dir(w.dir), "uki.key")))
	must(t, s.Cleanup(t.Context()))
	if d = s.Staged(); d == nil || s.CheckKernel(t.Context(), d) != nil || len(w.names(localCopies)) != 1 {
		t.Fatal("the clean-up took what is staged")
	}
	if _, err := s.Finalize(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := s.Deployments()[0]
	if b.KernelFile() != d.KernelFile() || !strings.Contains(w.boots(s), "rw debug") {
		t.Errorf("after the shutdown %s boots", b.KernelFile())
	}
	w.boot(b)
	s.Close()
	s = w.onESP()
	if booted := s.Booted(); booted == nil || booted.localUKI() == "" || len(s.Deployments()) != 2 {
		t.Fatalf("booted is %+v of %d", booted, len(s.Deployments()))
	}
	// What is on the partition is checked, and comes back from the copy.
	file := filepath.Join(s.boot.Name(), b.KernelFile())
	data, err := os.ReadFile(file)
	must(t, err)
	data[len(data)-1] ^= 1
	must(t, os.WriteFile(file, data, 0o644))
	wantKind(t, s.CheckKernel(t.Context(), s.Booted()), fault.Corrupt, "is not what was made on this host")
	must(t, os.Remove(file))
	must(t, s.Load())
	must(t, s.Write(t.Context(), s.Deployments()))
	must(t, s.CheckKernel(t.Context(), s.Booted()))
	// Without the copy the rest stands.
	must(t, s.root.RemoveAll(localCopies))
	must(t, s.Write(t.Context(), s.WithDefault(s.Deployments()[1])))
	if d := s.Deployments()[0]; d.localUKI() != "" || !strings.Contains(w.boots(s), " rw") {
		t.Errorf("after the rollback %s boots", d.KernelFile())
	}
}
