package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
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

const grubProgram = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"

// pushGRUB is a version of the small OS with a version of GRUB.
func (w *world) pushGRUB(tag string, version int, grub string) string {
	return w.pushGRUBWith(tag, version, grub)
}

// pushGRUBWith is one with more files.
func (w *world) pushGRUBWith(tag string, version int, grub string, more ...smallimage.Entry) string {
	program := append(loadertest.PE(".sbat", "grub.debian,1,Debian,grub2,"+grub+",https://example.org\n"), "\x00/EFI/debian\x00"...)
	entries := []smallimage.Entry{}
	for dir := filepath.Dir(grubProgram); dir != "usr/lib"; dir = filepath.Dir(dir) {
		entries = append([]smallimage.Entry{smallimage.Dir(dir)}, entries...)
	}
	ref, _ := w.push(tag, version, slices.Concat(entries, []smallimage.Entry{smallimage.File(grubProgram, 0o644, string(program))}, more)...)
	return ref
}

// bootDisk gives the world a file system of its own for /boot.
func (w *world) bootDisk() (mounted string) {
	w.t.Helper()
	mounted = lab.Mounted(w.t, "ext4", 64<<20)
	w.attach(mounted, "boot")
	return mounted
}

// attach mounts a directory at a new one of the sysroot, for as long as the test lasts.
func (w *world) attach(from, name string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, name)
	must(w.t, os.Mkdir(dir, 0o755))
	must(w.t, unix.Mount(from, dir, "", unix.MS_BIND, ""))
	w.t.Cleanup(func() { must(w.t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// TestGRUBProgram is a host whose GRUB kedge installs and keeps up to date.
func TestGRUBProgram(t *testing.T) { onBoth(t, testGRUBProgram) }

func testGRUBProgram(t *testing.T, w *world) {
	lab.Need(t, "blkid", "findmnt")
	esp := espWorld(t, w)
	mounted := w.bootDisk()
	one, two := w.pushGRUB("one", 1, "2.12-1"), w.pushGRUB("two", 2, "2.12-2")
	install := func(w *world, ref string) error {
		o := w.options(ref, "rw")
		o.Bootloader = "grub"
		_, err := Install(context.Background(), w.config(), o)
		return err
	}
	bare, _ := w.push("bare", 1)
	wantKind(t, install(w, bare), fault.Conflict, "GRUB")
	if names, _ := os.ReadDir(esp); len(names) > 0 {
		t.Errorf("an image without GRUB: the partition has %s", names[0].Name())
	}
	must(t, install(w, one))
	check := func(what, version string) {
		t.Helper()
		for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/debian/grubx64.efi"} {
			data, err := os.ReadFile(filepath.Join(esp, name))
			if err != nil || !strings.Contains(string(data), ","+version+",") {
				t.Errorf("%s: %s is not version %s: %v", what, name, version, err)
			}
		}
	}
	check("installed", "2.12-1")
	device, err := exec.Command("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", mounted).Output()
	must(t, err)
	uuid, err := exec.Command("blkid", "--probe", "--match-tag", "UUID", "--output", "value", strings.TrimSpace(string(device))).Output()
	must(t, err)
	pointer, err := os.ReadFile(filepath.Join(esp, "EFI/debian/grub.cfg"))
	must(t, err)
	for _, want := range []string{"--set=root " + string(uuid), "'/grub'"} {
		if !strings.Contains(string(pointer), want) {
			t.Errorf("GRUB's configuration lacks %q:\n%s", want, pointer)
		}
	}
	w.switchTo(two)
	check("switched", "2.12-2")
	w.do(func(h *Host) (*v1.Result, error) { return h.Rollback(context.Background()) })
	check("rolled back: GRUB does not go back", "2.12-2")

	// Another host on the same partition, whose GRUB would look in the same place.
	other := newWorldOf(t, w.backend)
	other.anyESP = true
	other.attach(esp, "efi")
	other.bootDisk()
	wantKind(t, install(other, other.pushGRUB("one", 1, "2.12-3")), fault.Conflict, "leads to another system")
	check("another host was refused", "2.12-2")
}

// TestTwoSystemsOnOnePartition: what one does there, the other does not notice.
func TestTwoSystemsOnOnePartition(t *testing.T) { onBoth(t, testTwoSystemsOnOnePartition) }

func testTwoSystemsOnOnePartition(t *testing.T, w *world) {
	esp := espWorld(t, w)
	other := newWorldOf(t, w.backend)
	other.anyESP = true
	other.attach(esp, "efi")
	// Kernels of the same image have the same names: the images differ.
	w.install(w.pushBoot("one", 1, "257"), "rw")
	other.install(other.pushBoot("three", 3, "257"), "rw")
	list := func(w *world) (files []string) {
		t.Helper()
		h := w.open()
		defer h.Close()
		lines, err := filepath.Glob(filepath.Join(esp, "loader/entries/*.conf"))
		must(t, err)
		for _, name := range lines {
			text, err := os.ReadFile(name)
			must(t, err)
			files = append(files, filepath.Base(name)+string(text))
			for line := range strings.Lines(string(text)) {
				if kernel, ok := strings.CutPrefix(line, "linux "); ok {
					if _, err := os.Stat(filepath.Join(esp, strings.TrimSpace(kernel))); err != nil {
						t.Errorf("entry %s: %v", filepath.Base(name), err)
					}
				}
			}
		}
		return files
	}
	theirs := list(other)
	if len(theirs) != 2 {
		t.Fatalf("two hosts with a root each have %d entries", len(theirs))
	}
	w.switchTo(w.pushBoot("two", 2, "258"))
	w.do(func(h *Host) (*v1.Result, error) {
		_, err := h.Cleanup(context.Background(), CleanupOptions{})
		return nil, err
	})
	kept := 0
	for _, e := range list(w) {
		for _, before := range theirs {
			if e == before {
				kept++
			}
		}
	}
	// The other's entry, and perhaps one of this host's that need not change.
	if kept == 0 || len(list(w)) != 3 {
		t.Errorf("after a switch of one host there are %d entries, %d as they were", len(list(w)), kept)
	}
	other.do(func(h *Host) (*v1.Result, error) {
		_, err := h.Cleanup(context.Background(), CleanupOptions{})
		return nil, err
	})
	if n := len(list(other)); n != 3 {
		t.Errorf("after a cleanup of the other host there are %d entries, want 3", n)
	}
}

// TestSearchedDisk: an installation looks for partitions on a disk that was mounted
// for it, and not on one that the machine runs from.
func TestSearchedDisk(t *testing.T) {
	dir := lab.Mounted(t, "ext4", 64<<20)
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	for sysroot, want := range map[string]string{dir: dir, filepath.Join(dir, "sub"): "", t.TempDir(): "", "/proc": ""} {
		if got := (Config{Sysroot: sysroot, Machine: "/"}).searched(); got != want {
			t.Errorf("%s: the disk of %q is searched, want %q", sysroot, got, want)
		}
	}
	machine := t.TempDir()
	for _, want := range []string{machine, filepath.Join(machine, "sysroot")} {
		must(t, os.MkdirAll(want, 0o755))
		if got := (Config{Sysroot: machine, Machine: machine}).searched(); got != want {
			t.Errorf("on a running machine the disk of %q is searched, want %q", got, want)
		}
	}
}
