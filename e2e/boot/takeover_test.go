package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestTakeOver moves a host that the real ostree installed, from a commit that
// never was an image, to an image. kedge is brought along by `self install`. The
// image's checks fail, and whoever takes the previous line of the menu is back at
// ostree's commit, and finds that settled.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	w.buildHostImage(t, "os:takeover", "sick")
	w.buildSick(t, "os:takeover")
	disk := w.newDisk(t, "ext4")
	if err := disk.With(t.Context(), func(root string) error { return w.installWithOSTree(t, root) }); err != nil {
		t.Fatal(err)
	}

	m := w.machine(t, disk)
	g := start(t, m)
	g.want("libostree's deployment is booted", "ostree admin status | grep -c '^\\* os '", "1")
	g.edit()
	g.leaveChecks()
	old := g.sh("ostree admin status | sed -n 's/^\\* os \\([0-9a-f]*\\)\\..*/\\1/p'")

	out := g.sh("/var/kedge-brought self install")
	t.Logf("kedge self install:\n%s", out)
	g.brought = "/var/lib/kedge/bin/kedge"
	ref := w.Registry.GuestRepo("os:takeover")
	g.kedge("switch " + ref)
	made := g.editLate()

	g = g.reboot(m)
	g.checkSick()
	g.checkRoot()
	g.want("the image is booted", "cat /usr/share/marker", "sick")
	made.check(g)
	s := g.status()
	if s.Status.Booted.OSTree.Stateroot != "os" {
		t.Errorf("stateroot is %q, want the one ostree made", s.Status.Booted.OSTree.Stateroot)
	}
	if s.Status.Rollback == nil || s.Status.Rollback.OSTree.Checksum != old {
		t.Errorf("rollback is %+v, want ostree's deployment %s", s.Status.Rollback, old)
	}
	g.kedge("status")

	m.MenuEntry = 1 // chosen by hand
	g = g.reboot(m)
	g.brought = "/var/lib/kedge/bin/kedge"
	g.checkWell()
	g.checkHealth()
	g.want("libostree's deployment is booted again", "ostree admin status | sed -n 's/^\\* os \\([0-9a-f]*\\)\\..*/\\1/p'", old)
	made.check(g)
	g.wantExit(g.brought+" switch "+ref, 12)
	g.kedge("history")
	// And libostree drives the host that kedge changed.
	g.sh("ostree admin undeploy 1")
	if out := g.sh("ostree admin status"); strings.Contains(out, s.Status.Booted.OSTree.Checksum) {
		t.Errorf("after ostree admin undeploy, the image's deployment is still there:\n%s", out)
	}
	g.kedge("status")
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, w, disk)
}

// installWithOSTree deploys the base image's tree with ostree's own commands.
func (w *world) installWithOSTree(t *testing.T, root string) error {
	t.Helper()
	tree, err := os.MkdirTemp(w.Dir, "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	id, err := w.Podman.Run(t.Context(), "create", w.Registry.Repo("os:base"))
	if err != nil {
		return err
	}
	script := `set -e
chmod 755 "$1"
podman --root "$3" --runroot "$4" export "$5" | tar -x -C "$1" --xattrs --xattrs-include='*' -p
podman --root "$3" --runroot "$4" rm "$5" >/dev/null
rm -rf "$1"/dev/* "$1"/proc/* "$1"/run/* "$1"/sys/*
mv "$1/etc" "$1/usr/etc"
ostree admin init-fs --modern "$2"
ostree admin stateroot-init os --sysroot="$2" 2>/dev/null || ostree admin os-init os --sysroot="$2"
ostree config --repo="$2/ostree/repo" set sysroot.readonly true
ostree commit --repo="$2/ostree/repo" --branch=os/main --tree=dir="$1" --selinux-policy="$1" 2>/dev/null
ostree admin deploy --sysroot="$2" --os=os os/main ` + "--karg=" + strings.Join(rootArgs, " --karg=")
	graph, run := w.Podman.Store()
	if _, err := lab.Command(t.Context(), "bash", "-c", script, "-", tree, root, graph, run, id); err != nil {
		return err
	}
	deployments, err := filepath.Glob(filepath.Join(root, "ostree/deploy/os/deploy/*.0"))
	if err != nil {
		return err
	}
	for _, d := range deployments {
		conf := filepath.Join(d, "etc/containers")
		err := errors.Join(os.MkdirAll(filepath.Join(conf, "registries.conf.d"), 0o755),
			os.WriteFile(filepath.Join(conf, "policy.json"), []byte(lab.AcceptUnsigned), 0o644),
			os.WriteFile(filepath.Join(conf, "registries.conf.d/lab.conf"), []byte(w.Registry.GuestConfig()), 0o644))
		if err != nil {
			return err
		}
	}
	_, err = lab.Command(t.Context(), "cp", w.Kedge, filepath.Join(root, "ostree/deploy/os/var/kedge-brought"))
	return err
}
