package boot

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestForeignEntriesAreNeverTouched(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	w.deploy(s, w.commit(osTree("k1"), "1"), "os")
	foreign := tree{
		"entries/memtest.conf":       "title Memory test\nlinux /memtest\n",
		"entries/windows.conf":       "title Other\nefi /EFI/other.efi\n",
		"entries/ostree-theirs.conf": "title not a deployment\nlinux /x\n",
		"entries.srel":               "type1\n",
		"loader.conf":                "timeout 5\n",
		"keys/a/b.auth":              "key",
	}
	foreign.write(t, filepath.Join(w.dir, "boot/loader"))
	w.write("boot/other-system/vmlinuz", "theirs")
	for i, k := range []string{"k2", "k3", "k3"} {
		w.deploy(s, w.commit(osTree(k), fmt.Sprint(i)), "os")
		for name, content := range foreign {
			if got := w.read("boot/loader/" + name); got != content {
				t.Errorf("deployment %d: %s = %q, want it as it was", i, name, got)
			}
		}
	}
	if w.read("boot/other-system/vmlinuz") != "theirs" {
		t.Error("another system's kernel was touched")
	}
	if len(s.Deployments()) != 2 || len(s.Problems()) != 1 {
		t.Errorf("%d deployments, problems %v; want 2 and the entry without ostree=", len(s.Deployments()), s.Problems())
	}
}

func TestBrokenEntriesArePassedOver(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	c := w.commit(osTree("k1"), "1")
	w.deploy(s, c, "os")
	for name, text := range map[string]string{
		"ostree-7.conf": "title gone\nversion 7\noptions ostree=/ostree/boot.1/os/" + strings.Repeat("0", 64) + "/0\n",
		"ostree-8.conf": "title bad link\nversion 8\noptions ostree=/somewhere\n",
		"ostree-9.conf": "\x00\xff binary \n options",
	} {
		w.write("boot/loader/entries/"+name, text)
	}
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	must(t, s.Load())
	must(t, s.Load())
	if told := strings.Count(log.String(), "passed over"); told != 3 {
		t.Errorf("three problems are told of %d times:\n%s", told, log.String())
	}
	if len(s.Problems()) != 3 || len(s.Deployments()) != 1 || s.Deployments()[0].Checksum != c {
		t.Fatalf("%d problems, deployments %v; want 3 and the sound one", len(s.Problems()), s.Deployments())
	}
	w.deploy(s, w.commit(osTree("k2"), "2"), "os")
	if len(s.Deployments()) != 2 {
		t.Errorf("%d deployments after an upgrade, want 2", len(s.Deployments()))
	}
}

func TestLoaderDirectoryIsRefused(t *testing.T) {
	w := newWorld(t)
	must(t, os.MkdirAll(filepath.Join(w.dir, "boot/loader/entries"), 0o755))
	if _, err := Open(w.dir, w.options()); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a boot directory whose loader is no symlink = %v, want a conflict", err)
	}
	if _, err := Open(t.TempDir(), w.options()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a directory that is no sysroot = %v, want not found", err)
	}
}

func TestGeneratedConfigurationIsRefused(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	w.deploy(s, w.commit(osTree("k1"), "1"), "os")
	w.write("boot/loader/grub.cfg", "menuentry")
	d, err := s.Deploy(ctx, DeployRequest{Stateroot: "os", Commit: w.commit(osTree("k2"), "2"), Merge: s.MergeFor("os")})
	must(t, err)
	before := snapshot(t, filepath.Join(w.dir))
	if err := s.Write(ctx, s.With(d, Retention{})); fault.KindOf(err) != fault.Conflict {
		t.Errorf("write with a generated grub.cfg = %v, want a conflict", err)
	}
	if diff := cmp.Diff(before, snapshot(t, w.dir)); diff != "" {
		t.Errorf("the refusal changed something:\n%s", diff)
	}
}

