package boot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/karg"
)

// labelOf follows a name in a snapshot that stands for the file's label.
const labelOf = " (label)"

// snapshot describes every file of a sysroot outside its repository.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, top := range []string{"boot", "ostree"} {
		err := filepath.WalkDir(filepath.Join(dir, top), func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, _ := filepath.Rel(dir, p)
			if name == "ostree/repo" {
				return fs.SkipDir
			}
			st, err := os.Lstat(p)
			if err != nil {
				return err
			}
			sys := st.Sys().(*syscall.Stat_t)
			text := fmt.Sprintf("%v %d:%d", st.Mode(), sys.Uid, sys.Gid)
			label := make([]byte, 256)
			if n, err := unix.Lgetxattr(p, "security.selinux", label); err == nil {
				out[name+labelOf] = strings.TrimRight(string(label[:n]), "\x00")
			}
			switch {
			case st.Mode().IsRegular():
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				if strings.HasSuffix(name, ".conf") || strings.HasSuffix(name, ".origin") {
					text += "\n" + string(b)
				} else {
					text += fmt.Sprintf(" %x", sha256.Sum256(b))
				}
			case st.Mode().Type() == fs.ModeSymlink:
				target, _ := os.Readlink(p)
				text += " -> " + target
			}
			out[name] = text
			return nil
		})
		must(t, err)
	}
	return out
}

var oldEntryName = regexp.MustCompile(`(ostree-[0-9]+)-[a-z]+\.conf$`)

// likeOurs takes what differs between libostree's versions out of a snapshot
// that one of them made: 2022.7 names entries with the stateroot, fills a new
// stateroot's var itself and knows no backing directory; 2025.2 writes aboot
// keys for every kernel; 2026.4 is built with composefs.
func likeOurs(o oracle, s map[string]string) map[string]string {
	out := map[string]string{}
	for name, text := range s {
		if !o.flat {
			name = oldEntryName.ReplaceAllString(name, "$1.conf")
		}
		lines := slices.DeleteFunc(strings.Split(text, "\n"), func(l string) bool { return strings.HasPrefix(l, "aboot") })
		out[name] = strings.Join(lines, "\n")
	}
	drop := []string{"ostree/lock"}
	if !o.flat {
		drop = append(drop, "ostree/deploy/os/backing", "ostree/deploy/os/var")
	}
	maps.DeleteFunc(out, func(name, _ string) bool {
		if path.Base(name) == ".ostree.cfs" { // part of the checkout, which is not boot's
			return true
		}
		return slices.ContainsFunc(drop, func(d string) bool { return name == d || strings.HasPrefix(name, d+"/") })
	})
	return out
}

