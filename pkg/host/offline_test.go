package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestInstallSwitchUpgradeRollback(t *testing.T) { onBoth(t, testInstallSwitchUpgradeRollback) }

func testInstallSwitchUpgradeRollback(t *testing.T, w *world) {
	ref, one := w.push("1", 1)
	r := w.install(ref, "root=LABEL=root", "rw")
	if !r.Changed || r.Image.ImageDigest != one || r.Staged {
		t.Errorf("install = %+v, want a change to %s at once", r, one)
	}
	w.agree()
	first := r.ID
	s := w.status()
	if s.Status.Booted != nil || len(s.Status.OtherDeployments) != 1 || !s.Status.OtherDeployments[0].Kedge.Next {
		t.Errorf("status of an offline sysroot = %+v, want the one deployment, next and not booted", s.Status)
	}
	if s.Spec.Image == nil || s.Spec.Image.Image != ref || s.Spec.Image.Transport != "registry" {
		t.Errorf("spec.image = %+v, want %s", s.Spec.Image, ref)
	}

	w.write(w.path(first, "etc/edited.conf"), "mine\n")
	ref2, two := w.push("2", 2)
	r = w.switchTo(ref2)
	if r.Image.ImageDigest != two || r.ID == first {
		t.Errorf("switch = %+v, want a deployment of %s", r, two)
	}
	if len(r.Etc) != 1 || r.Etc[0].Path != "/etc/edited.conf" || !r.Etc[0].Conflict {
		t.Errorf("the switch says of /etc %+v, want the conflict in /etc/edited.conf", r.Etc)
	}
	if got := w.file(r.ID, "etc/edited.conf"); got != "mine\n" {
		t.Errorf("/etc/edited.conf after the switch = %q, want the local edit", got)
	}
	if got := w.file(r.ID, "etc/default.conf"); got != "version=2\n" {
		t.Errorf("/etc/default.conf after the switch = %q, want the new default", got)
	}
	if got := w.status().Status.OtherDeployments[0].Kedge.Kargs; !slices.Equal(got, []string{"root=LABEL=root", "rw"}) {
		t.Errorf("kernel arguments after the switch = %q, want those of the installation", got)
	}
	w.agree()

	// The tag moves on: an upgrade follows it, and then there is nothing to do.
	_, three := w.push("2", 3)
	r = w.do(func(h *Host) (*v1.Result, error) { return h.CheckUpgrade(context.Background(), "") })
	if !r.Changed || r.Image.ImageDigest != three {
		t.Errorf("upgrade --check = %+v, want %s", r, three)
	}
	if u := w.status().Status.OtherDeployments[0].CachedUpdate; u == nil || u.ImageDigest != three || *u.Version != "3.0" {
		t.Errorf("cachedUpdate after the check = %+v, want %s", u, three)
	}
	r = w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	if !r.Changed || r.Image.ImageDigest != three {
		t.Errorf("upgrade = %+v, want %s", r, three)
	}
	third := r.ID
	r = w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	if r.Changed || r.ID != third {
		t.Errorf("upgrade again = %+v, want no change", r)
	}
	w.agree()

	// Rolled back, the host follows what it followed then; again undoes it.
	rollback := func() *v1.Result {
		return w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(context.Background()) })
	}
	if r = rollback(); r.Image.ImageDigest != two {
		t.Errorf("rollback = %+v, want %s", r, two)
	}
	w.agree()
	if r = rollback(); r.ID != third {
		t.Errorf("rollback again = %+v, want %s", r, third)
	}
	w.agree()

	h := w.open()
	history, err := h.History(context.Background())
	must(t, err)
	var verbs []string
	for _, e := range history {
		verbs = append(verbs, e.Verb)
	}
	if want := []string{"rollback", "rollback", "remove", "upgrade", "switch", "install"}; !slices.Equal(verbs, want) {
		t.Errorf("history = %q, want %q", verbs, want)
	}
	// The first image went with its deployment.
	images, err := h.Images(context.Background())
	must(t, err)
	if len(images) != 2 {
		t.Errorf("images = %+v, want the two that are deployed", images)
	}
}

func TestDeployByIndexVersionDigest(t *testing.T) { onBoth(t, testDeployByIndexVersionDigest) }

