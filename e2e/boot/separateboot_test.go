package boot

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestSeparateBoot keeps /boot on a file system of its own, mounted read-only:
// kernels and entries have to go there and nowhere else, and a switch may not be
// one rename in one file system.
func TestSeparateBoot(t *testing.T) {
	w := theWorld(t)
	w.buildHostImage(t, "os:boot", "one")
	w.build(t, "os:boot", "FROM "+w.Registry.Repo("os:boot")+"\nRUN echo 'LABEL=boot /boot ext4 ro 0 2' >/etc/fstab\n")
	// Zeros after an initramfs change its checksum and nothing else: the second
	// image's kernel has to be brought to /boot too.
	w.build(t, "os:boot2", "FROM "+w.Registry.Repo("os:boot")+`
RUN echo two >/usr/share/marker && head -c 4096 /dev/zero | tee -a /usr/lib/modules/*/initramfs.img >/dev/null
`)
	disk := w.newDisk(t, "ext4")
	w.addBoot(t, disk)
	w.install(t, disk, "os:boot")
	if k := kernels(t, disk); len(k) != 1 {
		t.Fatalf("after the installation /boot has the kernels %v, want one", k)
	}

	m := w.machine(t, disk)
	g := start(t, m)
	g.checkHealth()
	g.checkBootMount()
	g.kedge("switch " + w.Registry.GuestRepo("os:boot2"))
	g.checkBootMount()

	g = g.reboot(m)
	g.checkHealth()
	g.checkBootMount()
	g.want("the new root is booted", "cat /usr/share/marker", "two")
	g.kedge("rollback")
	g.want("libostree agrees", "ostree admin status >/dev/null && ls /boot/loader/entries | wc -l", "2")
	if err := g.Shutdown("poweroff", 3*time.Minute); err != nil {
		t.Fatal(err)
	}
	if k := kernels(t, disk); len(k) != 2 {
		t.Errorf("after the switch /boot has the kernels %v, want both", k)
	}
	checkDisk(t, w, disk)
}

// checkBootMount looks for a /boot that the host mounts itself, read-only, and
// for nothing of it in the directory underneath.
func (g *guest) checkBootMount() {
	g.t.Helper()
	g.want("/boot is a file system of its own", "findmnt -n -o SOURCE,FSTYPE /boot | tr -s ' '", "/dev/vdb ext4")
	g.want("/boot is read-only", "findmnt -n -o OPTIONS /boot | grep -o '^r[ow]'", "ro")
	g.want("the directory underneath is empty", "ls -A /sysroot/boot | wc -l", "0")
}

// kernels returns the kernel directories on the disk's /boot.
func kernels(t *testing.T, disk *lab.Disk) (found []string) {
	t.Helper()
	err := disk.With(t.Context(), func(root string) (err error) {
		found, err = filepath.Glob(filepath.Join(root, "boot/ostree/*/vmlinuz*"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