// steps is a life of a machine: what is deployed, and what its admin does to
// /etc of the deployment that is then the default.
var steps = []struct {
	name    string
	tree    tree
	version string
	policy  bool // the tree has a SELinux policy
	etc     func(t testing.TB, etc string)
}{
	{name: "first", tree: osTree("k1"), version: "1"},
	{
		name: "new kernel and etc edits", tree: osTree("k2").with(tree{"usr/etc/conf": "default 2", "usr/etc/new.d/a": "a"}), version: "2",
		etc: func(t testing.TB, etc string) {
			must(t, os.WriteFile(etc+"/local", []byte("mine"), 0o600))
			must(t, os.WriteFile(etc+"/app/app.conf", []byte("edited"), 0o644))
			must(t, os.MkdirAll(etc+"/own.d/deep", 0o750))
			must(t, os.WriteFile(etc+"/own.d/deep/file", []byte("x"), 0o4755))
			must(t, os.Symlink("/nowhere", etc+"/own.d/link"))
			must(t, os.Chown(etc+"/own.d/deep/file", 7, 8))
		},
	},
	{name: "same kernel", tree: osTree("k2").with(tree{"usr/bin/hello": "3"}), version: "2"},
	{
		name: "same kernel again: only the farm flips", tree: osTree("k2").with(tree{"usr/bin/hello": "4"}), version: "2",
		etc: func(t testing.TB, etc string) {
			must(t, os.Remove(etc+"/link"))
			must(t, os.RemoveAll(etc+"/own.d/deep"))
		},
	},
	{name: "no initramfs name", tree: osTree("k3").without("usr/lib/modules/6.1.0/initramfs.img").with(tree{"usr/lib/modules/6.1.0/initramfs": "i"}), version: ""},
	{name: "device tree and HMAC", tree: osTree("k4").with(tree{
		"usr/lib/modules/6.1.0/devicetree": "dt", "usr/lib/modules/6.1.0/.vmlinuz.hmac": "h",
	}), version: "4"},
	{name: "device tree directory", tree: osTree("k5").with(tree{
		"usr/lib/modules/6.1.0/dtb/b/z.dtb": "bz", "usr/lib/modules/6.1.0/dtb/a.dtb": "a", "usr/lib/modules/6.1.0/dtb/b.dtb": "b",
	}), version: "5"},
	{name: "no initramfs at all", tree: osTree("k6").without("usr/lib/modules/6.1.0/initramfs.img"), version: "6"},
	{name: "var of the image", tree: osTree("k7").with(tree{"var/lib/x": "x"}), version: "7"},
	{name: "SELinux policy", tree: osTree("k8"), policy: true, version: "8"},
	{
		name: "SELinux policy and local changes", tree: osTree("k9"), policy: true, version: "9",
		etc: func(t testing.TB, etc string) {
			must(t, os.WriteFile(etc+"/labelled", []byte("x"), 0o644))
			must(t, unix.Setxattr(etc+"/labelled", "security.selinux", []byte("local_t\x00"), 0))
		},
	},
}

// policy is Debian's, from this machine.
func policy(t testing.TB) tree {
	t.Helper()
	const dir = "/etc/selinux/default"
	if _, err := os.Stat(dir + "/contexts/files/file_contexts"); err != nil {
		lab.Skip(t, "selinux-policy-default is not installed")
	}
	out := tree{
		"usr/etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=default\n", "usr/etc/passwd": "root", "usr/etc/rc.d/init.d/x": "x",
		"usr/sbin/semodule": refresher(t),
	}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		// The compiled contexts would count only if they are newer.
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(p, ".bin") {
			return err
		}
		b, err := os.ReadFile(p)
		out["usr"+p] = string(b)
		return err
	}))
	return out
}

// refresher returns a static semodule for images that have a policy.
func refresher(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "semodule")
	cmd := exec.Command("go", "build", "-o", bin, "./testdata/semodule")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(bin)
	must(t, err)
	return string(b)
}

// TestPolicyRefresh: local changes to the policy are linked with the new
// image's, by the image's own program; without any nothing is run.
func TestPolicyRefresh(t *testing.T) {
	lab.Need(t, "bwrap", "go")
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	image := osTree("k1").with(policy(t)).with(tree{"usr/lib/semodule-refreshes": ""})
	w.deploy(s, w.commit(image, "1"), "os")
	d := w.deploy(s, w.commit(image, "2"), "os")
	stamp := func() error {
		_, err := os.Stat(filepath.Join(w.dir, d.Dir(), "etc/selinux/refreshed"))
		return err
	}
	if stamp() == nil {
		t.Error("the policy was refreshed without local changes")
	}
	must(t, os.MkdirAll(filepath.Join(w.dir, d.Dir(), "etc/selinux/default/active/modules"), 0o755))
	must(t, os.WriteFile(filepath.Join(w.dir, d.Dir(), "etc/selinux/default/active/modules/mine"), []byte("m"), 0o644))
	d = w.deploy(s, w.commit(image, "3"), "os")
	if err := stamp(); err != nil {
		t.Errorf("the policy was not refreshed after local changes: %v", err)
	}
}

