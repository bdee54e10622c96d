package host

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/fault"
)

// espWorld is a world with a directory that stands for the EFI system partition.
func espWorld(t *testing.T, w *world) (esp string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the program in the test's image is for amd64")
	}
	w.anyESP = true
	esp = filepath.Join(w.dir, "efi")
	must(t, os.MkdirAll(esp, 0o755))
	return esp
}

// withBoot is a version of the small OS with a version of systemd-boot.
func (w *world) pushBoot(tag string, version int, loader string) string {
	ref, _ := w.push(tag, version,
		smallimage.Dir("usr/lib/systemd"), smallimage.Dir("usr/lib/systemd/boot"), smallimage.Dir("usr/lib/systemd/boot/efi"),
		smallimage.File("usr/lib/systemd/boot/efi/systemd-bootx64.efi", 0o755, string(loadertest.Program(loader))))
	return ref
}

// plug makes the partition appear in the pretended machine.
func (w *world) plug(esp string) { must(w.t, os.Symlink(esp, filepath.Join(w.machine, "efi"))) }

// checkESP reads the partition as firmware and systemd-boot do, and checks that
// its menu is that of the deployments: each entry has its kernel and leads to its
// root.
func (w *world) checkESP(esp string) {
	w.t.Helper()
	entries, err := lab.Entries(esp)
	must(w.t, err)
	h := w.open()
	defer h.Close()
	list, err := h.store.Deployments()
	must(w.t, err)
	for _, p := range h.store.Problems() {
		w.t.Errorf("problem: %v", p)
	}
	var kept deployments
	for _, d := range list {
		if !d.staged {
			kept = append(kept, d)
		}
	}
	if len(entries) != len(kept) {
		w.t.Fatalf("the menu has %d entries, want %d", len(entries), len(kept))
	}
	for i, e := range entries {
		d := kept[i]
		for _, name := range []string{e.Linux, e.Initrd} {
			if st, err := os.Stat(filepath.Join(esp, name)); err != nil || st.Size() == 0 {
				w.t.Errorf("entry %s: %v", e.File, err)
			}
		}
		kernel, err := os.ReadFile(filepath.Join(esp, e.Linux))
		must(w.t, err)
		if version := d.image.version; !bytes.Contains(kernel, []byte("6.1.0-"+strings.TrimSuffix(version, ".0")+"-test")) {
			w.t.Errorf("entry %s of version %s has another's kernel", e.File, version)
		}
		root := ""
		for arg := range strings.FieldsSeq(e.Options) {
			if v, ok := strings.CutPrefix(arg, "ostree="); ok {
				dir, err := filepath.EvalSymlinks(filepath.Join(w.dir, v))
				must(w.t, err)
				root = filepath.Base(dir)
			}
			if v, ok := strings.CutPrefix(arg, "composefs="); ok {
				root = strings.TrimPrefix(v, "?")
			}
		}
		if !strings.HasPrefix(root, d.root) {
			w.t.Errorf("line %d of the menu, %s, leads to %q, want %s", i, e.File, root, d.root)
		}
	}
	if w.backend == "ostree" {
		w.agree()
	} else if _, err := os.Stat(filepath.Join(w.dir, "boot/loader")); err == nil {
		w.t.Error("there is a second menu in /boot")
	}
}

// TestSystemdBoot is a host's life with systemd-boot, not booted and booted.
func TestSystemdBoot(t *testing.T) { onBoth(t, testSystemdBoot) }

func testSystemdBoot(t *testing.T, w *world) {
	ctx := context.Background()
	esp := espWorld(t, w)
	theirs := filepath.Join(esp, "loader/entries/theirs.conf")
	w.write(theirs, "title Theirs\nsort-key zzz\nlinux /theirs\n")
	one, two := w.pushBoot("one", 1, "257.1"), w.pushBoot("two", 2, "257.2")
	o := w.options(one, "rw")
	o.Bootloader = "systemd-boot"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	check := func(what, loader string) {
		t.Helper()
		t.Logf("checking: %s", what)
		text, err := os.ReadFile(theirs)
		must(t, err)
		must(t, os.Remove(theirs))
		w.checkESP(esp)
		w.write(theirs, string(text))
		for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"} {
			if got, err := os.ReadFile(filepath.Join(esp, name)); err != nil || !bytes.Equal(got, loadertest.Program(loader)) {
				t.Errorf("%s: %s is not version %s: %v", what, name, loader, err)
			}
		}
	}
	check("installed", "257.1")
	if b := w.status().Status.Kedge.Bootloader; b == nil || b.Name != "systemd-boot" {
		t.Errorf("status shows the boot loader %+v", b)
	}
	w.switchTo(two)
	check("switched", "257.2")
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	check("rolled back", "257.2")
	w.do(func(h *Host) (*v1.Result, error) { return h.Kargs(ctx, KargsOptions{Append: []string{"quiet"}}) })
	check("other arguments", "257.2")
	if w.backend == "ostree" {
		// What the real ostree makes of /boot comes to the partition with the next
		// command.
		w.ostree("admin", "undeploy", "--sysroot="+w.dir, "1")
		w.do(func(h *Host) (*v1.Result, error) { _, err := h.Cleanup(ctx, CleanupOptions{}); return nil, err })
		check("ostree admin undeploy", "257.2")
	}

	w.boot()
	w.plug(esp)
	w.switchTo(two)
	check("staged", "257.2")
	three := w.pushBoot("three", 3, "258")
	w.switchTo(three)
	check("staged another", "257.2")
	w.shutdown()
	w.plug(esp)
	check("finalized", "258")
	w.do(func(h *Host) (*v1.Result, error) { _, err := h.Cleanup(ctx, CleanupOptions{}); return nil, err })
	check("cleaned up", "258")
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	check("rolled back", "258")
}

