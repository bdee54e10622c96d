package boot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestSecureBoot is the story of a host whose firmware starts nothing that is not
// signed, and which signs its own unified kernel images: one certificate is that of
// whoever made the image, and signed systemd-boot and the image's, the other is the
// host's.
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "three boots by the firmware, ten minutes")
	w, _ := sealedWorld(t)
	lab.Need(t, "bwrap", "sbsign")
	key, certificate, err := lab.SigningKey("the image's")
	if err != nil {
		t.Fatal(err)
	}
	sign := func(file string) {
		t.Helper()
		if err := lab.SignProgram(t.Context(), file, key, certificate); err != nil {
			t.Fatal(err)
		}
	}
	w.buildHostImage(t, "os:sb-plain", "one")
	w.signBootLoader(t, "os:sb-plain", "os:sb-tree", sign)
	file := w.makeUKI(t, "os:sb-tree", "lab.image=one")
	sign(file)
	w.withUKI(t, "os:sb-tree", "os:sb-one", file)

	own, ownCertificate, err := lab.SigningKey("the host's")
	if err != nil {
		t.Fatal(err)
	}
	disk := w.firmwareDisk(t, "ext4 -O verity", func(cfg host.Config) error {
		err := w.installFirmware(t, cfg, "systemd-boot", "os:sb-one", "composefs")
		return errors.Join(err, configureKey(cfg.Sysroot, own, ownCertificate))
	})
	checkESP(t, disk, 1, false)

	m := w.machine(t, disk)
	m.Firmware, m.BootTimeout = true, scriptTimeout
	if err := m.Enroll(certificate, ownCertificate); err != nil {
		t.Fatal(err)
	}
	g := start(t, m)
	check := func(mine string, says ...string) {
		t.Helper()
		g.checkLoaded("one", "composefs", append(says, `"bootType": "Uki"`, `"secureBoot": "enabled"`)...)
		g.want("the kernel knows of Secure Boot", "grep -o '.integrity.' /sys/kernel/security/lockdown", "[integrity]")
		g.want("the argument of this host", "grep -c lab.mine=1 /proc/cmdline || true", mine)
		g.want("kedge finds nothing wrong", "kedge fsck >/dev/null && echo sound", "sound")
	}
	check("0")
	g.kedge("kargs --append lab.mine=1")
	g = g.reboot(m)
	check("1", `"signedHere": true`)
	g.kedge("rollback")
	g = g.reboot(m)
	check("0")
	g.kedge("cleanup --rollback")
	if err := g.Shutdown("poweroff", 3*time.Minute); err != nil {
		t.Fatal(err)
	}
	checkESP(t, disk, 1, false)
	dir, err := disk.ESP(t.Context(), t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "EFI/Linux/kedge")); err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
		t.Errorf("of the unified kernel images made on the host there are %v, %v", left, err)
	}
}

// signBootLoader builds ref: the image tree with its systemd-boot, which Debian has
// signed, signed by sign too.
func (w *world) signBootLoader(t *testing.T, tree, ref string, sign func(file string)) {
	t.Helper()
	const program = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed"
	id, err := w.Podman.Run(t.Context(), "create", w.Registry.Repo(tree))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "systemd-boot.efi")
	_, err = w.Podman.Run(t.Context(), "cp", id+":"+program, file)
	if _, rerr := w.Podman.Run(t.Context(), "rm", id); errors.Join(err, rerr) != nil {
		t.Fatal(err, rerr)
	}
	sign(file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	containerfile := "FROM " + w.Registry.Repo(tree) + "\nCOPY signed.efi " + program + "\n"
	if err := w.Build(t.Context(), ref, containerfile, map[string]string{"signed.efi": string(text)}); err != nil {
		t.Fatal(err)
	}
}

// configureKey gives the one deployment of a sysroot a key to sign with.
func configureKey(sysroot string, key, certificate []byte) error {
	etc, err := filepath.Glob(filepath.Join(sysroot, "state/deploy/*/etc"))
	if err != nil || len(etc) != 1 {
		return errors.Join(err, errors.New("the sysroot has not one deployment"))
	}
	dir := filepath.Join(etc[0], "kedge")
	err = os.MkdirAll(dir, 0o755)
	for name, text := range map[string][]byte{
		"uki.toml": []byte("key = \"/etc/kedge/uki.key\"\ncertificate = \"/etc/kedge/uki.crt\"\n"), "uki.key": key, "uki.crt": certificate,
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return err
}