// TestSameBytesAsOSTree lets the real program and kedge lead two machines
// through the same life and compares the disks after each step.
func TestSameBytesAsOSTree(t *testing.T) {
	ctx := context.Background()
	for _, o := range oracles(t) {
		t.Run(o.name, func(t *testing.T) {
			theirs, ours := newWorld(t), newWorld(t)
			s := ours.open()
			must(t, s.InitStateroot("os"))
			o.admin(theirs, "os-init", "os")
			originFile := filepath.Join(t.TempDir(), "origin")
			must(t, os.WriteFile(originFile, []byte("[origin]\nrefspec=test\n"), 0o644))
			for i, step := range steps {
				if step.etc != nil {
					step.etc(t, filepath.Join(ours.dir, s.Deployments()[0].Dir(), "etc"))
					step.etc(t, filepath.Join(theirs.dir, s.Deployments()[0].Dir(), "etc"))
				}
				if step.policy {
					step.tree = step.tree.with(policy(t))
				}
				c := ours.commit(step.tree, step.version)
				if theirs.commit(step.tree, step.version) != c {
					t.Fatal("the two repositories differ")
				}
				args := []string{"deploy", "--os=os", "--origin-file=" + originFile}
				r := DeployRequest{Stateroot: "os", Commit: c, Origin: origin(ours), Merge: s.MergeFor("os")}
				if i == 0 {
					args = append(args, "--karg-append=root=LABEL=root", "--karg-append=console=ttyS0", "--karg-append=console=tty0")
					r.Kargs = karg.Parse("root=LABEL=root console=ttyS0 console=tty0")
				}
				o.admin(theirs, append(args, c)...)
				d, err := s.Deploy(ctx, r)
				must(t, err)
				must(t, s.Write(ctx, s.With(d, Retention{Merge: r.Merge})))
				must(t, s.Cleanup(ctx))
				want, got := likeOurs(o, snapshot(t, theirs.dir)), likeOurs(o, snapshot(t, ours.dir))
				// Where the kernel runs without SELinux libostree cannot label
				// directories, symlinks and origins; kedge can.
				maps.DeleteFunc(got, func(name, _ string) bool {
					return strings.HasSuffix(name, labelOf) && want[name] == ""
				})
				if step.policy && want["ostree/deploy/os/deploy/"+d.Name()+"/etc/passwd"+labelOf] == "" {
					t.Error("ostree labelled nothing: there is nothing to compare")
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("%s: what ostree %s has (-) and kedge (+):\n%s", step.name, o.name, diff)
				}
				if a, b := refsOf(t, theirs), refsOf(t, ours); !maps.Equal(a, b) {
					t.Errorf("%s: refs are %v, ostree's are %v", step.name, b, a)
				}
			}
			sameTimes(t, theirs, ours, s.Deployments()[0])
		})
	}
}

func refsOf(t testing.TB, w *world) map[string]string {
	refs, err := w.repo.Refs("ostree/")
	must(t, err)
	return refs
}

// sameTimes compares the modification times in /etc: those of the image's
// files are the same on every machine.
func sameTimes(t *testing.T, theirs, ours *world, d *Deployment) {
	for _, name := range []string{"conf", "app/app.conf", "local"} {
		a, err := os.Stat(filepath.Join(theirs.dir, d.Dir(), "etc", name))
		must(t, err)
		b, err := os.Stat(filepath.Join(ours.dir, d.Dir(), "etc", name))
		must(t, err)
		if x, y := a.ModTime().Unix(), b.ModTime().Unix(); x-y > 60 || y-x > 60 {
			t.Errorf("/etc/%s has the time %d, ostree gives it %d", name, y, x)
		}
	}
}

