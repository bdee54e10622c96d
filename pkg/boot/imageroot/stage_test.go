package imageroot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestBootedIsFoundByTheMountsSource(t *testing.T) {
	w := newWorld(t)
	s, d := w.booted(osTree("k1"))
	if !s.IsBooted() || d == nil || d.Index != 0 {
		t.Fatalf("booted deployment = %v, want the only one", d)
	}
	for _, source := range []string{"composefs:" + d.Digest, "transient:composefs=" + d.Digest} {
		w.mounts(source)
		for _, path := range []string{w.host, filepath.Join(w.host, "sysroot"), w.dir} {
			o, err := Open(path, w.options())
			must(t, err)
			if !o.Booted().same(d) {
				t.Errorf("%.20s opened as %s: booted is %v", source, path, o.Booted())
			}
			o.Close()
		}
	}
	for _, source := range []string{"/dev/sda1", "composefs:short", "composefs=" + d.Digest} {
		w.mounts(source)
		o, err := Open(w.dir, w.options())
		must(t, err)
		if o.IsBooted() {
			t.Errorf("with / from %s the sysroot is taken for the booted one", source)
		}
		o.Close()
	}
	w.mounts("composefs:" + strings.Repeat("e", 128))
	_, err := Open(w.dir, w.options())
	wantKind(t, err, fault.Corrupt, "not among the boot entries")

	other := newWorld(t)
	o := other.options()
	o.Host = w.host
	x, err := Open(other.dir, o)
	must(t, err)
	defer x.Close()
	if x.IsBooted() {
		t.Error("another sysroot is seen as the booted one")
	}
}

// TestBootPartition: a /boot with entries of its own counts, not the directory
// in the sysroot.
func TestBootPartition(t *testing.T) {
	w := newWorld(t)
	s, d := w.booted(osTree("k1"))
	s.Close()
	must(t, os.Remove(filepath.Join(w.host, "boot")))
	must(t, os.Rename(filepath.Join(w.dir, "boot"), filepath.Join(w.host, "boot")))
	must(t, os.Mkdir(filepath.Join(w.dir, "boot"), 0o755))
	if got := w.open().Booted(); !got.same(d) {
		t.Errorf("booted = %v, want the deployment", got)
	}
}

