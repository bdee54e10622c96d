package boot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestOSTreeComposefs is the story of a host of the ostree backend whose image
// enables composefs, and later demands fs-verity. This machine's kernel may lack
// it, so that sealing happens where it does for users: in the booted host.
func TestOSTreeComposefs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("boots machines; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "podman", "mkfs.ext4", "mmdebstrap", "umoci", "go")
	inner, err := lab.NewWorld(context.Background(), lab.OSTreeComposefsImage(t), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{inner}
	w.buildHostImage(t, "os:yes", "one")
	// What a test that seals files needs is in the guest alone.
	files := map[string]string{}
	for _, pkg := range []string{"fsverity", "ostree"} {
		files[pkg+".test"] = w.testBinary(t, pkg)
	}
	err = w.Build(t.Context(), "os:yes", "FROM "+w.Registry.Repo("os:yes")+"\nCOPY *.test /usr/libexec/\nRUN chmod 755 /usr/libexec/*.test\n", files)
	if err != nil {
		t.Fatal(err)
	}
	w.build(t, "os:verity", "FROM "+w.Registry.Repo("os:yes")+`
RUN echo sealed >/usr/share/marker && cd / && \
    sed -i 's/^enabled.*/enabled = verity/' usr/lib/ostree/prepare-root.conf && \
    image=$(echo usr/lib/modules/*/initramfs.img) && truncate -s %4 $image && \
    printf '%s\n' usr usr/lib usr/lib/ostree usr/lib/ostree/prepare-root.conf | cpio -o -H newc >>$image
`)
	disk := w.newDisk(t, "ext4")
	if _, err := lab.Command(t.Context(), "tune2fs", "-O", "verity", disk.Path); err != nil {
		t.Fatal(err)
	}
	w.install(t, disk, "os:yes")

	m := w.machine(t, disk)
	g := start(t, m)
	g.checkHealth()
	g.checkComposefs()
	g.want("the mount does not ask for fs-verity", "findmnt -no OPTIONS / | grep -c verity=require || true", "0")
	for _, pkg := range []string{"fsverity", "ostree"} {
		out := g.sh("cd /var/tmp && TMPDIR=/var/tmp /usr/libexec/" + pkg + ".test -test.run 'Verity|Seal' -test.v 2>&1")
		if strings.Contains(out, "--- SKIP") || !strings.Contains(out, "--- PASS") {
			t.Errorf("the tests of pkg/%s, where there is fs-verity:\n%s", pkg, out)
		}
	}
	g.sh("echo local >/etc/local")

	w.build(t, "os:yes", "FROM "+w.Registry.Repo("os:yes")+"\nRUN echo two >/usr/share/marker\n")
	g.kedge("upgrade")
	g = g.reboot(m)
	g.checkHealth()
	g.checkComposefs()
	g.want("the upgrade is booted", "cat /usr/share/marker", "two")
	g.want("a local file survives", "cat /etc/local", "local")

	g.want("nothing is sealed yet", measureObjects+" | wc -l", "0")
	g.kedge("switch " + w.Registry.GuestRepo("os:verity"))
	g.want("the staged deployment's image is sealed", "fsverity measure $(ls -td /ostree/deploy/default/deploy/*.?/.ostree.cfs | head -n 1) | grep -c ^sha256:", "1")
	g = g.reboot(m)
	g.checkHealth()
	g.checkComposefs()
	g.want("the image that demands fs-verity is booted", "cat /usr/share/marker", "sealed")
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("the mount requires fs-verity", "findmnt -no OPTIONS / | grep -o verity=require", "verity=require")
	g.want("every object is sealed", measureObjects+" | wc -l", g.sh(countObjects))
	g.want("the configuration says so to libostree", "ostree config get --repo=/ostree/repo ex-integrity.fsverity", "true")
	began := time.Now()
	g.sh("ostree fsck --repo=/ostree/repo")
	t.Logf("ostree fsck in %.0f s", time.Since(began).Seconds())
	g.kedge("fsck")
}

const (
	objectFiles    = "find /ostree/repo/objects/ -name '*.file' -type f"
	countObjects   = objectFiles + " | wc -l"
	measureObjects = objectFiles + " -print0 | xargs -0 -n 400 fsverity measure 2>/dev/null | grep ^sha256:"
)

// checkComposefs looks for what must hold on a host whose root is a composefs
// mount.
func (g *guest) checkComposefs() {
	g.t.Helper()
	g.want("the root is a composefs mount", "findmnt -no FSTYPE,SOURCE / | tr -s ' '", "overlay composefs")
	g.want("libostree knows that it is", "grep -aq composefs.verity /run/ostree-booted && echo yes", "yes")
	g.want("the root is read-only", "touch /e2e 2>/dev/null && echo written || echo read-only", "read-only")
	booted := g.status().Status.Booted.OSTree.Checksum
	g.want("libostree and kedge agree on what is booted", "ostree admin status | sed -n 's/^\\* [^ ]* \\([0-9a-f]*\\)\\..*/\\1/p'", booted)
}

// testBinary compiles the tests of a package and returns the file's bytes.
func (w *world) testBinary(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(w.Dir, pkg+".test")
	_, err := lab.Command(t.Context(), "env", "CGO_ENABLED=0", "go", "test", "-c", "-o", path, "-tags", lab.BuildTags,
		"github.com/kedge-os/kedge/pkg/"+pkg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
