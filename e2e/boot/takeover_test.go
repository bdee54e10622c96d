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
// never was an image, to an image. kedge is brought along by `self install`.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	w.buildHostImage(t, "os:takeover", "image")
	disk := w.newDisk(t, "ext4")
	if err := disk.With(t.Context(), func(root string) error { return w.installWithOSTree(t, root) }); err != nil {
		t.Fatal(err)
	}

	m := w.machine(t, disk)
	g := start(t, m)
	g.want("libostree's deployment is booted", "ostree admin status | grep -c '^\\* os '", "1")
	g.sh("echo local >/etc/local && mkdir -p /var/lib/e2e && echo data >/var/lib/e2e/data")
	old := g.sh("ostree admin status | sed -n 's/^\\* os \\([0-9a-f]*\\)\\..*/\\1/p'")

	out := g.sh("/var/kedge-brought self install")
	t.Logf("kedge self install:\n%s", out)
	out = g.sh("/var/lib/kedge/bin/kedge switch " + w.Registry.GuestRepo("os:takeover"))
	t.Logf("kedge switch:\n%s", out)

	g = g.reboot(m)
	g.checkHealth()
	g.want("the image is booted", "cat /usr/share/marker", "image")
	g.want("a local file survives", "cat /etc/local", "local")
	g.want("/var survives", "cat /var/lib/e2e/data", "data")
	s := g.status()
	if s.Status.Booted.OSTree.Stateroot != "os" {
		t.Errorf("stateroot is %q, want the one ostree made", s.Status.Booted.OSTree.Stateroot)
	}
	if s.Status.Rollback == nil || s.Status.Rollback.OSTree.Checksum != old {
		t.Errorf("rollback is %+v, want ostree's deployment %s", s.Status.Rollback, old)
	}
	// And libostree drives the host that kedge changed.
	g.sh("ostree admin undeploy 1")
	if out := g.sh("ostree admin status"); strings.Contains(out, old) {
		t.Errorf("after ostree admin undeploy, the old deployment is still there:\n%s", out)
	}
	g.kedge("status")
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
