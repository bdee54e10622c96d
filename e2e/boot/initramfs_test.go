package boot

import (
	"fmt"
	"slices"
	"testing"
)

// TestInitramfs: a host boots with an initramfs that was made for it, by the
// image's dracut and with the modules that the image's own has, and goes back to
// the image's own.
func TestInitramfs(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "two boots, five minutes")
	w := theWorld(t)
	w.buildHostImage(t, "os:initramfs", "one")
	disk := w.newDisk(t, "ext4")
	w.install(t, disk, "os:initramfs")
	args := []string{"--include", "/usr/lib/os-release", "/etc/made-here"}
	// Before the boot: the machine would take a quarter of an hour for it.
	err := disk.With(t.Context(), func(root string) error {
		line := []string{"--sysroot", root, "initramfs", "--regenerate"}
		for _, a := range args {
			line = append(line, "--arg="+a)
		}
		out, err := w.Run(t.Context(), line...)
		t.Logf("kedge initramfs:\n%s", out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m := w.machine(t, disk)
	g := start(t, m)
	g.checkHealth()
	const inRoot = "/usr/lib/modules/$(uname -r)/initramfs.img"
	const isBooted = "cmp /boot$(sed -n 's,^initrd *\\(/boot\\)*,,p' /boot/loader/entries/%s) " + inRoot
	g.sh(fmt.Sprintf(isBooted, g.Entry.File))
	g.want("what was asked for is in it", "lsinitrd "+inRoot+" | grep -c ' etc/made-here$'", "1")
	g.want("so is what mounts the root", "lsinitrd --mod "+inRoot+" | grep -cx ostree", "1")
	e := g.host().Booted
	if e.Kedge.Initramfs == nil || !slices.Equal(e.Kedge.Initramfs.Args, args) || !e.Incompatible {
		t.Errorf("status of a host with an initramfs of its own = %+v", e.Kedge)
	}
	base := e.Kedge.BaseImage
	g.want("an upgrade to the same changes nothing", "kedge upgrade --unchanged-exit-77 >/dev/null; echo $?", "77")
	g.kedge("initramfs --stock")

	g = g.reboot(m)
	g.checkHealth()
	g.sh(fmt.Sprintf(isBooted, g.Entry.File))
	g.want("it is the image's own", "lsinitrd "+inRoot+" | grep -c ' etc/made-here$' || true", "0")
	if e := g.host().Booted; e.Incompatible || e.Kedge.Initramfs != nil || base == nil || e.Image == nil || e.Image.ImageDigest != base.ImageDigest {
		t.Errorf("status of the plain image = %+v", e)
	}
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, w, disk)
}