func TestStageAndFinalize(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	etc := filepath.Join(w.dir, old.Dir(), "etc")
	must(t, os.WriteFile(filepath.Join(etc, "before"), []byte("1"), 0o600))
	big := strings.Repeat("x", 2<<20)
	must(t, os.WriteFile(filepath.Join(etc, "big"), []byte(big), 0o600))
	entries := w.entries(entriesDir)

	c2 := w.image(osTree("k2").with(files{"etc/conf": "default 2", "etc/fresh": "new default"}))
	staged := w.stage(s, c2)
	if !staged.Staged || !staged.FinalizationLocked || !staged.Ours || staged.Index != 0 || staged.Digest != c2 {
		t.Errorf("staged deployment = %+v, want it first, locked and kedge's", staged)
	}
	// What bootc reads of it.
	var marker struct {
		Digest string `json:"depl_id"`
		Locked bool   `json:"finalization_locked"`
	}
	text, err := os.ReadFile(filepath.Join(w.host, "run/composefs/staged-deployment"))
	must(t, err)
	must(t, json.Unmarshal(text, &marker))
	if marker.Digest != c2 || !marker.Locked {
		t.Errorf("marker = %s", text)
	}
	golden(t, "staged.entries", w.entries(stagedDir), map[string]string{old.Digest: "DIGEST", c2: "DIGEST2"})
	if got := w.entries(entriesDir); got != entries {
		t.Errorf("entries in use while staged =\n%s", got)
	}
	if got := w.read("boot/bootc_composefs-" + c2 + "/initrd"); got != "initramfs of k2" {
		t.Errorf("initrd after staging = %q, want it in place", got)
	}
	if len(s.Deployments()) != 2 || !s.Deployments()[1].same(old) {
		t.Errorf("list while staged = %v, want the staged and the booted one", s.Deployments())
	}
	must(t, s.Cleanup(ctx))
	w.wantNames(deployDir, old.Digest, c2)
	w.wantNames("boot/loader", "entries", "entries.staged")

	must(t, os.WriteFile(filepath.Join(etc, "after"), []byte("2"), 0o600))
	must(t, os.Remove(filepath.Join(etc, "before")))
	must(t, os.WriteFile(filepath.Join(etc, ".updated"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(w.host, "var/.updated"), nil, 0o644))
	result, err := s.Finalize(ctx)
	must(t, err)
	if result.Etc.Files > 2 || result.Etc.Largest > etcmerge.LargeFile {
		t.Errorf("finalisation wrote %+v, want only the two files that are new since the staging", result.Etc)
	}
	d := s.Deployments()[0]
	if d.Staged || d.Digest != c2 || s.Staged() != nil || !result.Deployment.same(d) {
		t.Errorf("default after finalisation = %+v, want the new deployment", d)
	}
	for name, want := range map[string]string{"conf": "default 2", "fresh": "new default", "after": "2", "big": big} {
		if got := w.read(d.Dir() + "/etc/" + name); got != want {
			t.Errorf("new /etc/%s has %d bytes %.20q, want %.20q", name, len(got), got, want)
		}
	}
	w.gone(d.Dir() + "/etc/before")
	w.gone(d.Dir() + "/etc/.updated")
	w.gone("../host/var/.updated")
	w.gone("../host/" + markerFile)
	w.gone("boot/" + stagedDir)
	if got := s.Booted(); !got.same(old) {
		t.Errorf("booted after finalisation = %v, want the old deployment", got)
	}
	golden(t, "staged.entries", w.entries(entriesDir), map[string]string{old.Digest: "DIGEST", c2: "DIGEST2"})
}

// TestLabels: files of the image have the labels that the image was given,
// local ones keep theirs, and a second merge has nothing to correct.
func TestLabels(t *testing.T) {
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	set := func(name, label string) {
		t.Helper()
		must(t, unix.Lsetxattr(filepath.Join(w.dir, name), "security.selinux", []byte(label), 0))
	}
	w.write(old.Dir()+"/etc/mine", "1")
	set(old.Dir()+"/etc/mine", "u:r:mine_t:s0\x00")
	next := w.image(osTree("k2"))
	for name, label := range map[string]string{"": "etc_t", "/conf": "conf_t", "/app": "app_t"} {
		set(filepath.Join(repoDir, next)+"/etc"+name, "u:r:"+label+":s0")
	}
	d := w.stage(s, next)
	r, err := s.Finalize(context.Background())
	must(t, err)
	if r.Etc.Others != 0 || r.Etc.Files > 1 {
		t.Errorf("the second merge wrote %+v", r.Etc)
	}
	for name, want := range map[string]string{"": "etc_t", "/conf": "conf_t", "/app": "app_t", "/mine": "mine_t"} {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(w.dir, d.Dir(), "etc")+name, "security.selinux", buf)
		if got := string(buf[:max(n, 0)]); err != nil || got != "u:r:"+want+":s0\x00" {
			t.Errorf("label of /etc%s = %q, %v; want %s", name, got, err, want)
		}
	}
}

func TestStageReplacesStaged(t *testing.T) {
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	first := w.stage(s, w.image(osTree("k2")))
	second := w.stage(s, w.image(osTree("k3")))
	w.gone(first.Dir())
	if len(s.Deployments()) != 2 || !s.Staged().same(second) {
		t.Errorf("list = %v, want the second staged and the booted one", s.Deployments())
	}
	// The same again continues what is there.
	w.write(old.Dir()+"/etc/late", "1")
	again := w.stage(s, second.Digest)
	if got := w.read(again.Dir() + "/etc/late"); got != "1" || !again.same(second) {
		t.Errorf("staged again: /etc/late = %q", got)
	}
	must(t, s.Write(context.Background(), s.Deployments()[1:]))
	if s.Staged() != nil || len(s.Deployments()) != 1 {
		t.Errorf("after unstaging the list is %v, want the booted one", s.Deployments())
	}
	w.wantNames(deployDir, old.Digest)
	w.gone("boot/" + stagedDir)
	must(t, s.Cleanup(context.Background()))
	w.wantNames("boot", "bootc_composefs-"+old.Digest, "loader")
}

func TestFinalizeLeavesAlone(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, _ := w.booted(osTree("k1"))
	nothing := func(what string) {
		t.Helper()
		if r, err := s.Finalize(ctx); err != nil || r.Deployment != nil {
			t.Errorf("finalize %s = %v, %v; want nothing done", what, r, err)
		}
	}
	nothing("with nothing staged")
	_, err := s.Stage(ctx, StageRequest{DeployRequest: request(s, w.image(osTree("k2"))), Hold: true})
	must(t, err)
	if !s.Staged().Held {
		t.Error("the staged deployment is not held")
	}
	nothing("of a held deployment")
	must(t, s.SetHold(false))
	// bootc lets it go by writing the marker anew: then it is bootc's.
	marker := filepath.Join(w.host, markerFile)
	must(t, os.WriteFile(marker, []byte(`{"depl_id":"`+s.Staged().Digest+`","finalization_locked":false}`), 0o644))
	must(t, s.Load())
	if d := s.Staged(); d == nil || d.Ours || d.FinalizationLocked {
		t.Errorf("what bootc wrote = %+v, want it staged by another", d)
	}
	nothing("of what bootc has taken")
	wantKind(t, s.SetHold(true), fault.NotFound, "kedge has staged no deployment")
}

