package boot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFirstDeployment(t *testing.T) {
	w := newWorld(t)
	c := w.commit(osTree("kernel one"), "1.0")
	s := w.open()
	must(t, s.InitStateroot("os"))
	d := w.deploy(s, c, "os")
	if d.Checksum != c || d.Serial != 0 || d.Index != 0 {
		t.Errorf("deployment = %s index %d, want %s.0 index 0", d.Name(), d.Index, c)
	}
	if got := w.read(d.Dir() + "/etc/conf"); got != "default" {
		t.Errorf("/etc/conf = %q, want the image's default", got)
	}
	if link, _ := os.Readlink(filepath.Join(w.dir, "boot/loader")); link != "loader.1" {
		t.Errorf("boot/loader -> %q, want loader.1", link)
	}
	t.Log(w.read("boot/loader/entries/ostree-1.conf"))
	status := run(t, "ostree", "admin", "--sysroot="+w.dir, "status")
	if !strings.Contains(status, "os "+c+".0") {
		t.Errorf("ostree admin status does not list the deployment:\n%s", status)
	}
	d2 := w.deploy(s, w.commit(osTree("kernel two"), "2.0"), "os")
	t.Log(run(t, "ostree", "admin", "--sysroot="+w.dir, "status"))
	if len(s.Deployments()) != 2 || !s.Deployments()[0].same(d2) {
		t.Errorf("list = %v, want the new deployment before the old one", s.Deployments())
	}
	must(t, s.Write(context.Background(), s.WithDefault(s.Deployments()[1])))
	if s.Deployments()[0].Checksum != c {
		t.Errorf("default after rollback = %s, want %s", s.Deployments()[0].Checksum, c)
	}
	run(t, "ostree", "fsck", "--repo="+w.repo.path)
	t.Log(run(t, "find", w.dir+"/boot", w.dir+"/ostree", "-maxdepth", "5", "-not", "-path", "*/repo/*"))
}
