package boot

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/gvariant"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// boot pretends that the machine runs from a deployment: w.host becomes its
// root as ostree-prepare-root leaves it.
func (w *world) boot(d *Deployment) {
	w.t.Helper()
	must(w.t, os.RemoveAll(w.host))
	for _, dir := range []string{"run", "proc", "var"} {
		must(w.t, os.MkdirAll(filepath.Join(w.host, dir), 0o755))
	}
	must(w.t, os.Symlink(w.dir, filepath.Join(w.host, "sysroot")))
	must(w.t, os.Symlink(filepath.Join(w.dir, "boot"), filepath.Join(w.host, "boot")))
	st, err := os.Stat(filepath.Join(w.dir, d.Dir()))
	must(w.t, err)
	sys := st.Sys().(*syscall.Stat_t)
	devino := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, sys.Dev), sys.Ino)
	meta := object.Dict{{Key: "backing-root-device-inode", Value: gvariant.Value{Type: "(tt)", Data: devino}}}
	must(w.t, os.WriteFile(filepath.Join(w.host, runBooted), meta.Encode(), 0o644))
	must(w.t, os.WriteFile(filepath.Join(w.host, "proc/cmdline"), []byte("quiet\n"), 0o644))
}

// booted returns a sysroot that the machine runs from.
func (w *world) booted(t tree) (*Sysroot, *Deployment) {
	w.t.Helper()
	s := w.open()
	must(w.t, s.InitStateroot("os"))
	w.deploy(s, w.commit(t, "1"), "os")
	s.Close()
	w.boot(s.list[0])
	s = w.open()
	return s, s.Booted()
}

func stageRequest(w *world, s *Sysroot, commit string) StageRequest {
	return StageRequest{DeployRequest: DeployRequest{Stateroot: "os", Commit: commit, Origin: origin(w), Merge: s.MergeFor("os")}}
}

