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

// ostreeComposefsWorld is a world whose base has an ostree with composefs, which
// its images enable.
func ostreeComposefsWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "podman", "skopeo", "mkfs.ext4", "mmdebstrap", "umoci", "go")
	inner, err := lab.NewWorld(context.Background(), lab.OSTreeComposefsImage(t), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{inner}
}

// addTests adds to an image the tests that seal files. This machine's kernel may
// lack fs-verity; the guest's has it.
func (w *world) addTests(t *testing.T, ref string) {
	t.Helper()
	files := map[string]string{}
	for _, pkg := range sealingPackages {
		files[pkg+".test"] = w.testBinary(t, pkg)
	}
	if err := w.Build(t.Context(), ref, "FROM "+w.Registry.Repo(ref)+"\nCOPY *.test /usr/libexec/\nRUN chmod 755 /usr/libexec/*.test\n", files); err != nil {
		t.Fatal(err)
	}
}

var sealingPackages = []string{"fsverity", "ostree"}

// runTests runs what addTests has added.
func (g *guest) runTests() {
	g.t.Helper()
	for _, pkg := range sealingPackages {
		out := g.sh("cd /var/tmp && TMPDIR=/var/tmp /usr/libexec/" + pkg + ".test -test.run 'Verity|Seal' -test.v 2>&1")
		if strings.Contains(out, "--- SKIP") || !strings.Contains(out, "--- PASS") {
			g.t.Errorf("the tests of pkg/%s, where there is fs-verity:\n%s", pkg, out)
		}
	}
}

// seal has os:fallback-two demand fs-verity, and builds os:fallback-three, which is
// newer.
func (s *fallback) seal(t *testing.T) {
	s.build(t, "os:fallback-two", "FROM "+s.Registry.Repo("os:fallback-two")+`
RUN cd / && sed -i 's/^enabled.*/enabled = verity/' usr/lib/ostree/prepare-root.conf && \
    image=$(echo usr/lib/modules/*/initramfs.img) && truncate -s %4 $image && \
    printf '%s\n' usr usr/lib usr/lib/ostree usr/lib/ostree/prepare-root.conf | cpio -o -H newc >>$image
`)
	s.derive(t, "os:fallback-", "three", "two", "true")
}

// sealedAndBack is what the story ends with on the ostree backend: the root demands
// fs-verity, and its files were sealed as they are for users, by the booted host
// that switched to it; an upgrade that is not booted; and a rollback by hand.
func (s *fallback) sealedAndBack(t *testing.T, h switched) {
	h.want("the mount requires fs-verity", "findmnt -no OPTIONS / | grep -o verity=require", "verity=require")
	h.want("every object is sealed", measureObjects+" | wc -l", h.sh(countObjects))
	h.want("the configuration says so to libostree", "ostree config get --repo=/ostree/repo ex-integrity.fsverity", "true")
	began := time.Now()
	h.sh("ostree fsck --repo=/ostree/repo")
	t.Logf("ostree fsck in %.0f s", time.Since(began).Seconds())

	s.tag(t, "fallback-three", "fallback-two")
	h.wantExit("kedge upgrade --check --unchanged-exit-77", 0)
	h.kedge("upgrade")
	if e := h.host(); e.Staged == nil || e.Staged.Image.ImageDigest == e.Booted.Image.ImageDigest {
		t.Errorf("status after an upgrade = %+v", e)
	}
	h.kedge("rollback")

	h.guest = s.reboot(h.guest, "one")
	if root := s.check(h.guest, "one"); root != h.one {
		t.Errorf("booted %s, want the root from before the switch: %s", root, h.one)
	}
	h.want("the user's kernel argument is gone", "grep -c lab.more=1 /proc/cmdline || true", "0")
	h.want("the mount does not ask for fs-verity", "findmnt -no OPTIONS / | grep -c verity=require || true", "0")
	s.rolledBack(h)
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
