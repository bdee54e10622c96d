package boot

import (
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

// TestGRUBEntriesOSTree and TestGRUBEntriesComposefs are the story of a host whose
// GRUB reads boot entries, as Fedora's does: kedge generates no menu for it, and
// what is the default is what GRUB sorts first.
func TestGRUBEntriesOSTree(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "three boots by the firmware, six minutes")
	theWorld(t).grubEntriesStory(t, "ostree", "ext4")
}

// TestGRUBEntriesComposefs is that of the composefs backend.
func TestGRUBEntriesComposefs(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "three boots by the firmware, six minutes")
	w, _ := sealedWorld(t)
	w.grubEntriesStory(t, "composefs", "ext4 -O verity")
}

func (w *world) grubEntriesStory(t *testing.T, backend, fs string) {
	w.buildHostImage(t, "os:entries-host", "one")
	w.buildWith(t, "os:entries-one", "os:entries-host", "grub-entries.sh", "/usr/lib/bootupd/updates/", "EFI/BOOT/BOOTX64.EFI", "EFI/fedora/grubx64.efi")
	w.build(t, "os:entries-one", "FROM "+w.Registry.Repo("os:entries-one")+"\nRUN mkdir /usr/lib/bootupd/grub2-static\n")
	// GRUB sorts by the names of entries, and a version in them must not decide.
	w.build(t, "os:entries-two", "FROM "+w.Registry.Repo("os:entries-one")+`
RUN echo two >/usr/share/marker && sed -i s/=one/=two/ /usr/lib/bootc/kargs.d/10-lab.toml && \
    sed -i 's/^VERSION_ID=.*/VERSION_ID="3"/' /usr/lib/os-release
`)
	disk := w.firmwareDisk(t, fs, func(cfg host.Config) error {
		return w.installFirmware(t, cfg, "grub", "os:entries-one", backend)
	})

	m := w.machine(t, disk)
	m.Firmware, m.BootTimeout = true, scriptTimeout
	g := start(t, m)
	check := func(g *guest, marker string) {
		t.Helper()
		g.checkLoaded(marker, backend, `"name": "grub"`)
		g.want("GRUB loaded the kernel", "grep -o '^BOOT_IMAGE=' /proc/cmdline", "BOOT_IMAGE=")
		g.want("no menu is generated", "find /boot /sysroot/boot -name kedge.cfg | wc -l", "0")
		if r := g.health().AutoRollback; r.State != v1.RollbackUnsupported || r.Reason == "" {
			t.Errorf("autoRollback = %+v, want unsupported and why", r)
		}
	}
	check(g, "one")
	g = g.thereAndBack(m, w.Registry.GuestRepo("os:entries-two"), check)
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
}
