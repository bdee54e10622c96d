package imageroot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// bootcEntry is an entry as bootc writes it.
func bootcEntry(version, sortKey, digest, kernel string) string {
	return "title Test OS\nversion " + version + "\n" +
		"linux /boot/bootc_composefs-" + kernel + "/vmlinuz\ninitrd /boot/bootc_composefs-" + kernel + "/initrd\n" +
		"options root=UUID=1 rw composefs=" + digest + "\nsort-key " + sortKey + "\n"
}

// bootcState makes the state directory of an image as bootc does.
func (w *world) bootcState(digest, ref, bootDigest string) {
	w.t.Helper()
	dir := filepath.Join(deployDir, digest)
	w.write(dir+"/etc/conf", "default")
	must(w.t, os.Symlink(varLink, filepath.Join(w.dir, dir, "var")))
	w.write(dir+"/"+digest+".origin", "[origin]\ncontainer-image-reference = ostree-unverified-image:docker://"+ref+
		"\n\n[boot]\nboot_type = bls\ndigest = "+bootDigest+"\n\n[image]\nmanifest_digest = sha256:1234\n")
}

// TestBootcsHost: what bootc has left after an upgrade is listed, continued and
// rolled back.
func TestBootcsHost(t *testing.T) {
	w := newWorld(t)
	a, b := w.image(osTree("k").with(files{"usr/v": "a"})), w.image(osTree("k").with(files{"usr/v": "b"}))
	sum := strings.Repeat("5", 64)
	must(t, os.RemoveAll(filepath.Join(w.dir, stateDir)))
	w.bootcState(a, "example.com/os:41", sum)
	w.bootcState(b, "example.com/os:42", sum)
	// Both have the kernel of the first.
	w.write("boot/bootc_composefs-"+a+"/vmlinuz", "k")
	w.write("boot/bootc_composefs-"+a+"/initrd", "i")
	w.write("boot/loader/entries/bootc_test_os-42-1.conf", bootcEntry("42", "bootc-test-os-0", b, a))
	w.write("boot/loader/entries/bootc_test_os-41-0.conf", bootcEntry("41", "bootc-test-os-1", a, a))
	w.boot(&Deployment{Digest: b, Entry: entryOf("")})

	s := w.open()
	list := s.Deployments()
	if len(list) != 2 || len(s.Problems()) > 0 || list[0].Digest != b || !list[0].Booted || list[0].Type != TypeBLS {
		t.Fatalf("list = %+v, problems = %v", list, s.Problems())
	}
	if ref, _ := list[0].Origin.Get("origin", "container-image-reference"); ref != "ostree-unverified-image:docker://example.com/os:42" ||
		list[0].BootDigest() != sum || list[0].ManifestDigest() != "sha256:1234" {
		t.Errorf("origin = %q", list[0].Origin.Encode())
	}
	must(t, s.Cleanup(context.Background()))
	w.wantNames("boot", "bootc_composefs-"+a, "loader")
	w.wantNames(deployDir, a, b)

	must(t, s.Write(context.Background(), s.WithDefault(s.Deployments()[1])))
	names := map[string]string{a: "DIGEST", b: "DIGEST2"}
	golden(t, "bootc-rollback.entries", w.entries(entriesDir), names)
	w.wantNames("boot", "bootc_composefs-"+a, "loader")

	// What it stages after that is bootc's, and stays through a cleanup.
	c := w.image(osTree("k3"))
	w.bootcState(c, "example.com/os:43", sum)
	w.write("boot/bootc_composefs-"+c+"/vmlinuz", "k3")
	w.write("boot/loader/entries.staged/bootc_test_os-43-1.conf", bootcEntry("43", "bootc-test-os-0", c, c))
	w.write("boot/loader/entries.staged/bootc_test_os-42-0.conf", bootcEntry("42", "bootc-test-os-1", b, a))
	must(t, os.MkdirAll(filepath.Join(w.host, runDir), 0o755))
	must(t, os.WriteFile(filepath.Join(w.host, markerFile), []byte(`{"depl_id":"`+c+`","finalization_locked":true}`), 0o644))
	must(t, s.Load())
	if d := s.Staged(); d == nil || d.Digest != c || d.Ours || !d.FinalizationLocked || !d.Held || d.Index != 0 {
		t.Errorf("staged = %+v", d)
	}
	must(t, s.Cleanup(context.Background()))
	w.wantNames(deployDir, a, b, c)
	w.wantNames("boot/loader", "entries", "entries.staged")
}