// TestBootloaderRefused is what an installation says before it changes anything.
func TestBootloaderRefused(t *testing.T) { onBoth(t, testBootloaderRefused) }

func testBootloaderRefused(t *testing.T, w *world) {
	ctx := context.Background()
	good, bare := w.pushBoot("good", 1, "257"), ""
	bare, _ = w.push("bare", 1)
	esp := filepath.Join(w.dir, "efi")
	try := func(ref, bootloader string) error {
		o := w.options(ref)
		o.Bootloader = bootloader
		_, err := Install(ctx, w.config(), o)
		return err
	}
	untouched := func(what string) {
		t.Helper()
		names, err := os.ReadDir(w.dir)
		must(t, err)
		for _, n := range names {
			if n.Name() != "efi" {
				t.Errorf("%s: there is %s", what, n.Name())
			}
		}
		if names, _ := os.ReadDir(esp); len(names) > 0 {
			t.Errorf("%s: the partition has %s", what, names[0].Name())
		}
	}
	wantKind(t, try(good, "lilo"), fault.Usage, "lilo")
	wantKind(t, try(good, "systemd-boot"), fault.NotFound, "EFI system partition")
	untouched("no partition")
	must(t, os.MkdirAll(esp, 0o755))
	wantKind(t, try(good, "systemd-boot"), fault.NotFound, "EFI system partition")
	untouched("not mounted")

	must(t, unix.Mount("esp", esp, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(esp, unix.MNT_DETACH)) })
	wantKind(t, try(good, "systemd-boot"), fault.Conflict, "not a FAT file system")
	untouched("another file system")
	w.anyESP = true
	must(t, unix.Mount("", esp, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	wantKind(t, try(good, "systemd-boot"), fault.Denied, "read-only")
	untouched("read-only")
	must(t, unix.Mount("", esp, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	wantKind(t, try(bare, "systemd-boot"), fault.Conflict, "systemd-boot")

	// A full one: nothing of a kernel is there, and with room the same command
	// goes on.
	w.write(filepath.Join(esp, "theirs"), strings.Repeat("x", 3<<20+512<<10))
	wantKind(t, try(good, "systemd-boot"), fault.NoSpace, "EFI system partition")
	if kernels, _ := filepath.Glob(esp + "/*/*/vmlinuz*"); kernels != nil {
		t.Errorf("on a full partition there is %q", kernels)
	}
	must(t, os.Remove(filepath.Join(esp, "theirs")))
	must(t, try(good, "auto"))
	w.checkESP(esp)

	// A host whose partition is gone changes nothing.
	must(t, unix.Unmount(esp, unix.MNT_DETACH))
	must(t, os.Remove(esp))
	ref := w.pushBoot("next", 2, "257")
	_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(ctx, SwitchOptions{Image: ref}) })
	wantKind(t, err, fault.NotFound, "EFI system partition")
	must(t, os.MkdirAll(esp, 0o755))
	must(t, unix.Mount("esp", esp, "tmpfs", 0, ""))
	if _, err := os.Stat(filepath.Join(esp, "loader")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestSmallESP is a partition that holds two kernels and not three: the one of
// the deployment that goes anyway makes room, and where that is not enough
// nothing is changed.
func TestSmallESP(t *testing.T) { onBoth(t, testSmallESP) }

func testSmallESP(t *testing.T, w *world) {
	ctx := context.Background()
	esp := espWorld(t, w)
	must(t, unix.Mount("esp", esp, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(esp, unix.MNT_DETACH)) })
	w.install(w.pushBoot("one", 1, "257"), "rw")
	w.boot()
	w.plug(esp)
	w.switchTo(w.pushBoot("two", 2, "257"))
	w.shutdown()
	w.plug(esp)
	// fill leaves so many bytes beyond what kedge keeps free.
	fill := func(free int64) {
		t.Helper()
		filler := filepath.Join(esp, "theirs")
		must(t, os.RemoveAll(filler))
		var st unix.Statfs_t
		must(t, unix.Statfs(esp, &st))
		must(t, os.WriteFile(filler, make([]byte, int64(st.Bavail)*st.Bsize-free-1<<20), 0o644))
	}
	kernels := func() string {
		t.Helper()
		list, err := filepath.Glob(esp + "/*/*/vmlinuz*")
		if more, _ := filepath.Glob(esp + "/EFI/*/*/vmlinuz*"); err == nil {
			list = append(list, more...)
		}
		var versions []string
		for _, f := range list {
			text, err := os.ReadFile(f)
			must(t, err)
			versions = append(versions, string(text[0x306:0x307]))
		}
		slices.Sort(versions)
		return strings.Join(versions, " ")
	}
	three := w.pushBoot("three", 3, "257")
	fill(-8 << 10)
	before := w.status().Status
	_, err := w.try(func(h *Host) (*v1.Result, error) { return h.Switch(ctx, SwitchOptions{Image: three}) })
	wantKind(t, err, fault.NoSpace, "EFI system partition")
	if after := w.status().Status; after.Staged != nil || after.Rollback == nil || after.Rollback.Kedge.ID != before.Rollback.Kedge.ID || kernels() != "1 2" {
		t.Errorf("a switch without room changed something: kernels %s, staged %v", kernels(), after.Staged)
	}
	fill(4 << 10)
	p, err := w.open().Plan(ctx, PlanOptions{Image: three})
	must(t, err)
	if !p.Possible {
		t.Errorf("the plan does not know what makes room: %q", p.Problems)
	}
	w.switchTo(three)
	if got := kernels(); got != "2 3" {
		t.Errorf("staged: kernels %q, want those of the booted and the staged one", got)
	}
	w.shutdown()
	w.plug(esp)
	w.checkESP(esp)
}

// TestGeneratedGRUB is a host whose GRUB reads no boot entries.
func TestGeneratedGRUB(t *testing.T) { onBoth(t, testGeneratedGRUB) }

func testGeneratedGRUB(t *testing.T, w *world) {
	ctx := context.Background()
	one, _ := w.push("one", 1)
	two, _ := w.push("two", 2)
	o := w.options(one, "rw")
	o.Bootloader = "grub"
	_, err := Install(ctx, w.config(), o)
	must(t, err)
	// check holds GRUB's menu against the boot entries that it is made from.
	check := func(what string, lines int) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(w.dir, "boot/grub/kedge.cfg"))
		must(t, err)
		entries, err := lab.Entries(filepath.Join(w.dir, "boot"))
		must(t, err)
		menu := strings.Split(string(text), "menuentry ")[1:]
		if len(menu) != lines || len(entries) != lines {
			t.Fatalf("%s: GRUB's menu has %d lines and there are %d entries, want %d", what, len(menu), len(entries), lines)
		}
		for i, e := range entries {
			for _, word := range append(strings.Fields(e.Options), e.Linux, e.Initrd) {
				if !strings.Contains(menu[i], "'"+word+"'") {
					t.Errorf("%s: line %d of GRUB's menu lacks %s:\n%s", what, i, word, menu[i])
				}
			}
			if _, err := os.Stat(filepath.Join(w.dir, e.Linux)); err != nil {
				t.Error(err)
			}
		}
		if b := w.status().Status.Kedge.Bootloader; b == nil || b.Name != "grub" {
			t.Errorf("%s: status shows the boot loader %+v", what, b)
		}
		w.agree()
	}
	check("installed", 1)
	w.switchTo(two)
	check("switched", 2)
	w.boot()
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(ctx) })
	check("rolled back", 2)
}

// TestTriesNeedAMount: an entry is counted only where it can be blessed.
func TestTriesNeedAMount(t *testing.T) {
	machine := t.TempDir()
	cfg := Config{Sysroot: machine, Machine: machine}
	if n := cfg.tries(); n != 3 {
		t.Errorf("without systemd-boot: %d tries, want the default", n)
	}
	vars := filepath.Join(machine, "sys/firmware/efi/efivars")
	must(t, os.MkdirAll(vars, 0o755))
	info := "\x06\x00\x00\x00s\x00y\x00s\x00t\x00e\x00m\x00d\x00-\x00b\x00o\x00o\x00t\x00\x00\x00"
	must(t, os.WriteFile(filepath.Join(vars, "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), []byte(info), 0o644))
	must(t, os.Mkdir(filepath.Join(machine, "efi"), 0o755))
	if n := cfg.tries(); n != 0 {
		t.Errorf("with a partition that is mounted nowhere: %d tries, want none", n)
	}
	cfg.AnyESP = true
	if n := cfg.tries(); n != 3 {
		t.Errorf("with a partition at /efi: %d tries, want the default", n)
	}
}