func TestLock(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	other, err := Open(w.dir, w.options())
	must(t, err)
	defer other.Close()
	err = other.Lock(context.Background())
	if fault.KindOf(err) != fault.Busy || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("second lock = %v, want busy with process %d", err, os.Getpid())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 80*time.Millisecond)
	defer cancel()
	if err := other.Lock(ctx); fault.KindOf(err) != fault.Busy {
		t.Errorf("second lock with a deadline = %v, want busy", err)
	}
	if err := other.InitStateroot("os"); fault.KindOf(err) != fault.Internal {
		t.Errorf("writing without the lock = %v, want it refused", err)
	}
	// Real ostree waits for our lock, and goes on when it is free.
	cmd := exec.Command("ostree", "admin", "--sysroot="+w.dir, "cleanup")
	must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		t.Fatalf("ostree did not wait for the lock: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	s.Unlock()
	if err := <-done; err != nil {
		t.Errorf("ostree after the lock was free: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, lockFile)); err == nil {
		t.Error("the lock file is left behind")
	}
	must(t, other.Lock(context.Background()))
}

// smallBoot mounts a small file system at the sysroot's boot.
func (w *world) smallBoot(size int64) {
	w.t.Helper()
	lab.Need(w.t, "mkfs.ext4", "mount")
	img := filepath.Join(w.t.TempDir(), "boot.img")
	must(w.t, os.WriteFile(img, nil, 0o600))
	must(w.t, os.Truncate(img, size))
	run(w.t, "mkfs.ext4", "-q", "-m", "0", "-N", "256", "-O", "^has_journal", img)
	boot := filepath.Join(w.dir, "boot")
	run(w.t, "mount", "-o", "loop", img, boot)
	w.t.Cleanup(func() { run(w.t, "umount", boot) })
	must(w.t, os.RemoveAll(filepath.Join(boot, "lost+found")))
}

func TestBootOfItsOwn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.smallBoot(8 << 20)
	s := w.open()
	must(t, s.InitStateroot("os"))
	kernel := func(n string) string { return n + strings.Repeat("x", 2<<20) }
	w.deploy(s, w.commit(osTree(kernel("1")), "1"), "os")
	// A journal-less ext4 is frozen as any other: the real syncs, once.
	s.opts.NoSync = false
	target := s.Deployments()[0]
	must(t, s.Write(ctx, s.WithDefault(target)))
	must(t, s.syncBoot())
	s.opts.NoSync = true

	before := snapshot(t, w.dir)
	r := DeployRequest{Stateroot: "os", Commit: w.commit(osTree(kernel("2")), "2"), Merge: s.MergeFor("os")}
	d, err := s.Deploy(ctx, r)
	must(t, err)
	err = s.Write(ctx, s.With(d, Retention{Merge: r.Merge}))
	if fault.KindOf(err) != fault.NoSpace || !strings.Contains(err.Error(), "bytes are needed on /boot") {
		t.Errorf("a kernel too large for /boot = %v, want no space with the numbers", err)
	}
	must(t, s.Cleanup(ctx))
	if diff := cmp.Diff(before, snapshot(t, w.dir)); diff != "" {
		t.Errorf("after the refusal and a cleanup something is different:\n%s", diff)
	}
	if names, err := dirfd.ReadNames(s.root, "boot/ostree"); len(names) != 1 || err != nil {
		t.Errorf("boot/ostree has %v, %v", names, err)
	}
}

// TestSmallBootOfABootedHost: three kernels do not fit, so the rollback goes
// before the new one comes, and never the booted one.
func TestSmallBootOfABootedHost(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.smallBoot(10 << 20)
	s := w.open()
	must(t, s.InitStateroot("os"))
	kernel := func(n string) tree {
		return osTree(n + strings.Repeat("x", 3<<20)).with(tree{"usr/lib/modules/6.1.0/initramfs.img": "i"})
	}
	for _, n := range []string{"1", "2"} {
		w.deploy(s, w.commit(kernel(n), n), "os")
	}
	s.Close()
	booted := s.Deployments()[0]
	w.boot(booted)
	s = w.open()
	staged, err := s.Stage(ctx, stageRequest(w, s, w.commit(kernel("3"), "3")))
	must(t, err)
	if d := s.Deployments(); len(d) != 2 || !d[0].same(staged) || !d[1].same(booted) || !d[1].Booted {
		t.Errorf("while staged the list is %v, want the staged and the booted deployment", d)
	}
	_, err = s.Stage(ctx, stageRequest(w, s, w.commit(kernel("4"), "4")))
	must(t, err)
	_, err = s.Finalize(ctx)
	must(t, err)
	must(t, s.Cleanup(ctx))
	names, err := dirfd.ReadNames(s.boot, "ostree")
	must(t, err)
	if d := s.Deployments(); len(d) != 2 || !d[1].same(booted) || len(names) != 2 {
		t.Errorf("in the end the list is %v with the kernels %v, want the new and the booted one", d, names)
	}
	before := snapshot(t, w.dir)
	_, err = s.Stage(ctx, stageRequest(w, s, w.commit(osTree(strings.Repeat("y", 9<<20)), "5")))
	if fault.KindOf(err) != fault.NoSpace || s.Staged() != nil {
		t.Errorf("a kernel that can never fit = %v, want no space and nothing staged", err)
	}
	must(t, s.Cleanup(ctx))
	if diff := cmp.Diff(before, snapshot(t, w.dir)); diff != "" {
		t.Errorf("the refusal changed something:\n%s", diff)
	}
}

