package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
)

// sealedWorld is a world whose base is for the composefs backend.
func sealedWorld(t *testing.T) (w *world, layout string) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "podman", "skopeo", "umoci", "mkfs.ext4", "debugfs", "cpio", "mmdebstrap", "go")
	layout = lab.ComposefsBackendImage(t)
	made, err := lab.NewWorld(t.Context(), layout, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := made.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{made}, layout
}

// backAndDamaged is what the story ends with on the composefs backend: a rollback
// by hand, and damage on the disk.
func (s *fallback) backAndDamaged(t *testing.T, h switched) {
	h.kedge("rollback")
	victim := h.sh("fsverity digest --compact --hash-alg=sha512 /usr/share/common-licenses/GPL-3")
	if err := h.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	// The disk loses a bit of an object and one of the other image. The menu's
	// second line is what was booted last.
	flip(t, s.disk, "/composefs/"+object(victim), 5000)
	flip(t, s.disk, "/composefs/"+object(h.two), 1_000_000)
	refused(t, s.machine, 1, "/composefs/images/"+h.two+" is damaged")

	h.guest = s.start(t, "one")
	if root := s.check(h.guest, "one"); root != h.one {
		t.Errorf("booted %s, want the image from before the switch: %s", root, h.one)
	}
	h.want("the user's kernel argument is gone", "grep -c lab.more=1 /proc/cmdline || true", "0")
	out := h.output("LC_ALL=C cat /usr/share/common-licenses/GPL-3 2>&1 >/dev/null")
	if !strings.Contains(out, "Input/output error") {
		t.Errorf("reading a damaged file gives %q, want an I/O error", out)
	}
	out = h.output("kedge fsck")
	t.Logf("kedge fsck:\n%s", out)
	for what, digest := range map[string]string{"object": victim, "image": h.two} {
		if !strings.Contains(out, object(digest)) {
			t.Errorf("kedge fsck does not name the damaged %s %s", what, digest)
		}
	}
	s.rolledBack(h)
}

// object returns where a repository keeps the object of a digest.
func object(digest string) string { return "objects/" + digest[:2] + "/" + digest[2:] }

// installSealed installs ref on a disk as its user would from a medium.
func (w *world) installSealed(t *testing.T, disk *lab.Disk, layout, ref string) {
	t.Helper()
	w.fromMedium(t, disk, layout, []string{ref}, w.installScript("/dev/vda", ref, ref, rootArgs)+"umount /target\n")
}

// installSystemdBoot is a script for fromMedium: it installs ref, which follows
// target, on the file system of a device of a disk with partitions, and
// systemd-boot on those that it finds by their types. /target stays mounted.
func (w *world) installSystemdBoot(device, ref, target string, kargs ...string) string {
	return w.installScript(device, ref, target, firmwareKargs(kargs), "--bootloader", "systemd-boot")
}

func (w *world) installScript(device, ref, target string, kargs []string, options ...string) string {
	_, tag, _ := strings.Cut(ref, ":")
	return `
mount ` + device + ` /target
kedge install to-filesystem --backend composefs --image oci:/source:` + tag + ` --target-image ` + w.Registry.GuestRepo(target) +
		" --karg '" + strings.Join(kargs, "' --karg '") + "' " + strings.Join(options, " ") + " /target >>/run/log 2>&1\n"
}

