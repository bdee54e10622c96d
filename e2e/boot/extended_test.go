package boot

import (
	"os"
	"path/filepath"
	"testing"
)

// TestExtendedPartition: a disk with an extended boot loader partition, on which
// the host has kernels and entries. Installation finds it and the EFI system
// partition by their types; the running host mounts the one, and finds the other
// by what its boot loader says.
func TestExtendedPartition(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "two boots by the firmware, five minutes")
	w, layout := sealedWorld(t)
	w.buildHostImage(t, "os:extended-one", "one")
	w.build(t, "os:extended-two", "FROM "+w.Registry.Repo("os:extended-one")+changesOfTwo)
	disk := w.newFirmwareDisk(t, "ext4 -O verity", true)
	w.fromMedium(t, disk, layout, []string{"os:extended-one"},
		w.installSystemdBoot("/dev/vda3", "os:extended-one", "os:extended-one", "systemd.gpt_auto=0", "systemd.mount-extra=LABEL=XBOOTLDR:/boot:vfat:umask=0077")+
			"umount /target\n")

	m := w.machine(t, disk)
	m.Firmware, m.BootTimeout = true, scriptTimeout
	g := start(t, m)
	check := func(marker string) {
		t.Helper()
		g.awaitJudged("success")
		g.checkLoaded(marker, "composefs", `"name": "systemd-boot"`)
		g.checkSealed()
		g.want("the extended partition is mounted", "findmnt -no LABEL /boot", "XBOOTLDR")
		g.want("the EFI system partition is not", "findmnt -nS LABEL=ESP || echo no", "no")
	}
	check("one")
	g.kedge("switch " + w.Registry.GuestRepo("os:extended-two"))
	g = g.reboot(m)
	check("two")
	g.want("the entry is blessed", "systemctl is-active systemd-bless-boot.service", "active")
	g.want("none is counted", "ls /boot/loader/entries/*.conf | grep -vc +", "2")
	g.sh("kedge fsck")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	dir, err := disk.ESP(t.Context(), t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "EFI/BOOT/BOOTX64.EFI")); err != nil {
		t.Error(err)
	}
	if found, err := filepath.Glob(filepath.Join(dir, "loader/entries/*.conf")); err != nil || len(found) != 0 {
		t.Errorf("the EFI system partition has the entries %q, want none: %v", found, err)
	}
}