// TestFinalizeFails: a merge that cannot be done any more keeps the old default
// and is told until it is made good.
func TestFinalizeFails(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	w.stage(s, w.image(osTree("k2").without("etc/app/app.conf").with(files{"etc/app": "file"})))
	w.write(old.Dir()+"/etc/app/mine", "1")
	before := w.entries(entriesDir)
	_, err := s.Finalize(ctx)
	wantKind(t, err, fault.Conflict, "/etc/app")
	if got := w.entries(entriesDir); got != before {
		t.Errorf("entries after the failure =\n%s", got)
	}
	s.Close()
	s = w.open()
	f, err := s.Failure()
	must(t, err)
	if f == nil || !strings.Contains(f.Message, "/etc/app") || f.Deployment != s.Staged().Name() {
		t.Errorf("failure = %+v", f)
	}
	must(t, os.Remove(filepath.Join(w.dir, old.Dir(), "etc/app/mine")))
	_, err = s.Finalize(ctx)
	must(t, err)
	if f, err := s.Failure(); f != nil || err != nil {
		t.Errorf("failure after a finalisation that went well = %v, %v", f, err)
	}
}

func TestBadMarkers(t *testing.T) {
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	w.stage(s, w.image(osTree("k2")))
	marker := filepath.Join(w.host, markerFile)
	good, err := os.ReadFile(marker)
	must(t, err)
	for text, want := range map[string]string{
		"":                      "unexpected end",
		"{":                     "unexpected end",
		`{"depl_id":"../../x"}`: "is not a digest",
		`{"depl_id":7}`:         "cannot unmarshal",
	} {
		must(t, os.WriteFile(marker, []byte(text), 0o644))
		wantKind(t, s.Load(), fault.Corrupt, want)
	}
	// One that leads nowhere is a problem and no error.
	must(t, os.WriteFile(marker, []byte(strings.ReplaceAll(string(good), old.Digest, old.Digest)), 0o644))
	must(t, os.RemoveAll(filepath.Join(w.dir, "boot", stagedDir)))
	must(t, s.Load())
	if s.Staged() == nil {
		t.Error("a staged deployment is lost with its row of entries")
	}
	other := strings.Repeat("d", 128)
	must(t, os.WriteFile(marker, []byte(`{"depl_id":"`+other+`","finalization_locked":false}`), 0o644))
	must(t, s.Load())
	if s.Staged() != nil || len(s.Problems()) != 1 {
		t.Errorf("staged = %v, problems = %v; want one problem", s.Staged(), s.Problems())
	}
}

// TestKargsEdit: another entry for the booted image shares its state, which
// stays as it is.
func TestKargsEdit(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	w.write(old.Dir()+"/etc/mine", "1")
	inode := func() uint64 {
		d, err := openDisk(s.Root(), old.Dir()+"/etc")
		must(t, err)
		defer d.Close()
		st, err := d.Lstat(".")
		must(t, err)
		return st.Ino
	}
	before := inode()
	edit := func(args string) *Deployment {
		r := request(s, old.Digest)
		r.Kargs, r.ExactKargs, r.Origin = karg.Parse(args), true, old.Origin.Clone()
		d, err := s.Stage(ctx, StageRequest{DeployRequest: r})
		must(t, err)
		return d
	}
	edit("root=UUID=1 rw debug")
	staged := edit("root=UUID=1 rw nosmt")
	if !staged.SharesState || staged.Serial != 1 || staged.Name() != old.Digest+".1" || !s.Booted().SharesState {
		t.Errorf("staged = %+v", staged)
	}
	w.write(old.Dir()+"/etc/late", "1")
	s = w.reboot(s)
	list := s.Deployments()
	if len(list) != 2 || !list[0].Booted || list[1].Booted || list[0].Kargs().String() != "root=UUID=1 rw nosmt" {
		t.Fatalf("list = %+v", list)
	}
	if inode() != before || w.read(old.Dir()+"/etc/late") != "1" {
		t.Error("the /etc of the running machine was replaced")
	}
	w.wantNames(deployDir, old.Digest)
	w.wantNames("boot", "bootc_composefs-"+old.Digest, "loader")
	must(t, s.Cleanup(ctx))
	w.wantNames(stateDir + "/pending")

	// Back: the one that is not booted is the default again.
	must(t, s.Write(ctx, s.WithDefault(list[1])))
	if !s.Deployments()[0].same(old) || s.Booted().Index != 1 {
		t.Errorf("list after the rollback = %+v", s.Deployments())
	}
	// The booted entry is told by the kernel's arguments alone.
	s.Close()
	w.boot(s.Deployments()[0])
	if b := w.open().Booted(); !b.same(old) {
		t.Errorf("booted = %q, want the entry without nosmt", b.Kargs())
	}
}