// fromMedium runs a script on the machine itself, whose kernel seals files: with
// the disk as /dev/vda, and images in the OCI layout /source, each by its tag. What
// the script writes to /run/log is shown.
func (w *world) fromMedium(t *testing.T, disk *lab.Disk, layout string, refs []string, script string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "source.img")
	for _, ref := range refs {
		_, tag, _ := strings.Cut(ref, ":")
		if _, err := lab.Command(t.Context(), "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--preserve-digests",
			"docker://"+w.Registry.Repo(ref), "oci:"+filepath.Join(dir, "source")+":"+tag); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := lab.Command(t.Context(), "mkfs.ext4", "-q", "-d", filepath.Join(dir, "source"), source, "1500M"); err != nil {
		t.Fatal(err)
	}
	kernel, initramfs, err := lab.BootFiles(layout)
	if err != nil {
		t.Fatal(err)
	}
	medium := lab.Medium{
		Dir: dir, Kernel: kernel, Initramfs: initramfs,
		Files: map[string]string{"usr/bin/kedge": w.Kedge},
		Disks: []string{disk.Path, source},
	}
	began := time.Now()
	out, err := medium.Run(t.Context(), `
: >/run/log
trap 'cat /run/log' EXIT
mkdir -p /target /source /etc/containers
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
mount -o ro /dev/vdb /source
`+script, scriptTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("from a medium in %.0f s:\n%s", time.Since(began).Seconds(), out)
}

// checkSealed looks for what must hold on every booted host of this backend, and
// returns the digest of the booted image.
func (g *guest) checkSealed() string {
	g.t.Helper()
	digest := g.sh("sed -n 's/.*composefs=\\([0-9a-f]*\\).*/\\1/p' /proc/cmdline")
	if len(digest) != 128 {
		g.t.Fatalf("the kernel argument names %q, want a digest without a question mark: %s", digest, g.sh("cat /proc/cmdline"))
	}
	g.want("the root is the image that the kernel argument names", "findmnt --noheadings --output SOURCE /", "composefs:"+digest)
	g.want("the kernel checks every file of the root", "findmnt --noheadings --output OPTIONS / | grep -o 'verity=[a-z]*'", "verity=require")
	g.want("the image is sealed", "fsverity measure /sysroot/composefs/images/"+digest+" | cut -d' ' -f1", "sha512:"+digest)
	g.want("/etc is the deployment's", "stat -c %i /etc", g.sh("stat -c %i /sysroot/state/deploy/"+digest+"/etc"))
	g.want("/var is shared", "stat -c %i /var", g.sh("stat -c %i /sysroot/state/os/default/var"))
	g.want("/usr is read-only", "touch /usr/.e2e 2>/dev/null || echo yes", "yes")
	g.want("/sysroot is read-only", "touch /sysroot/.e2e 2>/dev/null || echo yes", "yes")
	g.want("no unit of kedge failed", "systemctl list-units --failed --no-legend 'kedge*'", "")
	if out := g.sh("kedge status --json"); !strings.Contains(out, digest) {
		g.t.Errorf("kedge status does not name the booted image %s:\n%s", digest, out)
	}
	return digest
}

// checkRefusals runs kedge-initramfs on the booted host's disk, in a mount
// namespace of its own, with images that are not what the kernel argument names.
func (g *guest) checkRefusals(digest string) {
	g.t.Helper()
	g.sh(`unshare --mount --propagation private bash -exc '
		digest=` + digest + ` other=$(printf "a%.0s" {1..128})
		mkdir /run/disk && mount --bind /sysroot /run/disk && mount -o remount,rw,bind /run/disk
		cd /run/disk/composefs/images
		says() {
			if out=$(/usr/lib/kedge/kedge-initramfs --sysroot /run/disk --cmdline "$1" 2>&1); then echo "booted: $out"; exit 1; fi
			[[ $out == *"$2"* ]] || { echo "$out"; exit 1; }
		}
		ln -s "$(readlink "$digest")" "$other"
		says "composefs=$other" "$other is not the image that the kernel argument names: its fs-verity digest is $digest"
		rm "$other"
		cp "$digest" "$other"
		says "composefs=$other" "$other has no fs-verity"
		says "composefs=?$other" "$other is not the image that the kernel argument names: its digest is $digest"
		rm "$other"
		cd /
		/usr/lib/kedge/kedge-initramfs --sysroot /run/disk --cmdline "composefs=?$digest"
		findmnt --noheadings --output OPTIONS --mountpoint /run/disk | grep verity=require
	'
	rmdir /run/disk`)
}

// flip changes a bit of a file on a disk, beneath the file system: what a
// failing disk or an attacker with a screwdriver does. offset is in bytes.
func flip(t *testing.T, disk *lab.Disk, path string, offset int64) {
	t.Helper()
	const block = 4096
	out, err := lab.Command(t.Context(), "debugfs", "-R", fmt.Sprintf("bmap %s %d", path, offset/block), fmt.Sprintf("%s?offset=%d", disk.Path, disk.RootStart))
	if err != nil {
		t.Fatal(err)
	}
	at, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil || at == 0 {
		t.Fatalf("debugfs says that byte %d of %s is in block %q", offset, path, out)
	}
	f, err := os.OpenFile(disk.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, pos := make([]byte, 1), disk.RootStart+at*block+offset%block
	_, err = f.ReadAt(b, pos)
	b[0] ^= 0x10
	_, werr := f.WriteAt(b, pos)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// refused boots a line of the menu that must not come up, told to restart where
// others offer a shell, and checks that the console says why. The lab starts it:
// nobody presses a key in a menu here.
func refused(t *testing.T, m *lab.Machine, line int, why string) {
	t.Helper()
	began := time.Now()
	again := *m
	again.BootTimeout, again.Firmware = scriptTimeout, false
	again.Dir, again.MenuEntry, again.ExtraOptions = filepath.Join(m.Dir, "refused"), line, "rd.shell=0 rd.emergency=reboot"
	g, err := again.Boot(t.Context())
	if err == nil {
		g.Kill()
		t.Fatalf("%s boots, though its image is damaged", g.Entry.File)
	}
	logs, _ := filepath.Glob(filepath.Join(again.Dir, "boot-*/console.log"))
	if len(logs) != 1 {
		t.Fatalf("%s has the consoles %q, want one: %v", again.Dir, logs, err)
	}
	console, rerr := os.ReadFile(logs[0])
	if rerr != nil {
		t.Fatal(errors.Join(err, rerr))
	}
	for _, want := range []string{"THIS IMAGE CANNOT BE BOOTED", why, "choose the previous entry"} {
		if !strings.Contains(string(console), want) {
			t.Errorf("the console does not say %q: %v", want, err)
		}
	}
	t.Logf("refused after %.0f s", time.Since(began).Seconds())
}