// TestTakingTurns lets ostree and kedge work on one sysroot one after the
// other: each continues what the other left.
func TestTakingTurns(t *testing.T) {
	ctx := context.Background()
	for _, o := range oracles(t) {
		t.Run(o.name, func(t *testing.T) {
			w := newWorld(t)
			o.admin(w, "os-init", "os")
			c := []string{w.commit(osTree("k1"), "1"), w.commit(osTree("k2"), "2"), w.commit(osTree("k3"), "3"), w.commit(osTree("k3"), "4")}
			for i, sum := range c {
				must(t, w.repo.SetRefs(ctx, map[string]string{fmt.Sprintf("images/%d", i): sum}))
			}
			o.admin(w, "deploy", "--os=os", "--karg-append=quiet", c[0])
			expect := func(s *Sysroot, want ...string) {
				t.Helper()
				must(t, s.Load())
				var got []string
				for _, d := range s.Deployments() {
					got = append(got, d.Checksum)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("kedge lists %v, want %v", got, want)
				}
				status := o.admin(w, "status")
				at := -1
				for _, sum := range want {
					next := strings.Index(status[at+1:], sum)
					if next < 0 {
						t.Fatalf("ostree does not list %v in this order:\n%s", want, status)
					}
					at += 1 + next
				}
			}
			s := w.open()
			expect(s, c[0])
			must(t, os.WriteFile(filepath.Join(w.dir, s.Deployments()[0].Dir(), "etc/mine"), []byte("1"), 0o644))
			second := w.deploy(s, c[1], "os")
			expect(s, c[1], c[0])
			if got := second.Kargs().String(); got != "quiet" {
				t.Errorf("kernel arguments = %q, want those of ostree's deployment", got)
			}
			s.Unlock()
			o.admin(w, "deploy", "--os=os", c[2])
			must(t, s.Lock(ctx))
			expect(s, c[2], c[1])
			if got := w.read(s.Deployments()[0].Dir() + "/etc/mine"); got != "1" {
				t.Errorf("/etc/mine through both = %q, want it kept", got)
			}
			w.deploy(s, c[3], "os")
			expect(s, c[3], c[2])
			s.Unlock()
			o.admin(w, "undeploy", "0")
			o.admin(w, "cleanup")
			must(t, s.Lock(ctx))
			expect(s, c[2])
			must(t, s.SetPinned(s.Deployments()[0], true))
			if status := o.admin(w, "status"); !strings.Contains(status, "Pinned: yes") {
				t.Errorf("ostree does not see the pin:\n%s", status)
			}
			w.deploy(s, c[0], "os")
			w.deploy(s, c[1], "os")
			expect(s, c[1], c[0], c[2])
			must(t, s.InitStateroot("other"))
			w.deploy(s, c[0], "other")
			expect(s, c[0], c[1], c[0], c[2])
			if title := s.Deployments()[1].Title(); title != "Test OS 2 (ostree:os:1)" {
				t.Errorf("title with two stateroots = %q", title)
			}
			s.Unlock()
			o.admin(w, "pin", "--unpin", "3")
			o.admin(w, "undeploy", "2")
			o.admin(w, "cleanup")
			must(t, s.Lock(ctx))
			expect(s, c[0], c[1], c[2])
			if s.Deployments()[2].Pinned() {
				t.Error("kedge still sees the pin that ostree took away")
			}
			before := snapshot(t, w.dir)
			must(t, s.Cleanup(ctx))
			for name, text := range snapshot(t, w.dir) {
				if before[name] != text {
					t.Errorf("kedge's cleanup after ostree's changed %s: %s", name, text)
				}
			}
			must(t, s.Write(ctx, s.Deployments()[1:]))
			must(t, s.Cleanup(ctx))
			run(t, "ostree", "fsck", "--repo="+w.repo.path)
			before = snapshot(t, w.dir)
			s.Unlock()
			o.admin(w, "cleanup")
			after := snapshot(t, w.dir)
			delete(before, "ostree/lock")
			delete(after, "ostree/lock")
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("ostree's cleanup after kedge's changed something:\n%s", diff)
			}
		})
	}
}