func TestBootedIsFoundByDeviceAndInode(t *testing.T) {
	w := newWorld(t)
	s, d := w.booted(osTree("k1"))
	if !s.IsBooted() || d == nil || d.Index != 0 {
		t.Fatalf("booted deployment = %v, want the only one", d)
	}
	for _, path := range []string{w.host, filepath.Join(w.host, "sysroot"), w.dir} {
		o, err := Open(path, w.options())
		must(t, err)
		if o.Booted() == nil {
			t.Errorf("opened as %s: not seen as the booted sysroot", path)
		}
		o.Close()
	}
	other := newWorld(t)
	opts := other.options()
	opts.Host = w.host
	o, err := Open(other.dir, opts)
	must(t, err)
	defer o.Close()
	if o.IsBooted() {
		t.Error("another sysroot is seen as the booted one")
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

	c2 := w.commit(osTree("k2").with(tree{"usr/etc/conf": "default 2", "usr/etc/fresh": "new default"}), "2")
	staged, err := s.Stage(ctx, stageRequest(w, s, c2))
	must(t, err)
	if !staged.Staged || !staged.FinalizationLocked || !staged.Ours || staged.Index != 0 || staged.Checksum != c2 {
		t.Errorf("staged deployment = %+v, want it first, locked and kedge's", staged)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "boot/ostree", staged.bootName(), "vmlinuz-6.1.0")); err != nil {
		t.Errorf("kernel after staging: %v, want it in place", err)
	}
	if s.Deployments()[1].Checksum != old.Checksum || len(s.Deployments()) != 2 {
		t.Errorf("list while staged has %d deployments, want the staged and the booted one", len(s.Deployments()))
	}
	must(t, s.Cleanup(ctx))
	if _, err := os.Stat(filepath.Join(w.dir, staged.Dir())); err != nil {
		t.Errorf("the staged deployment after a cleanup: %v", err)
	}

	must(t, os.WriteFile(filepath.Join(etc, "after"), []byte("2"), 0o600))
	must(t, os.Remove(filepath.Join(etc, "before")))
	must(t, os.WriteFile(filepath.Join(etc, ".updated"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(w.host, "var/.updated"), nil, 0o644))
	result, err := s.Finalize(ctx)
	must(t, err)
	if result.Etc.Files > 2 || result.Etc.Largest > LargeFileForTest {
		t.Errorf("finalisation wrote %+v, want only the file that is new since the staging", result.Etc)
	}
	d := s.Deployments()[0]
	if d.Staged || d.Checksum != c2 || s.Staged() != nil {
		t.Errorf("default after finalisation = %+v, want the new deployment", d)
	}
	want := map[string]string{"conf": "default 2", "fresh": "new default", "after": "2", "big": big}
	for name, content := range want {
		if got := w.read(d.Dir() + "/etc/" + name); got != content {
			t.Errorf("new /etc/%s has %d bytes %.20q, want %.20q", name, len(got), got, content)
		}
	}
	for _, gone := range []string{
		filepath.Join(w.dir, d.Dir(), "etc/before"), filepath.Join(w.dir, d.Dir(), "etc/.updated"),
		filepath.Join(w.host, "var/.updated"), filepath.Join(w.host, markerFile), filepath.Join(w.host, lockedFile),
	} {
		if _, err := os.Lstat(gone); err == nil {
			t.Errorf("%s is still there after finalisation", gone)
		}
	}
	if got := s.Booted(); got == nil || !got.same(old) {
		t.Errorf("booted after finalisation = %v, want the old deployment", got)
	}
	if out := run(t, "ostree", "admin", "--sysroot="+w.dir, "status"); strings.Index(out, c2) > strings.Index(out, old.Checksum) || !strings.Contains(out, c2) {
		t.Errorf("ostree admin status:\n%s", out)
	}
}

// LargeFileForTest is what no file written at shutdown may exceed.
const LargeFileForTest = 1 << 20

func TestStageReplacesStaged(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, _ := w.booted(osTree("k1"))
	first, err := s.Stage(ctx, stageRequest(w, s, w.commit(osTree("k2"), "2")))
	must(t, err)
	second, err := s.Stage(ctx, stageRequest(w, s, w.commit(osTree("k3"), "3")))
	must(t, err)
	if _, err := os.Stat(filepath.Join(w.dir, first.Dir())); err == nil {
		t.Error("the deployment that was staged first is still there")
	}
	if len(s.Deployments()) != 2 || !s.Staged().same(second) {
		t.Errorf("list = %v, want the second staged and the booted one", s.Deployments())
	}
	must(t, s.Write(ctx, s.Deployments()[1:]))
	if s.Staged() != nil || len(s.Deployments()) != 1 {
		t.Errorf("after unstaging the list is %v, want the booted one", s.Deployments())
	}
}

func TestFinalizeLeavesAlone(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, _ := w.booted(osTree("k1"))
	if r, err := s.Finalize(ctx); err != nil || r.Deployment != nil {
		t.Errorf("finalize with nothing staged = %v, %v; want nothing done", r, err)
	}
	r := stageRequest(w, s, w.commit(osTree("k2"), "2"))
	r.Hold = true
	_, err := s.Stage(ctx, r)
	must(t, err)
	if r, err := s.Finalize(ctx); err != nil || r.Deployment != nil {
		t.Errorf("finalize of a held deployment = %v, %v; want nothing done", r, err)
	}
	must(t, s.SetHold(false))
	marker, err := s.readMarker()
	must(t, err)
	marker.Delete(kedgeKey)
	must(t, os.WriteFile(filepath.Join(w.host, markerFile), marker.Encode(), 0o644))
	must(t, s.Load())
	if r, err := s.Finalize(ctx); err != nil || r.Deployment != nil {
		t.Errorf("finalize of what libostree staged = %v, %v; want nothing done", r, err)
	}
}

func TestFinalizeFailureKeepsTheOldDefault(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	_, err := s.Stage(ctx, stageRequest(w, s, w.commit(osTree("k2").with(tree{"usr/etc/thing/": ""}), "2")))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.dir, old.Dir(), "etc/thing"), []byte("a file"), 0o644))
	if _, err := s.Finalize(ctx); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "/etc/thing") {
		t.Errorf("finalize = %v, want a conflict that names /etc/thing", err)
	}
	f, err := s.Failure()
	must(t, err)
	if f == nil || !strings.Contains(f.Message, "/etc/thing") || f.Time.IsZero() {
		t.Errorf("failure stamp = %+v, want the reason and the time", f)
	}
	must(t, s.Load())
	if d := s.Deployments(); len(d) != 2 || !d[1].Booted {
		t.Errorf("list after the failure = %v, want the staged one and the old default", d)
	}
	if out := run(t, "ostree", "admin", "--sysroot="+w.dir, "status"); !strings.Contains(out, old.Checksum) {
		t.Errorf("ostree admin status:\n%s", out)
	}
	must(t, os.Remove(filepath.Join(w.dir, old.Dir(), "etc/thing")))
	_, err = s.Finalize(ctx)
	must(t, err)
	if f, err := s.Failure(); f != nil || err != nil {
		t.Errorf("failure stamp after a finalisation that worked = %v, %v; want none", f, err)
	}
}

func TestStageRefusesTypeConflict(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, old := w.booted(osTree("k1"))
	must(t, os.WriteFile(filepath.Join(w.dir, old.Dir(), "etc/thing"), []byte("a file"), 0o644))
	_, err := s.Stage(ctx, stageRequest(w, s, w.commit(osTree("k2").with(tree{"usr/etc/thing/": ""}), "2")))
	if fault.KindOf(err) != fault.Conflict || s.Staged() != nil {
		t.Errorf("stage = %v, want a conflict and nothing staged", err)
	}
	names, err := dirfd.ReadNames(s.root, deployDir("os"))
	must(t, err)
	if len(names) != 2 {
		t.Errorf("deploy directory after the refusal has %v, want the old deployment alone", names)
	}
}

func TestStagedSurvivesOrIsDroppedByWrite(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s, _ := w.booted(osTree("k1"))
	c := w.commit(osTree("k2"), "2")
	_, err := s.Stage(ctx, stageRequest(w, s, c))
	must(t, err)
	must(t, s.Write(ctx, s.Deployments()))
	if s.Staged() == nil {
		t.Error("a staged deployment that stands first in the new list was dropped")
	}
	must(t, s.Write(ctx, s.Deployments()[1:]))
	if s.Staged() != nil {
		t.Error("a staged deployment that is not in the new list is still staged")
	}
	if err := s.Write(ctx, nil); fault.KindOf(err) != fault.Conflict {
		t.Errorf("removing the booted deployment = %v, want a conflict", err)
	}
}