func TestReadOnly(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	w.deploy(s, w.commit(osTree("k1"), "1"), "os")
	s.Close()
	run(t, "mount", "--bind", w.dir, w.dir)
	t.Cleanup(func() { run(t, "umount", w.dir) })
	run(t, "mount", "-o", "remount,bind,ro", w.dir)
	s, err := Open(w.dir, w.options())
	must(t, err)
	defer s.Close()
	if len(s.Deployments()) != 1 {
		t.Error("a read-only sysroot cannot be read")
	}
	if err := s.Lock(ctx); fault.KindOf(err) != fault.Denied {
		t.Errorf("lock of a read-only sysroot = %v, want denied", err)
	}
}

func TestKernels(t *testing.T) {
	for _, c := range []struct {
		name string
		tree tree
		kind fault.Kind
	}{
		{"none", osTree("k").without("usr/lib/modules/6.1.0/vmlinuz"), fault.Conflict},
		{"two", osTree("k").with(tree{"usr/lib/modules/6.2.0/vmlinuz": "k"}), fault.Conflict},
		{"a directory of modules alone is no kernel", osTree("k").with(tree{"usr/lib/modules/6.2.0/extra.ko": "m"}), 0},
		{"symlink that leads out", osTree("k").with(tree{"usr/lib/modules/6.1.0/vmlinuz": "->/boot/vmlinuz"}), fault.Conflict},
	} {
		dir := t.TempDir()
		c.tree.write(t, dir)
		root, err := os.OpenRoot(dir)
		must(t, err)
		defer root.Close()
		if _, err := FindKernel(root); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %q", c.name, err, c.kind)
		}
	}
}

func TestKargsOfTheImage(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	image := func(kargs string) tree {
		return osTree("k").with(tree{"usr/lib/bootc/kargs.d/10.toml": "kargs = [" + kargs + "]"})
	}
	deploy := func(t tree, kargs karg.Args) string {
		r := DeployRequest{Stateroot: "os", Commit: w.commit(t, ""), Merge: s.MergeFor("os"), Kargs: kargs}
		d, err := s.Deploy(ctx, r)
		must(w.t, err)
		must(w.t, s.Write(ctx, s.With(d, Retention{Merge: r.Merge})))
		return s.Deployments()[0].Kargs().String()
	}
	for i, step := range []struct {
		image string
		kargs karg.Args
		want  string
	}{
		{`"a=1", "quiet"`, karg.Parse("root=LABEL=r"), "root=LABEL=r a=1 quiet"},
		{`"a=2"`, nil, "root=LABEL=r a=2"},
		{`"a=2", "b"`, karg.Parse("root=LABEL=r mine"), "root=LABEL=r mine b"},
		{``, nil, "root=LABEL=r mine"},
	} {
		if got := deploy(image(step.image), step.kargs); got != step.want {
			t.Errorf("step %d: kernel arguments %q, want %q", i, got, step.want)
		}
	}
}

func TestImmutableRoot(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	d := w.deploy(s, w.commit(osTree("k1"), "1"), "os")
	dir, err := os.Open(filepath.Join(w.dir, d.Dir()))
	must(t, err)
	defer dir.Close()
	flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		lab.Skip(t, "the file system has no immutable attribute: %v", err)
	}
	if flags&0x10 == 0 {
		t.Error("the deployment's root is not immutable")
	}
	if err := os.Mkdir(filepath.Join(w.dir, d.Dir(), "oops"), 0o755); err == nil {
		t.Error("a directory could be made in the deployment's root")
	}
}

func TestBootCountingAndPrefix(t *testing.T) {
	w := newWorld(t)
	run(t, "ostree", "config", "--repo="+w.repo.path, "set", "sysroot.boot-counting-tries", "3")
	run(t, "ostree", "config", "--repo="+w.repo.path, "set", "sysroot.bootprefix", "true")
	run(t, "ostree", "config", "--repo="+w.repo.path, "set", "sysroot.bls-append-except-default", "grub_users=x;")
	s := w.open()
	must(t, s.InitStateroot("os"))
	w.deploy(s, w.commit(osTree("k1"), "1"), "os")
	entries := filepath.Join(w.dir, "boot/loader/entries")
	must(t, os.Rename(entries+"/ostree-1+3.conf", entries+"/ostree-1+1-2.conf"))
	must(t, s.Load())
	w.deploy(s, w.commit(osTree("k2"), "2"), "os")
	fresh, old := w.read("boot/loader/entries/ostree-2+3.conf"), w.read("boot/loader/entries/ostree-1+1-2.conf")
	if !strings.Contains(fresh, "linux /boot/ostree/os-") {
		t.Errorf("entry with bootprefix:\n%s", fresh)
	}
	if strings.Contains(fresh, "grub_users") || !strings.Contains(old, "grub_users x\n") {
		t.Errorf("keys for all but the default: in the default\n%s\nin the other\n%s", fresh, old)
	}
}