// TestThereAndBack: A → B → A. The state directory of A gets the /etc that B
// has, at the finalisation and not before.
func TestThereAndBack(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := osTree("k1"), osTree("k2").with(files{"etc/conf": "default b"})
	s, _ := w.booted(a)
	digest := s.Booted().Digest
	w.write(s.Booted().Dir()+"/etc/both", "from a")
	w.stage(s, w.image(b))
	s = w.reboot(s)
	w.write(s.Booted().Dir()+"/etc/both", "from b")
	w.write(s.Booted().Dir()+"/etc/app/app.conf", "edited on b")
	bDigest := s.Booted().Digest

	r := request(s, digest)
	r.Origin = origin("other:2")
	staged, err := s.Stage(ctx, StageRequest{DeployRequest: r})
	must(t, err)
	if !staged.SharesState || len(s.Deployments()) != 3 {
		t.Errorf("staged = %+v of %d", staged, len(s.Deployments()))
	}
	if got, _ := staged.Origin.Get("origin", "container-image-reference"); !strings.Contains(got, "other:2") {
		t.Errorf("origin of the staged = %q", got)
	}
	if got := w.read(deployDir + "/" + digest + "/etc/both"); got != "from a" || strings.Contains(w.read(staged.OriginPath()), "other") {
		t.Errorf("while staged, /etc/both of the rollback = %q", got)
	}
	w.write(s.Booted().Dir()+"/etc/late", "1")
	s = w.reboot(s)
	list := s.Deployments()
	if len(list) != 2 || list[0].Digest != digest || list[1].Digest != bDigest || list[0].SharesState {
		t.Fatalf("list = %+v, want A and B", list)
	}
	for name, want := range map[string]string{"both": "from b", "app/app.conf": "edited on b", "conf": "default", "late": "1"} {
		if got := w.read(list[0].Dir() + "/etc/" + name); got != want {
			t.Errorf("/etc/%s = %q, want %q", name, got, want)
		}
	}
	if got, _ := list[0].Origin.Get("origin", "container-image-reference"); !strings.Contains(got, "other:2") {
		t.Errorf("origin = %q, want the new one", got)
	}
	must(t, s.Cleanup(ctx))
	w.wantNames(stateDir + "/pending")
	w.wantNames(deployDir, digest, bDigest)
}

// TestThereAndBackOffline: the same on a sysroot that is not booted, with the
// arguments edited, so that A is there twice.
func TestThereAndBackOffline(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	a := w.deploy(s, request(s, w.image(osTree("k1"))))
	b := w.deploy(s, request(s, w.image(osTree("k2"))))
	w.write(b.Dir()+"/etc/conf", "edited on b")
	r := request(s, a.Digest)
	r.Kargs = karg.Parse("root=UUID=2")
	d := w.deploy(s, r)
	list := s.Deployments()
	if len(list) != 3 || !list[0].SharesState || list[1].SharesState || !list[2].SharesState || d.Serial != 1 || list[2].Serial != 0 {
		t.Fatalf("list = %+v", list)
	}
	if got := w.read(d.Dir() + "/etc/conf"); got != "edited on b" {
		t.Errorf("/etc/conf = %q", got)
	}
	golden(t, "shared.entries", w.entries(entriesDir), map[string]string{a.Digest: "DIGEST", b.Digest: "DIGEST2"})
	// The state stays while one of them is left.
	must(t, s.Write(context.Background(), list[1:]))
	must(t, s.Cleanup(context.Background()))
	w.wantNames(deployDir, a.Digest, b.Digest)
}

func TestStartFinalizer(t *testing.T) {
	w := newWorld(t)
	s, _ := w.booted(osTree("k1"))
	s.Close()
	o := w.options()
	failed := errors.New("no unit")
	o.StartFinalizer = func(context.Context) error { return failed }
	s, err := Open(w.dir, o)
	must(t, err)
	defer s.Close()
	must(t, s.Lock(context.Background()))
	before := w.snapshot()
	if _, err := s.Stage(context.Background(), StageRequest{DeployRequest: request(s, w.image(osTree("k2")))}); !errors.Is(err, failed) {
		t.Errorf("stage = %v, want the finalizer's error", err)
	}
	if after := w.snapshot(); after != before {
		t.Errorf("the sysroot changed to\n%s", after)
	}
}
