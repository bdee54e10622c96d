package boot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bootableTree is a root that a process can be put into: osTree with the mount
// points of a running system.
func bootableTree(kernel string) tree {
	return osTree(kernel).with(tree{"run/": "", "proc/": "", "dev/": "", "opt/": "", "tmp/": ""})
}

// inside runs "ostree admin" of an oracle as on the machine that w.boot made:
// in the booted deployment, which is its root by device and inode.
func (o oracle) inside(w *world, d *Deployment, args ...string) (string, error) {
	w.t.Helper()
	root := filepath.Join(w.dir, d.Dir())
	program := "/opt"
	script := `set -e
mount --bind "$WORLD" "$ROOT/sysroot"
mount --bind "$WORLD/boot" "$ROOT/boot"
mount --bind "$MACHINE/run" "$ROOT/run"
mount --bind "$WORLD/ostree/deploy/os/var" "$ROOT/var"
mount --bind "$PROGRAM" "$ROOT/opt"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/tmp"
exec chroot "$ROOT" /opt/` + libDir + `/ld-linux-x86-64.so.2 --library-path /opt/` + libDir + ` ` + program + `/usr/bin/ostree admin "$@"`
	env := []string{"env", "WORLD=" + w.dir, "MACHINE=" + w.host, "ROOT=" + root, "PROGRAM=" + filepath.Dir(filepath.Dir(filepath.Dir(o.argv[len(o.argv)-1])))}
	argv := append(env, "unshare", "--mount", "--pid", "--fork", "--propagation=private", "sh", "-c", script, "sh")
	return tryRun(append(argv, args...)...)
}

// TestOSTreeOnABootedHost: with a deployment of ours staged, ostree on the
// booted machine shows it, keeps it, never finalises it, and can replace it.
func TestOSTreeOnABootedHost(t *testing.T) {
	ctx := context.Background()
	o := oracles(t)[1]
	w := newWorld(t)
	s, booted := w.booted(bootableTree("k1"))
	c := []string{w.commit(bootableTree("k2"), "2"), w.commit(bootableTree("k3"), "3")}
	must(t, w.repo.SetRefs(ctx, map[string]string{"images/2": c[0], "images/3": c[1]}))
	staged, err := s.Stage(ctx, stageRequest(w, s, c[0]))
	must(t, err)
	s.Unlock()

	admin := func(args ...string) string {
		t.Helper()
		out, err := o.inside(w, booted, args...)
		must(t, err)
		return out
	}
	status := admin("status")
	if !strings.Contains(status, "* os "+booted.Checksum) || !strings.Contains(status, staged.Checksum) || !strings.Contains(status, "(finalization locked)") {
		t.Fatalf("ostree admin status:\n%s", status)
	}
	admin("cleanup")
	must(t, s.Load())
	if s.Staged() == nil {
		t.Fatal("ostree's cleanup took the staged deployment away")
	}
	if _, err := os.Stat(filepath.Join(w.dir, "boot/ostree", staged.bootName(), "vmlinuz-6.1.0")); err != nil {
		t.Errorf("ostree's cleanup took the staged deployment's kernel away: %v", err)
	}
	admin("finalize-staged")
	must(t, s.Load())
	if s.Staged() == nil || s.Deployments()[1].Index != 1 {
		t.Fatal("ostree finalised what kedge staged")
	}

	must(t, s.Lock(ctx))
	result, err := s.Finalize(ctx)
	must(t, err)
	s.Unlock()
	if status := admin("status"); strings.Contains(status, "(finalization locked)") || !strings.Contains(status, result.Deployment.Checksum) {
		t.Errorf("after kedge's finalisation ostree admin status says:\n%s", status)
	}

	must(t, s.Lock(ctx))
	_, err = s.Stage(ctx, stageRequest(w, s, c[1]))
	must(t, err)
	s.Unlock()
	admin("undeploy", "0")
	must(t, s.Load())
	if s.Staged() != nil || len(s.Deployments()) != 2 {
		t.Errorf("after ostree's undeploy of the staged deployment kedge lists %v", s.Deployments())
	}

	must(t, s.Lock(ctx))
	_, err = s.Stage(ctx, stageRequest(w, s, c[1]))
	must(t, err)
	s.Unlock()
	admin("deploy", "--os=os", c[1])
	must(t, s.Load())
	if d := s.Deployments(); s.Staged() != nil || d[0].Checksum != c[1] || s.Booted() == nil {
		t.Errorf("after ostree's deploy over a staged deployment kedge lists %v, staged %v", d, s.Staged())
	}
	must(t, s.Lock(ctx))
	must(t, s.Cleanup(ctx))
}
