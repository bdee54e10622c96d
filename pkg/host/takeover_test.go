package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestTakeOver moves a host that the real ostree deployed from a ref to an
// image, and lets ostree deploy on it again.
func TestTakeOver(t *testing.T) {
	ctx := context.Background()
	source := newWorld(t)
	ref, _ := source.push("1", 1)
	commit := strings.TrimPrefix(strings.Split(source.install(ref).ID, ".")[0], "default/")

	w := newWorld(t)
	repo := w.dir + "/ostree/repo"
	w.ostree("admin", "init-fs", w.dir)
	w.ostree("admin", "os-init", "--sysroot="+w.dir, "small")
	w.ostree("pull-local", "--repo="+repo, source.dir+"/ostree/repo", commit)
	w.ostree("refs", "--repo="+repo, "--create=small/stable", commit)
	w.ostree("admin", "deploy", "--sysroot="+w.dir, "--os=small", "--karg=root=LABEL=r", "small/stable")
	w.agree()

	s := w.status().Status
	if len(s.OtherDeployments) != 1 || s.OtherDeployments[0].Image != nil || s.OtherDeployments[0].Kedge.Origin != "small/stable" {
		t.Errorf("status of a host that follows a ref = %+v", s.OtherDeployments)
	}
	_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	wantKind(t, err, fault.Conflict, "follows no container image")

	theirs := s.OtherDeployments[0].Kedge.ID
	w.write(filepath.Join(w.dir, "ostree/deploy/small/deploy", strings.TrimPrefix(theirs, "small/"), "etc/edited.conf"), "mine\n")
	ref2, two := w.push("2", 2)
	p, err := w.open().Plan(ctx, PlanOptions{Image: ref2})
	must(t, err)
	if !p.Possible || len(p.Warnings) == 0 {
		t.Errorf("plan = %+v, want it possible, with a warning about the ref", p)
	}
	r := w.switchTo(ref2)
	if !strings.HasPrefix(r.ID, "small/") || r.Image.ImageDigest != two {
		t.Errorf("switch = %+v, want a deployment of the same stateroot", r)
	}
	if got := w.file(r.ID, "etc/edited.conf"); got != "mine\n" {
		t.Errorf("/etc/edited.conf = %q, want the local edit", got)
	}
	args, err := w.open().ShowKargs(ctx)
	must(t, err)
	if strings.Join(args, " ") != "root=LABEL=r" {
		t.Errorf("kernel arguments = %q, want the host's", args)
	}
	w.agree()
	w.ostree("refs", "--repo="+repo, "small/stable") // others' refs stay

	w.ostree("admin", "deploy", "--sysroot="+w.dir, "--os=small", "small/stable")
	w.agree()
	if r = w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) }); r.Image.ImageDigest != two {
		t.Errorf("rollback after ostree admin deploy = %+v, want the image", r)
	}
	w.agree()
	origin, err := os.ReadFile(filepath.Join(w.dir, "ostree/deploy/small/deploy", strings.TrimPrefix(r.ID, "small/")+".origin"))
	must(t, err)
	if strings.Contains(string(origin), "refspec") {
		t.Errorf("the origin of an image still has a refspec:\n%s", origin)
	}
}
