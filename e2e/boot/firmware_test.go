package boot

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/host"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// nightlyOnly leaves a long story to make nightly.
func nightlyOnly(t *testing.T, long string) {
	t.Helper()
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip(long + "; KEDGE_NIGHTLY=1")
	}
}

// thereAndBack moves a booted host of the image one to ref, which is two, and back
// by hand; check looks at each.
func (g *guest) thereAndBack(m *lab.Machine, ref string, check func(g *guest, marker string)) *guest {
	g.t.Helper()
	g.kedge("switch " + ref)
	g = g.reboot(m)
	check(g, "two")
	g.kedge("rollback")
	g = g.reboot(m)
	check(g, "one")
	return g
}

// checkLoaded looks at a host that its own boot loader has started from the image
// of that name; says is what kedge tells of the loader.
func (g *guest) checkLoaded(marker, backend string, says ...string) {
	g.t.Helper()
	g.want("the image is booted", "cat /usr/share/marker", marker)
	g.want("its kernel argument is there", "grep -o 'lab.image=[a-z]*' /proc/cmdline", "lab.image="+marker)
	g.want("no unit of kedge failed", "systemctl list-units --failed --no-legend 'kedge*'", "")
	out := g.sh("kedge status --json")
	for _, want := range says {
		if !strings.Contains(out, want) {
			g.t.Errorf("kedge status does not say %s:\n%s", want, out)
		}
	}
	if backend == "ostree" {
		g.checkHealth()
	} else {
		g.want("the root is an image", "findmnt --noheadings --output SOURCE / | cut -d: -f1", "composefs")
	}
}

// newFirmwareDisk makes a partitioned disk, whose root is of the kind fs; with
// extended it has an extended boot loader partition.
func (w *world) newFirmwareDisk(t *testing.T, fs string, extended bool) *lab.Disk {
	t.Helper()
	lab.Need(t, "sfdisk", "mkfs.vfat", "fsck.fat", "mcopy")
	path := filepath.Join(w.Dir, strings.ReplaceAll(t.Name(), "/", "-")+".img")
	disk, err := lab.NewFirmwareDisk(t.Context(), path, fs, 6<<30, extended)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return disk
}

// firmwareDisk makes such a disk, and has fn install a host on it.
func (w *world) firmwareDisk(t *testing.T, fs string, fn func(host.Config) error) *lab.Disk {
	t.Helper()
	disk := w.newFirmwareDisk(t, fs, false)
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := disk.WithFirmware(t.Context(), func(root string) error {
		return fn(host.Config{
			Sysroot: root, AnyESP: true, Images: ocibridge.Options{RegistriesConf: w.Conf, PolicyFile: policy},
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
	}); err != nil {
		t.Fatal(err)
	}
	return disk
}

// installFirmware installs ref as a host that the boot loader of that name starts.
func (w *world) installFirmware(t *testing.T, cfg host.Config, bootloader, ref, backend string, kargs ...string) error {
	_, err := host.Install(t.Context(), cfg, host.InstallOptions{
		Image: w.Registry.Repo(ref), TargetImage: w.Registry.GuestRepo(ref), Backend: backend, Bootloader: bootloader,
		Kargs: firmwareKargs(kargs),
		// Sealing is what the kernel of the guest could do; another test does it.
		AllowMissingVerity: true,
	})
	return err
}

// firmwareKargs are the kernel arguments of a host that its firmware boots: the lab
// cannot add its own to those of the entries.
func firmwareKargs(more []string) []string {
	return slices.Concat(strings.Fields(lab.EmulatorOptions+",apparmor"), rootArgs, more)
}

// checkESP looks at the partition of a machine that is down, whose power may have
// been cut before: a sound file system, a menu of so many lines, and what each
// names.
func checkESP(t *testing.T, disk *lab.Disk, lines int, powerCut bool) {
	t.Helper()
	dir, err := disk.ESP(t.Context(), t.TempDir(), powerCut)
	if err != nil {
		t.Fatalf("the EFI system partition: %v", err)
	}
	entries, err := lab.Entries(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != lines {
		t.Errorf("the menu has %d lines, want %d: %+v", len(entries), lines, entries)
	}
	for _, e := range entries {
		for _, name := range []string{e.Linux, e.Initrd, e.EFI} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Errorf("entry %s: %v", e.File, err)
			}
		}
	}
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", "loader/loader.conf"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