// TestEntriesOfOthers: what is not ours stays through every change, what is
// ours and broken is a problem and no more.
func TestEntriesOfOthers(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	d := w.deploy(s, request(s, w.image(osTree("k1"))))
	foreign := "title Windows\nversion 1\nefi /EFI/Microsoft/boot.efi\n"
	w.write("boot/loader/entries/windows.conf", foreign)
	w.write("boot/loader/entries/notes.txt", "composefs="+d.Digest)
	w.write("boot/loader/loader.conf", "timeout 5\n")
	lost := strings.Repeat("7", 128)
	w.write("boot/loader/entries/bootc_x-0-0.conf", bootcEntry("0", "bootc-x-9", lost, lost))
	w.write("boot/bootc_composefs-"+lost+"/vmlinuz", "k")
	w.write("boot/bootc_composefs-notes/readme", "x")
	must(t, s.Load())
	if len(s.Deployments()) != 1 || len(s.Problems()) != 1 {
		t.Errorf("list = %v, problems = %v; want one of each", s.Deployments(), s.Problems())
	}
	must(t, s.Cleanup(context.Background()))
	w.wantNames("boot", "bootc_composefs-"+d.Digest, "bootc_composefs-"+lost, "bootc_composefs-notes", "loader")
	w.deploy(s, request(s, w.image(osTree("k2"))))
	w.wantNames("boot/loader", "entries", "loader.conf")
	w.wantNames("boot/loader/entries", "bootc_test-1.2-0.conf", "bootc_test-1.2-1.conf", "notes.txt", "windows.conf")
	if got := w.read("boot/loader/entries/windows.conf"); got != foreign {
		t.Errorf("the foreign entry is %q", got)
	}
	w.gone("boot/bootc_composefs-" + lost)
}

func TestBrokenOrigin(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	d := w.deploy(s, request(s, w.image(osTree("k1"))))
	w.write(d.OriginPath(), "no keyfile\n")
	must(t, s.Load())
	if len(s.Deployments()) != 1 || len(s.Problems()) != 1 || len(s.Deployments()[0].Origin.Groups()) != 0 {
		t.Errorf("list = %+v, problems = %v", s.Deployments(), s.Problems())
	}
}

func TestLibostreesBootDirectory(t *testing.T) {
	w := newWorld(t)
	must(t, os.MkdirAll(filepath.Join(w.dir, "boot/loader.0/entries"), 0o755))
	must(t, os.Symlink("loader.0", filepath.Join(w.dir, "boot/loader")))
	s := w.open()
	d, err := s.Deploy(context.Background(), request(s, w.image(osTree("k1"))))
	must(t, err)
	wantKind(t, s.Write(context.Background(), s.With(d, Retention{})), fault.Conflict, "libostree")
}

// TestKernelsAreShared: images with one kernel and initrd have them in /boot
// once, until the last of them goes.
func TestKernelsAreShared(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s := w.open()
	a := w.deploy(s, request(s, w.image(osTree("k").with(files{"usr/v": "a"}))))
	b := w.deploy(s, request(s, w.image(osTree("k").with(files{"usr/v": "b"}))))
	w.wantNames("boot", "bootc_composefs-"+a.Digest, "loader")
	must(t, s.Write(ctx, s.Deployments()[:1]))
	must(t, s.Cleanup(ctx))
	w.wantNames("boot", "bootc_composefs-"+a.Digest, "loader")
	w.wantNames(deployDir, b.Digest)
	// One that was lost comes back from the image.
	must(t, os.Remove(filepath.Join(w.dir, "boot/bootc_composefs-"+a.Digest+"/initrd")))
	must(t, s.Write(ctx, s.Deployments()))
	if got := w.read("boot/bootc_composefs-" + a.Digest + "/initrd"); got != "initramfs of k" {
		t.Errorf("initrd = %q", got)
	}
}

// TestRetention: pins and rollbacks beyond bootc's two.
func TestRetention(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s := w.open()
	var digests []string
	for _, k := range []string{"1", "2", "3", "4"} {
		digests = append(digests, w.deploy(s, request(s, w.image(osTree(k)))).Digest)
	}
	order := func() (list []string) {
		for _, d := range s.Deployments() {
			list = append(list, string(rune('1'+slices.Index(digests, d.Digest))))
		}
		return list
	}
	if got := order(); !slices.Equal(got, []string{"4", "3", "2", "1"}) {
		t.Fatalf("order = %q", got)
	}
	golden(t, "four.entries", w.entries(entriesDir), map[string]string{digests[0]: "D1", digests[1]: "D2", digests[2]: "D3", digests[3]: "D4"})
	must(t, s.SetPinned(s.Deployments()[3], true))
	s.Close()
	w.boot(s.Deployments()[1])
	s = w.open()
	if !s.Deployments()[3].Pinned() || s.Deployments()[2].Pinned() {
		t.Error("the wrong deployment is pinned")
	}
	digests = append(digests, w.image(osTree("5")))
	w.stage(s, digests[4])
	s = w.reboot(s)
	if got := order(); !slices.Equal(got, []string{"5", "3", "1"}) {
		t.Errorf("after an upgrade the list is %q, want the new one, the booted one and the pinned one", got)
	}
	// A pin keeps the image's state, not each edit of its arguments.
	must(t, s.SetPinned(s.Booted(), true))
	for _, args := range []string{"a", "b", "c"} {
		r := request(s, digests[4])
		r.Kargs = karg.Parse(args)
		_, err := s.Stage(ctx, StageRequest{DeployRequest: r})
		must(t, err)
		s = w.reboot(s)
	}
	if got := order(); !slices.Equal(got, []string{"5", "5", "1"}) {
		t.Errorf("after edits the list is %q", got)
	}
	must(t, s.SetPinned(s.Deployments()[2], false))
	must(t, s.Write(ctx, s.With(s.Booted(), Retention{})))
	must(t, s.Cleanup(ctx))
	w.wantNames(deployDir, digests[4])
	err := s.Write(ctx, nil)
	wantKind(t, err, fault.Conflict, "booted")
}

