package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/grub"
)

// TestGRUBCounts has Debian's own GRUB, started by OVMF, read the menu of three
// roots that die at once, two of which are counted: it takes their tries off, one
// boot each, passes over those that have none left, and starts one again that is
// asked for again.
func TestGRUBCounts(t *testing.T) {
	t.Parallel()
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "sfdisk", "mkfs.vfat", "mcopy", "blkid", "cpio")
	d := newDying(t)
	d.commit(nil)
	for i, want := range []string{"new", "second", "second", "old"} {
		if got := d.boot(); got != want {
			t.Fatalf("boot %d was of %s, want %s", i, got, want)
		}
	}
	if got := d.counters(); got != "new+0-1 second+0-2 old" {
		t.Errorf("after the boots the menu has %s", got)
	}
	d.commit(func(it *loader.Item) { it.Renew = it.ID == "new" })
	if got := d.boot(); got != "new" {
		t.Fatalf("the boot after one was asked for again was of %s", got)
	}
	d.commit(func(it *loader.Item) { it.Good = it.ID == "second" })
	if got := d.boot(); got != "second" {
		t.Errorf("the boot of a root that was found good was of %s", got)
	}
	if got := d.counters(); got != "new+0-1 second old" {
		t.Errorf("at the end the menu has %s", got)
	}
}

// dying is a disk with GRUB, and roots whose kernel is the lab's and whose init ends
// at once.
type dying struct {
	t       *testing.T
	disk    *lab.Disk
	machine *lab.Machine
	place   grub.Place
	program string // directory with an image's GRUB
	kernel  string
	initrd  string
}

func newDying(t *testing.T) *dying {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	d := &dying{t: t, initrd: filepath.Join(dir, "initrd")}
	layout, err := lab.Make(t.Context(), "composefs-backend-image.sh")
	must(err)
	kernels, err := filepath.Glob(filepath.Join(filepath.Dir(layout), "modules/*/vmlinuz"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("the lab's kernels are %q, %v", kernels, err)
	}
	d.kernel = kernels[0]
	d.program, err = lab.Make(t.Context(), "grub.sh")
	must(err)
	// Without an image to mount kedge-initramfs says so and ends.
	_, err = lab.Command(t.Context(), "env", "CGO_ENABLED=0", "go", "build", "-C", lab.SourceDir(), "-tags", lab.BuildTags, "-o", filepath.Join(dir, "init"), "./cmd/kedge-initramfs")
	must(err)
	_, err = lab.Command(t.Context(), "bash", "-ec", `cd "$1"; echo init | cpio --quiet --create --format newc >initrd`, "-", dir)
	must(err)
	path := filepath.Join(dir, "disk.img")
	d.disk, err = lab.NewFirmwareDisk(t.Context(), path, "ext4", 1<<30, false)
	must(err)
	uuid, err := lab.Command(t.Context(), "blkid", "--probe", "--offset", fmt.Sprint(d.disk.RootStart), "--match-tag", "UUID", "--output", "value", path)
	must(err)
	d.place = grub.Place{UUID: strings.TrimSpace(uuid), Path: "/boot"}
	must(d.disk.WithFirmware(t.Context(), func(root string) error {
		if err := os.Mkdir(filepath.Join(root, "boot"), 0o755); err != nil {
			return err
		}
		for from, to := range map[string]string{d.kernel: "vmlinuz", d.initrd: "initrd"} {
			if _, err := lab.Command(t.Context(), "cp", from, filepath.Join(root, "boot", to)); err != nil {
				return err
			}
		}
		l, err := d.open(root, filepath.Join(root, "efi"))
		if err != nil {
			return err
		}
		defer l.Close()
		_, err = l.Update(os.DirFS(d.program))
		return err
	}))
	d.machine = new(world).machine(t, d.disk)
	d.machine.Firmware, d.machine.BootTimeout, d.machine.Memory = true, scriptTimeout, 512
	return d
}

// open returns the loader of a mounted root, with a directory for the partition.
func (d *dying) open(root, esp string) (*grub.Loader, error) {
	boot, err := os.OpenRoot(filepath.Join(root, "boot"))
	if err != nil {
		return nil, err
	}
	partition, err := os.OpenRoot(esp)
	if err != nil {
		return nil, err
	}
	return grub.New(boot, grub.Options{ESP: partition, Arch: "amd64", Place: &d.place}), nil
}

// with calls fn with the loader of the disk of a machine that is down. What is
// written to the partition is lost.
func (d *dying) with(fn func(*grub.Loader) error) {
	d.t.Helper()
	ctx := d.t.Context()
	esp, err := d.disk.ESP(ctx, d.t.TempDir(), false)
	if err != nil {
		d.t.Fatal(err)
	}
	root := d.t.TempDir()
	if _, err := lab.Command(ctx, "mount", "-o", fmt.Sprintf("loop,offset=%d", d.disk.RootStart), d.disk.Path, root); err != nil {
		d.t.Fatal(err)
	}
	l, err := d.open(root, esp)
	if err == nil {
		err = fn(l)
		l.Close()
	}
	if _, uerr := lab.Command(ctx, "umount", root); err != nil || uerr != nil {
		d.t.Fatal(err, uerr)
	}
}

// commit makes the menu new, second, old; of these the first has one try and the
// second two.
func (d *dying) commit(change func(*loader.Item)) {
	d.t.Helper()
	tries := map[string]uint64{"new": 1, "second": 2}
	var items []loader.Item
	for _, id := range []string{"new", "second", "old"} {
		e := &bls.Entry{}
		e.Set("title", id)
		e.Set("linux", "/boot/vmlinuz")
		e.SetInitrds([]string{"/boot/initrd"})
		e.Set("options", "console=ttyS0 panic=1 lab.root="+id+" "+lab.EmulatorOptions)
		it := loader.Item{ID: id, Entry: e, Tries: func() uint64 { return tries[id] }}
		if change != nil {
			change(&it)
		}
		items = append(items, it)
	}
	d.with(func(l *grub.Loader) error { return l.Commit(d.t.Context(), loader.Menu{Items: items}) })
}

func (d *dying) counters() string {
	d.t.Helper()
	var list []string
	d.with(func(l *grub.Loader) error {
		lines, _, err := l.Lines(nil)
		for _, line := range lines {
			text := line.ID
			if c := line.Counter; c != nil {
				text += fmt.Sprintf("+%d-%d", c.Left, c.Done)
			}
			list = append(list, text)
		}
		return err
	})
	return strings.Join(list, " ")
}

var startedRoot = regexp.MustCompile(`Command line: .* lab\.root=(\w+)`)

// boot starts the machine, whose kernel panics, and says which root that was.
func (d *dying) boot() string {
	d.t.Helper()
	g, err := d.machine.Boot(d.t.Context())
	if err == nil {
		g.Kill()
		d.t.Fatal("a root without anything boots")
	}
	if !strings.Contains(err.Error(), "Rebooting in 1 seconds") {
		d.t.Fatal(err)
	}
	consoles, _ := filepath.Glob(filepath.Join(d.machine.Dir, "boot-*/console.log"))
	text, err := os.ReadFile(filepath.Join(d.machine.Dir, fmt.Sprintf("boot-%d/console.log", len(consoles))))
	if err != nil {
		d.t.Fatal(err)
	}
	m := startedRoot.FindSubmatch(text)
	if m == nil {
		d.t.Fatalf("the console names no root:\n%s", text)
	}
	return string(m[1])
}
