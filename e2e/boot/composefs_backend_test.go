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

// TestComposefsLifecycle is the user's story on the composefs backend: install
// from a medium, boot with every file checked by the kernel, switch, roll back,
// and live through damage on the disk.
func TestComposefsLifecycle(t *testing.T) {
	t.Parallel()
	w, layout := sealedWorld(t)
	w.buildHostImage(t, "os:one", "one")
	w.build(t, "os:two", "FROM "+w.Registry.Repo("os:one")+`
RUN echo two >/usr/share/marker && \
    echo brought by two >/etc/brought && \
    sed -i s/=one/=two/ /usr/lib/bootc/kargs.d/10-lab.toml
`)
	disk := w.newDisk(t, "ext4 -O verity")
	w.installSealed(t, disk, layout, "os:one")

	m := w.machine(t, disk)
	g := start(t, m)
	one := g.checkSealed()
	g.want("the installed image is booted", "cat /usr/share/marker", "one")
	g.want("its kernel argument is there", "grep -o 'lab.image=[a-z]*' /proc/cmdline", "lab.image=one")
	g.checkRefusals(one)
	g.sh(`echo local >/etc/local && echo admin >>/etc/hosts
		mkdir -p /var/lib/e2e && echo data >/var/lib/e2e/data`)
	g.kedge("switch " + w.Registry.GuestRepo("os:two"))
	if s := g.status(); s.Status.Staged == nil || s.Status.Staged.Image.Image.Image != w.Registry.GuestRepo("os:two") {
		t.Fatalf("after switch, status shows %+v as staged", s.Status.Staged)
	}

	g = g.reboot(m)
	two := g.checkSealed()
	if two == one {
		t.Fatalf("after switch and reboot, %s is booted still", one)
	}
	g.want("the new root is booted", "cat /usr/share/marker", "two")
	g.want("the new image's kernel argument replaced the old", "grep -o 'lab.image=[a-z]*' /proc/cmdline", "lab.image=two")
	g.want("a new file arrives", "cat /etc/brought", "brought by two")
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("an edit survives", "tail -n 1 /etc/hosts", "admin")
	g.want("/var survives", "cat /var/lib/e2e/data", "data")
	g.kedge("rollback")
	victim := g.sh("fsverity digest --compact --hash-alg=sha512 /usr/share/common-licenses/GPL-3")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}

	// The disk loses a bit of an object and one of the other image. The menu's
	// second line is what was booted last.
	flip(t, disk, "/composefs/"+object(victim), 5000)
	flip(t, disk, "/composefs/"+object(two), 1_000_000)
	refused(t, m, 1, "/composefs/images/"+two+" is damaged")

	g = start(t, m)
	if got := g.checkSealed(); got != one {
		t.Errorf("booted %s, want the image from before the switch: %s", got, one)
	}
	g.want("the old root is back", "cat /usr/share/marker", "one")
	g.want("/var is shared", "cat /var/lib/e2e/data", "data")
	out := g.output("LC_ALL=C cat /usr/share/common-licenses/GPL-3 2>&1 >/dev/null")
	if !strings.Contains(out, "Input/output error") {
		t.Errorf("reading a damaged file gives %q, want an I/O error", out)
	}
	out = g.output("kedge fsck")
	t.Logf("kedge fsck:\n%s", out)
	for what, digest := range map[string]string{"object": victim, "image": two} {
		if !strings.Contains(out, object(digest)) {
			t.Errorf("kedge fsck does not name the damaged %s %s", what, digest)
		}
	}
}

// object returns where a repository keeps the object of a digest.
func object(digest string) string { return "objects/" + digest[:2] + "/" + digest[2:] }

// installSealed installs ref on a disk as its user would from a medium: on the
// machine itself, whose kernel seals the files.
func (w *world) installSealed(t *testing.T, disk *lab.Disk, layout, ref string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "source.img")
	if _, err := lab.Command(t.Context(), "skopeo", "copy", "--quiet", "--src-tls-verify=false",
		"docker://"+w.Registry.Repo(ref), "oci:"+filepath.Join(dir, "source")+":image"); err != nil {
		t.Fatal(err)
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
mkdir -p /target /source /etc/containers
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
mount /dev/vda /target
mount -o ro /dev/vdb /source
kedge install to-filesystem --backend composefs --image oci:/source:image \
  --target-image `+w.Registry.GuestRepo(ref)+" --karg "+strings.Join(rootArgs, " --karg ")+` /target >/run/log 2>&1 || { cat /run/log; exit 1; }
cat /run/log
umount /target
`, scriptTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("installed from a medium in %.0f s:\n%s", time.Since(began).Seconds(), out)
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
	out, err := lab.Command(t.Context(), "debugfs", "-R", fmt.Sprintf("bmap %s %d", path, offset/block), disk.Path)
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
	b, pos := make([]byte, 1), at*block+offset%block
	_, err = f.ReadAt(b, pos)
	b[0] ^= 0x10
	_, werr := f.WriteAt(b, pos)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// refused boots a line of the menu that must not come up, told to restart where
// others offer a shell, and checks that the console says why.
func refused(t *testing.T, m *lab.Machine, line int, why string) {
	t.Helper()
	began := time.Now()
	again := *m
	again.BootTimeout = scriptTimeout
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