// smallBoot mounts a file system of its own at the boot directory.
func (w *world) smallBoot(size string) {
	w.t.Helper()
	boot := filepath.Join(w.dir, "boot")
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", boot).CombinedOutput(); err != nil {
		w.t.Fatalf("mount: %v: %s", err, out)
	}
	w.t.Cleanup(func() { _ = exec.Command("umount", "-l", boot).Run() })
}

// TestKernelsOfAnESP: where the boot directory is an EFI system partition as
// bootc lays it out, kernels stand below EFI/Linux.
func TestKernelsOfAnESP(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.smallBoot("8m")
	a := w.image(osTree("k1"))
	w.bootcState(a, "example.com/os:1", "")
	w.write("boot/EFI/Linux/bootc_composefs-"+a+"/vmlinuz", "k1")
	w.write("boot/EFI/Linux/bootc_composefs-"+a+"/initrd", "i1")
	w.write("boot/loader/entries/bootc_test-1.2-1.conf", strings.ReplaceAll(bootcEntry("1.2", "bootc-test-0", a, a), " /boot/", " /EFI/Linux/"))
	s := w.open()
	b := w.deploy(s, request(s, w.image(osTree("k2"))))
	if linux, _ := b.Entry.Get("linux"); linux != "/EFI/Linux/bootc_composefs-"+b.Digest+"/vmlinuz" || w.read("boot"+linux) != "k2" {
		t.Errorf("kernel = %q", linux)
	}
	w.wantNames("boot/loader", "entries")
	s.opts.NoSync = false
	must(t, s.Write(ctx, []*Deployment{s.Deployments()[1]}))
	must(t, s.Cleanup(ctx))
	w.wantNames("boot/EFI/Linux", "bootc_composefs-"+a)
}

// TestSmallBoot: kernels that do not fit are refused before anything is
// changed; on a booted host what goes anyway makes room.
func TestSmallBoot(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.smallBoot("4m")
	kernel := func(c string) files { return osTree(strings.Repeat(c, 1200<<10)) }
	s := w.open()
	a := w.deploy(s, request(s, w.image(kernel("1").with(files{"usr/lib/modules/6.1.0/initramfs.img": "i"}))))
	if linux, _ := a.Entry.Get("linux"); linux != "/bootc_composefs-"+a.Digest+"/vmlinuz" {
		t.Errorf("on a boot partition the kernel is %q", linux)
	}
	b := w.deploy(s, request(s, w.image(kernel("2").with(files{"usr/lib/modules/6.1.0/initramfs.img": "i"}))))
	third := w.image(kernel("3").with(files{"usr/lib/modules/6.1.0/initramfs.img": "i"}))
	before := w.snapshot()
	d, err := s.Deploy(ctx, request(s, third))
	must(t, err)
	wantKind(t, s.Write(ctx, s.With(d, Retention{All: true})), fault.NoSpace, "bytes are needed on /boot")
	must(t, s.Cleanup(ctx))
	if after := w.snapshot(); after != before {
		t.Error("the refusal changed the sysroot")
	}
	need, free, err := s.KernelSpace(ctx, []*Deployment{d})
	if must(t, err); need < 1200<<10 || free <= 0 {
		t.Errorf("the kernel needs %d bytes of %d", need, free)
	}
	s.Close()
	w.boot(b)
	s = w.open()
	w.stage(s, third)
	if list := s.Deployments(); len(list) != 2 || list[0].Digest != third || list[1].Digest != b.Digest {
		t.Errorf("list = %+v, want the rollback gone for the new kernel", list)
	}
	w.gone("boot/bootc_composefs-" + a.Digest)
}
