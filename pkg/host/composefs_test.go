package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree"
)

const prepareRoot = "usr/lib/ostree/prepare-root.conf"

// TestCFSIsOSTrees: the composefs image of a deployment has the bytes that
// libostree with composefs writes for the same commit.
func TestCFSIsOSTrees(t *testing.T) {
	lab.Need(t, "mmdebstrap")
	w := newWorld(t)
	ref, _ := w.push("1", 1, smallimage.File(prepareRoot, 0, "[composefs]\nenabled=yes\n"))
	id := w.install(ref).ID
	name, _ := strings.CutPrefix(id, "default/")
	commit, _, _ := strings.Cut(name, ".")
	deploy := filepath.Join(w.dir, "ostree/deploy/default/deploy")
	ours, err := os.ReadFile(filepath.Join(deploy, name, cfsName))
	must(t, err)

	w.deployWithSid(commit)
	theirs, err := os.ReadFile(filepath.Join(deploy, commit+".1", cfsName))
	must(t, err)
	if string(ours) != string(theirs) {
		t.Errorf("%s has %d bytes and is not that of libostree, which has %d", cfsName, len(ours), len(theirs))
	}
	st, err := os.Stat(filepath.Join(deploy, name, cfsName))
	must(t, err)
	if st.Mode() != 0o644 {
		t.Errorf("%s has the mode %v, want 0644", cfsName, st.Mode())
	}
}

// deployWithSid deploys a commit with an ostree that has composefs.
func (w *world) deployWithSid(commit string) {
	w.t.Helper()
	sid := filepath.Join(lab.SourceDir(), "hack/lab/mkcomposefs.sh")
	cmd := exec.Command(sid, "ostree", "admin", "deploy", "--sysroot="+w.dir, "--os=default", "--retain", commit)
	cmd.Env = append(os.Environ(), "OSTREE_SYSROOT_OPTS=skip-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("ostree admin deploy: %v: %s", err, out)
	}
}

// TestFsckMissesSeals: libostree deploys a commit that demands fs-verity to a
// repository that does not; the host would not boot, and fsck tells.
func TestFsckMissesSeals(t *testing.T) {
	lab.Need(t, "mmdebstrap")
	w := newWorld(t)
	ref, _ := w.push("1", 1)
	id := w.install(ref).ID
	if p := w.problems(); len(p) > 0 {
		t.Fatalf("fsck of a new host: %q", p)
	}
	over := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(over, filepath.Dir(prepareRoot)), 0o755))
	must(t, os.WriteFile(filepath.Join(over, prepareRoot), []byte("[composefs]\nenabled=verity\n"), 0o644))
	base, _, _ := strings.Cut(strings.TrimPrefix(id, "default/"), ".")
	commit := strings.TrimSpace(w.ostree("commit", "--repo="+w.dir+"/"+repoDir, "--branch=verity",
		"--owner-uid=0", "--owner-gid=0", "--tree=ref="+base, "--tree=dir="+over))
	w.deployWithSid(commit)
	for _, p := range w.problems() {
		if strings.Contains(p, commit) && strings.Contains(p, "demands fs-verity") {
			return
		}
	}
	t.Errorf("fsck does not tell that %s.0 is not sealed: %q", commit, w.problems())
}

// TestComposefsRefused: an image that its initramfs could not mount here is not
// imported, let alone deployed.
func TestComposefsRefused(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.push("1", 1)
	w.install(ref)
	listRefs := func() string { return w.ostree("refs", "--repo="+w.dir+"/"+repoDir) }
	before, refs := w.snapshot(), listRefs()
	if repo, err := ostree.Open(filepath.Join(w.dir, repoDir)); err != nil {
		t.Fatal(err)
	} else if repo.CheckVerity() == nil {
		lab.Skip(t, "the temporary directory has fs-verity")
	}
	for value, words := range map[string]string{"verity": "demands fs-verity", "signed": "demands a signature", "yess": "means nothing"} {
		for _, conf := range []string{prepareRoot, "etc/ostree/prepare-root.conf"} {
			ref, _ := w.push(value, 2, smallimage.File(conf, 0, "[composefs]\nenabled="+value+"\n"))
			_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) })
			wantKind(t, err, fault.Conflict, words)
			if fault.HintOf(err) == "" {
				t.Errorf("enabled=%s: the refusal has no hint", value)
			}
			if got := w.snapshot(); got != before {
				t.Errorf("enabled=%s: boot entries and deployments changed:\n%s\nbefore:\n%s", value, got, before)
			}
			if got := listRefs(); got != refs {
				t.Errorf("enabled=%s: the repository's refs changed:\n%s\nbefore:\n%s", value, got, refs)
			}
		}
	}
	// What /etc says replaces what /usr/lib says.
	ref, _ = w.push("both", 2, smallimage.File(prepareRoot, 0, "[composefs]\nenabled=verity\n"),
		smallimage.File("etc/ostree/prepare-root.conf", 0, "[composefs]\nenabled=yes\n"))
	if _, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) }); err != nil {
		t.Errorf("enabled=yes in /etc: %v", err)
	}
}

// TestVerityInConfig: a repository whose configuration asks for fs-verity gets
// it or an error, and "maybe" gets on without.
func TestVerityInConfig(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.push("1", 1)
	w.install(ref)
	repo, err := ostree.Open(filepath.Join(w.dir, repoDir))
	must(t, err)
	has := repo.CheckVerity() == nil
	must(t, repo.SetConfig(repo.Config().Set("ex-integrity", "fsverity", "maybe")))
	ref, _ = w.push("2", 2, smallimage.File("usr/share/new", 0, "new"))
	to := func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) }
	if _, err := w.try(to); err != nil {
		t.Errorf("with fsverity=maybe: %v", err)
	}
	if p := w.problems(); len(p) > 0 {
		t.Errorf("fsck, with fsverity=maybe: %q", p)
	}
	must(t, repo.SetConfig(repo.Config().Set("ex-integrity", "fsverity", "yes")))
	ref, _ = w.push("3", 3, smallimage.File("usr/share/new", 0, "newer"))
	switch _, err := w.try(to); {
	case has && err != nil:
		t.Errorf("with fsverity=yes: %v", err)
	case !has:
		wantKind(t, err, fault.Conflict, "fs-verity")
		if p := w.problems(); len(p) != 1 || !strings.Contains(p[0], "fs-verity seal") {
			t.Errorf("fsck, with fsverity=yes and nothing sealed: %q, want one problem about that", p)
		}
	}
}

func (w *world) problems() []string {
	w.t.Helper()
	h := w.open()
	defer h.Close()
	c, err := h.Fsck(context.Background(), FsckOptions{})
	must(w.t, err)
	return c.Problems
}