func testDeployByIndexVersionDigest(t *testing.T, w *world) {
	ref, one := w.push("stable", 1)
	w.install(ref)
	_, two := w.push("stable", 2)
	w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	_, three := w.push("3.0", 3)
	for _, c := range []struct {
		target, digest string
		changed        bool
	}{
		{"1", one, true},
		{"0", one, false},
		{"2.0", two, true},
		{strings.TrimPrefix(one, "sha256:"), one, true},
		{two, two, true},
		{three, three, true}, // not kept: fetched by digest
		{two, two, true},
		{"3.0", three, true}, // kept
	} {
		r := w.do(func(h *Host) (*v1.Result, error) { return h.Deploy(context.Background(), c.target) })
		if r.Image.ImageDigest != c.digest || r.Changed != c.changed {
			t.Errorf("deploy %s = %+v, want %s, changed %v", c.target, r, c.digest, c.changed)
		}
		if got := w.status().Spec.Image.Image; got != ref {
			t.Errorf("after deploy %s the host follows %s, want %s", c.target, got, ref)
		}
	}
	w.agree()
	for _, target := range []string{"7", "9.9", "sha256:" + strings.Repeat("0", 64)} {
		_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Deploy(context.Background(), target) })
		wantKind(t, err, fault.NotFound, "deploy "+target)
	}
}

func TestUpgradeToTag(t *testing.T) { onBoth(t, testUpgradeToTag) }

func testUpgradeToTag(t *testing.T, w *world) {
	ref, _ := w.push("1", 1)
	w.install(ref)
	ref2, two := w.push("2", 2)
	r := w.do(func(h *Host) (*v1.Result, error) {
		return h.Upgrade(context.Background(), UpgradeOptions{Tag: "2"})
	})
	if r.Image.ImageDigest != two || w.status().Spec.Image.Image != ref2 {
		t.Errorf("upgrade --tag 2 = %+v, following %+v", r, w.status().Spec.Image)
	}
}

func TestLocalLayoutIsFollowedFromAnywhere(t *testing.T) {
	onBoth(t, testLocalLayoutIsFollowedFromAnywhere)
}

func testLocalLayoutIsFollowedFromAnywhere(t *testing.T, w *world) {
	layout := t.TempDir()
	smallimage.Layout(t, layout+"/oci", map[string]ociv1.Image{"x": image(t, 1)})
	t.Chdir(layout)
	w.install("oci:oci:x")
	t.Chdir("/")
	r := w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(context.Background(), UpgradeOptions{}) })
	if r.Changed {
		t.Errorf("upgrade = %+v, want no change", r)
	}
	if got := w.status().Spec.Image; got.Transport != "oci" || got.Image != layout+"/oci:x" {
		t.Errorf("spec.image = %+v, want the absolute path", got)
	}
}

func TestKargs(t *testing.T) { onBoth(t, testKargs) }

func testKargs(t *testing.T, w *world) {
	imageArgs := func(args string) smallimage.Entry {
		return smallimage.File("usr/lib/bootc/kargs.d/10.toml", 0, "kargs = ["+args+"]\n")
	}
	ref, _ := w.push("1", 1, imageArgs(`"console=ttyS0", "old=1"`))
	w.install(ref, "rw")
	show := func() string {
		args, err := w.open().ShowKargs(context.Background())
		must(t, err)
		return strings.Join(args, " ")
	}
	if got := show(); got != "rw console=ttyS0 old=1" {
		t.Errorf("kernel arguments after the installation = %q", got)
	}
	r := w.do(func(h *Host) (*v1.Result, error) {
		return h.Kargs(context.Background(), KargsOptions{Append: []string{"quiet", `a="b c"`}, Delete: []string{"rw"}, Replace: []string{"console=tty0"}})
	})
	if got := show(); got != `console=tty0 old=1 quiet a="b c"` || !r.Changed {
		t.Errorf("kernel arguments after the edit = %q", got)
	}
	w.agree()
	ref, _ = w.push("2", 2, imageArgs(`"console=ttyS0", "new=1"`))
	w.switchTo(ref)
	if got := show(); got != `console=tty0 quiet a="b c" new=1` {
		t.Errorf("kernel arguments after the switch = %q, want the image's changes and the machine's own", got)
	}
	r = w.do(func(h *Host) (*v1.Result, error) {
		return h.Kargs(context.Background(), KargsOptions{Replace: []string{"console=tty0"}})
	})
	if r.Changed {
		t.Errorf("an edit that changes nothing = %+v", r)
	}
	for _, c := range []struct {
		o    KargsOptions
		kind fault.Kind
	}{
		{KargsOptions{Delete: []string{"absent"}}, fault.NotFound},
		{KargsOptions{Append: []string{"two words"}}, fault.Usage},
		{KargsOptions{Append: []string{"ostree=/x"}}, fault.Usage},
		{KargsOptions{Append: []string{""}}, fault.Usage},
	} {
		_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Kargs(context.Background(), c.o) })
		wantKind(t, err, c.kind, "kargs")
	}
}

