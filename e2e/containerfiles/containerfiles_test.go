// Package containerfiles builds the Containerfiles that people copy from, with
// Debian's podman, and installs hosts from what came out.
package containerfiles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.podman.io/image/v5/signature"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/internal/lab"
)

// world is one host that is moved from one built image to the next: layers that
// it has are not read again.
type world struct {
	*lab.World
	sysroot string
}

func theWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("builds images of the size of an operating system; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "podman", "ostree", "mmdebstrap", "go")
	w, err := lab.NewWorld(t.Context(), lab.BaseImage(t), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{w, filepath.Join(w.Dir, "host")}
}

// build copies Containerfiles/NAME, lets change prepare the copy, and builds it
// on base as os:NAME.
func build(t *testing.T, w *world, name, base string, change func(dir string)) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(lab.SourceDir(), "Containerfiles", name))); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(dir)
	}
	if err := w.Podman.Build(t.Context(), dir, w.Registry.Repo("os:"+name), "--build-arg", "BASE="+base); err != nil {
		t.Fatal(err)
	}
}

// boot makes the host take os:NAME at its next boot and returns the directory of
// that root and the boot entry's kernel arguments.
func boot(t *testing.T, w *world, name string) (root, kargs string) {
	t.Helper()
	args := []string{"--sysroot", w.sysroot, "switch", w.Registry.Repo("os:" + name)}
	if err := os.Mkdir(w.sysroot, 0o755); err == nil {
		args = []string{
			"install", "to-filesystem", "--image", w.Registry.Repo("os:" + name),
			"--karg", "root=LABEL=root", "--bootloader", "none", w.sysroot,
		}
	}
	if _, err := w.Run(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	d := offline.OSTreeDeployments(t, w.sysroot)
	if len(d) == 0 {
		t.Fatal("ostree sees no deployment")
	}
	offline.Run(t, "ostree", "fsck", "--quiet", "--repo="+w.sysroot+"/ostree/repo")
	e, err := lab.DefaultEntry(filepath.Join(w.sysroot, "boot"))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(w.sysroot, d[0].Dir()), e.Options
}

func wantFile(t *testing.T, root, name string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
		t.Errorf("the host lacks a file: %v", err)
	}
}

func wantKargs(t *testing.T, kargs string, want ...string) {
	t.Helper()
	for _, k := range want {
		if !strings.Contains(" "+kargs+" ", " "+k+" ") {
			t.Errorf("the boot entry has the kernel arguments %q, want %s among them", kargs, k)
		}
	}
}

func addKedge(t *testing.T, w *world) func(string) {
	return func(dir string) { offline.Run(t, "cp", w.Kedge, filepath.Join(dir, "kedge")) }
}

func TestContainerfiles(t *testing.T) {
	w := theWorld(t)
	t.Run("debian-derived", func(t *testing.T) { debianDerived(t, w) })
	t.Run("debian-base", func(t *testing.T) { debianBase(t, w) })
	t.Run("centos-bootc", func(t *testing.T) { centos(t, w) })
	t.Run("bluefin", func(t *testing.T) { bluefin(t, w) })
}

func debianDerived(t *testing.T, w *world) {
	build(t, w, "debian-derived", w.Registry.Repo("os:base"), addKedge(t, w))
	root, kargs := boot(t, w, "debian-derived")
	wantKargs(t, kargs, "root=LABEL=root", "console=tty0", "console=ttyS0")
	wantFile(t, root, "usr/lib/systemd/system/kedge-finalize-staged.service")
	wantFile(t, root, "etc/systemd/system/multi-user.target.wants/kedge-finalize-staged.service")
	wantFile(t, root, "etc/systemd/system/multi-user.target.wants/hello.service")
}

// debianBase builds the base from the packages of a Debian that boots no machine,
// and the derived image on it.
func debianBase(t *testing.T, w *world) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("installs Debian's packages twice, five minutes; KEDGE_NIGHTLY=1")
	}
	tarball := filepath.Join(t.TempDir(), "trixie.tar")
	offline.Run(t, "mmdebstrap", "--variant=minbase", "--quiet", "trixie", tarball)
	if _, err := w.Podman.Run(t.Context(), "import", "--quiet", tarball, "localhost/debian:trixie"); err != nil {
		t.Fatal(err)
	}
	build(t, w, "debian-base", "localhost/debian:trixie", nil)
	build(t, w, "debian-derived", w.Registry.Repo("os:debian-base"), addKedge(t, w))
	root, _ := boot(t, w, "debian-derived")
	wantFile(t, root, "usr/lib/ostree/prepare-root.conf")
	wantFile(t, root, "usr/lib/sysimage/dpkg/status")
	list := "lsinitrd /usr/lib/modules/*/initramfs.img"
	if out := offline.Run(t, "chroot", root, "sh", "-c", list); !strings.Contains(out, "ostree-prepare-root") {
		t.Error("nothing in the initramfs mounts an ostree deployment")
	}
}

// dnf is an instruction that needs a distribution of RPMs.
var dnf = regexp.MustCompile(`(?m)^RUN dnf(.*\\\n)*.*\n`)

// withoutDNF leaves out what needs packages that the lab does not have; the
// rest of the file is as it stands.
func withoutDNF(t *testing.T) func(string) {
	return func(dir string) {
		path := filepath.Join(dir, "Containerfile")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !dnf.Match(text) {
			t.Fatalf("%s installs no packages", path)
		}
		if err := os.WriteFile(path, dnf.ReplaceAll(text, nil), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func centos(t *testing.T, w *world) {
	build(t, w, "centos-bootc", w.Registry.Repo("os:base"), withoutDNF(t))
	root, _ := boot(t, w, "centos-bootc")
	wantFile(t, root, "etc/nginx/conf.d/site.conf")
	wantFile(t, root, "usr/lib/tmpfiles.d/site.conf")
}

func bluefin(t *testing.T, w *world) {
	build(t, w, "bluefin", w.Registry.Repo("os:base"), func(dir string) {
		withoutDNF(t)(dir)
		writeKey(t, filepath.Join(dir, "cosign.pub"))
	})
	root, kargs := boot(t, w, "bluefin")
	wantKargs(t, kargs, "quiet", "splash", "mitigations=auto")
	wantFile(t, root, "etc/systemd/system/multi-user.target.wants/first-login-apps.service")
	wantFile(t, root, "etc/pki/containers/you.pub")
	// What reads the policy on the host reads it here.
	policy, err := signature.NewPolicyFromFile(filepath.Join(root, "etc/containers/policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	if scope := policy.Transports["docker"]["ghcr.io/you"]; len(scope) != 1 {
		t.Errorf("the policy asks %d things of ghcr.io/you, want one signature", len(scope))
	}
}

// writeKey writes a public key of the kind that cosign makes.
func writeKey(t *testing.T, path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
