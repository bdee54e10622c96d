package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestGRUBOSTree and TestGRUBComposefs are the story of a host that its firmware
// boots with Debian's shim and GRUB, as the image ships them, and the menu that
// kedge generates for it; one of them with Secure Boot on. The host comes back from a
// root that dies and from one whose check fails, is switched, given a kernel argument
// and a pin, and rolled back by hand; a root that is good is not counted any more.
func TestGRUBOSTree(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "seven boots by the firmware, ten minutes")
	theWorld(t).grubStory(t, "ostree", "ext4", true)
}

// TestGRUBComposefs is that of the composefs backend.
func TestGRUBComposefs(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "seven boots by the firmware, ten minutes")
	w, _ := sealedWorld(t)
	w.grubStory(t, "composefs", "ext4 -O verity", false)
}

func (w *world) grubStory(t *testing.T, backend, fs string, secureBoot bool) {
	w.buildHostImage(t, "os:grub-host", "one")
	w.build(t, "os:grub-host", "FROM "+w.Registry.Repo("os:grub-host")+addChecks)
	w.buildGRUB(t, "os:grub-one", "os:grub-host")
	w.build(t, "os:grub-two", "FROM "+w.Registry.Repo("os:grub-one")+`
RUN echo two >/usr/share/marker && sed -i s/=one/=two/ /usr/lib/bootc/kargs.d/10-lab.toml
`)
	for _, bad := range badImages {
		w.derive(t, "os:grub-", bad.name, "one", bad.change)
	}
	disk := w.firmwareDisk(t, fs, func(cfg host.Config) error {
		return w.installFirmware(t, cfg, "grub", "os:grub-one", backend)
	})
	checkGRUB(t, disk)

	m := w.machine(t, disk)
	m.Firmware, m.SecureBoot, m.BootTimeout = true, secureBoot, scriptTimeout
	secure := `"secureBoot": "disabled"`
	if secureBoot {
		secure = `"secureBoot": "enabled"`
	}
	g := start(t, m)
	check := func(g *guest, marker string) {
		t.Helper()
		g.checkLoaded(marker, backend, `"name": "grub"`, `"state": "supported"`, secure)
		g.want("GRUB loaded the kernel", "grep -o '^BOOT_IMAGE=' /proc/cmdline", "BOOT_IMAGE=")
		g.want("the boot is marked as good", "systemctl is-active kedge-bless-boot.service", "active")
		g.want("what runs is not counted", "grep -h -A 1 '^# kedge: [0-9]' /boot/grub/kedge.cfg /sysroot/boot/grub/kedge.cfg 2>/dev/null | grep -c kedge-0 || true", "0")
	}
	check(g, "one")
	comesBack := func(name, why string, boot func(*testing.T)) {
		t.Helper()
		ref := w.Registry.GuestRepo("os:grub-" + name)
		g.kedge("switch " + ref)
		if err := g.Shutdown("reboot", scriptTimeout); err != nil {
			t.Fatal(err)
		}
		boot(t)
		g = start(t, m)
		check(g, "one")
		g.wantIn("kedge status", "Rolled back from "+name+" ", "by the boot loader: "+why)
		g.wantExit("kedge switch "+ref, 12)
	}
	s := &fallback{machine: m}
	comesBack("panics", "tries exhausted: none of 1 boots was found good", s.panics)
	comesBack("sick", "check failed: "+markerCheck, s.givesUp)

	g.kedge("switch " + w.Registry.GuestRepo("os:grub-two"))
	g.kedge("kargs --append lab.more=1")
	g = g.reboot(m)
	check(g, "two")
	g.want("the user's kernel argument is there", "grep -o lab.more=1 /proc/cmdline", "lab.more=1")
	g.kedge("pin 0")
	g.kedge("rollback")
	g = g.reboot(m)
	check(g, "one")
	g.want("the user's kernel argument is gone", "grep -c lab.more=1 /proc/cmdline || true", "0")
	if h := g.host(); h.Rollback == nil || !h.Rollback.Pinned {
		t.Errorf("after a rollback from what was pinned: %+v", h.Rollback)
	}
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkGRUB(t, disk)
}

// buildGRUB builds ref from base with what Debian's packages shim-signed and
// grub-efi-amd64-signed hold.
func (w *world) buildGRUB(t *testing.T, ref, base string) {
	t.Helper()
	w.buildWith(t, ref, base, "grub.sh", "/usr/lib/",
		"shim/shimx64.efi.signed", "shim/mmx64.efi.signed", "grub/x86_64-efi-signed/grubx64.efi.signed")
}

// buildWith builds ref from base with files that a recipe of the lab makes, below the
// same directory in both.
func (w *world) buildWith(t *testing.T, ref, base, recipe, below string, names ...string) {
	t.Helper()
	dir, err := lab.Make(t.Context(), recipe)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	containerfile := "FROM " + w.Registry.Repo(base) + "\n"
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, below, name))
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(name)] = string(text)
		containerfile += "COPY " + filepath.Base(name) + " " + below + name + "\n"
	}
	if err := w.Build(t.Context(), ref, containerfile, files); err != nil {
		t.Fatal(err)
	}
}

// checkGRUB looks at the EFI system partition of a machine that is down.
func checkGRUB(t *testing.T, disk *lab.Disk) {
	t.Helper()
	dir, err := disk.ESP(t.Context(), t.TempDir(), false)
	if err != nil {
		t.Fatalf("the EFI system partition: %v", err)
	}
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/debian/shimx64.efi", "EFI/debian/grubx64.efi"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"EFI/BOOT/grub.cfg", "EFI/debian/grub.cfg"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(text), "search --no-floppy --fs-uuid") {
			t.Errorf("%s is %q, %v", name, text, err)
		}
	}
}