func TestPinCleanupFsck(t *testing.T) { onBoth(t, testPinCleanupFsck) }

func testPinCleanupFsck(t *testing.T, w *world) {
	ctx := context.Background()
	ref, _ := w.push("1", 1)
	first := w.install(ref).ID
	r := w.do(func(h *Host) (*v1.Result, error) { return h.Pin(ctx, 0, true) })
	if !r.Changed || r.ID != first {
		t.Errorf("pin = %+v", r)
	}
	for version := 2; version <= 4; version++ {
		w.push("1", version)
		w.do(func(h *Host) (*v1.Result, error) { return h.Upgrade(ctx, UpgradeOptions{}) })
	}
	list, err := w.open().store.Deployments()
	must(t, err)
	if len(list) != 3 || list[2].id != first || !list[2].pinned {
		t.Errorf("after three upgrades there are %d deployments, want the new one, the one before and the pinned first", len(list))
	}
	w.agree()

	clean := func(o CleanupOptions) *v1.Cleanup {
		c, err := w.open().Cleanup(ctx, o)
		must(t, err)
		return c
	}
	if c := clean(CleanupOptions{Rollback: true}); len(c.Deployments) != 1 || c.Objects == 0 {
		t.Errorf("cleanup --rollback = %+v, want one deployment and its objects gone", c)
	}
	if c := clean(CleanupOptions{}); c.Objects != 0 || len(c.Deployments) != 0 {
		t.Errorf("cleanup again = %+v, want nothing to do", c)
	}
	_, err = w.open().Cleanup(ctx, CleanupOptions{Rollback: true})
	wantKind(t, err, fault.Conflict, "pinned")
	w.agree()

	check, err := w.open().Fsck(ctx, FsckOptions{})
	must(t, err)
	if check.Objects == 0 || check.Deployments != 2 || len(check.Problems) != 0 {
		t.Errorf("fsck = %+v, want no problem", check)
	}
	object := w.damageLargest()
	check, err = w.open().Fsck(ctx, FsckOptions{})
	must(t, err)
	if len(check.Problems) == 0 || !strings.Contains(strings.Join(check.Problems, " "), object) {
		t.Errorf("fsck of a damaged repository = %+v, want the object named", check)
	}
}

// damageLargest takes the end off the largest file of the store and returns a
// part of its name.
func (w *world) damageLargest() string {
	w.t.Helper()
	pattern := map[string]string{"ostree": "ostree/repo/objects/*/*.file", "composefs": "composefs/objects/*/*"}[w.backend]
	objects, err := filepath.Glob(filepath.Join(w.dir, pattern))
	must(w.t, err)
	slices.SortFunc(objects, func(a, b string) int { return int(fileSize(w.t, b) - fileSize(w.t, a)) })
	data, err := os.ReadFile(objects[0])
	must(w.t, err)
	must(w.t, os.Remove(objects[0])) // it may be sealed
	must(w.t, os.WriteFile(objects[0], data[:10], 0o644))
	return strings.TrimSuffix(filepath.Base(objects[0]), ".file")
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Lstat(path)
	must(t, err)
	return st.Size()
}

func TestDiff(t *testing.T) { onBoth(t, testDiff) }

func testDiff(t *testing.T, w *world) {
	ctx := context.Background()
	ref, one := w.push("1", 1)
	w.install(ref)
	ref, _ = w.push("2", 1, smallimage.File("usr/bin/new", 0o755, "new\n"), smallimage.File("usr/share/empty", 0, "full\n"),
		smallimage.File("etc/hostname", 0o600, "small\n"), smallimage.Symlink("usr/bin/ping", "sh"), smallimage.File("usr/share/doc0/.wh.page1", 0, ""))
	w.switchTo(ref)
	want := []string{
		"type /usr/bin/ping", "added /usr/bin/new", "metadata /etc/hostname", "removed /usr/share/doc0/page1", "content /usr/share/empty",
	}
	for _, names := range [][2]string{{"", ""}, {"1", "0"}, {"1", ""}, {one, "0"}} {
		changes, err := w.open().Diff(ctx, names[0], names[1])
		must(t, err)
		var got []string
		for _, c := range changes {
			got = append(got, c.Change+" "+c.Path)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("diff %q = %q, want %q", names, got, want)
		}
	}
	_, err := w.open().Diff(ctx, "nothing/like:this", "")
	wantKind(t, err, fault.NotFound, "nothing/like:this")
}
