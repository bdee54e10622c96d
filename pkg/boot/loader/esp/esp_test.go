package esp

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/blockdev"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machine pretends that the loop device below dir is a disk with two partitions:
// an EFI system partition and an extended one, with an image of the given kind in
// it. It returns the machine's root.
func machine(t *testing.T, dir, kind string) string {
	t.Helper()
	lab.Need(t, "sfdisk", "mkfs.vfat", "mkfs.ext4")
	place, err := blockdev.Find(dir)
	check(t, err)
	disk := filepath.Base(place.Device)
	root := t.TempDir()
	for i, name := range []string{"p1", "p2"} {
		sys := filepath.Join(root, "sys/class/block", disk, disk+name)
		check(t, os.MkdirAll(sys, 0o755))
		check(t, os.WriteFile(filepath.Join(sys, "partition"), []byte{byte('1' + i), '\n'}, 0o644))
	}
	check(t, os.Mkdir(filepath.Join(root, "dev"), 0o755))
	table := filepath.Join(root, "dev", disk)
	check(t, os.WriteFile(table, nil, 0o600))
	check(t, os.Truncate(table, 32<<20))
	cmd := exec.Command("sfdisk", "--quiet", table)
	cmd.Stdin = strings.NewReader("label: gpt\nsize=8M, type=U\nsize=8M, type=" + blockdev.TypeXBOOTLDR + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	part := filepath.Join(root, "dev", disk+"p2")
	check(t, os.WriteFile(part, nil, 0o600))
	check(t, os.Truncate(part, 8<<20))
	if out, err := exec.Command("mkfs."+kind, part).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
	}
	return root
}

func TestFind(t *testing.T) {
	dir := lab.Mounted(t, "ext4", 64<<20)
	for kind, extended := range map[string]string{"vfat": "p2", "ext4": ""} {
		o := Options{Dir: dir, Machine: machine(t, dir, kind), Disk: dir}
		device, err := o.device()
		if err != nil || !strings.HasSuffix(device, "p1") {
			t.Errorf("%s: the EFI system partition is %q, %v", kind, device, err)
		}
		device, err = o.extended()
		if err != nil || !strings.HasSuffix(device, extended) || extended == "" && device != "" {
			t.Errorf("%s: the extended partition is %q, %v, want %q", kind, device, err, extended)
		}
		if Blessable(o) {
			t.Errorf("%s: nothing is mounted, and systemd-bless-boot finds it", kind)
		}
		check(t, os.MkdirAll(filepath.Join(dir, "efi"), 0o755))
		o.AnyFilesystem = true
		if got, want := Blessable(o), extended == ""; got != want {
			t.Errorf("%s: with a partition at efi systemd-bless-boot finds the entries: %v, want %v", kind, got, want)
		}
		check(t, os.Remove(filepath.Join(dir, "efi")))
	}
	if device, err := (Options{Dir: dir}).device(); device != "" || err != nil {
		t.Errorf("nothing to search: %q, %v", device, err)
	}
}

func TestOpenRefused(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	want := func(what string, o Options, kind fault.Kind, says string) {
		t.Helper()
		root, err := Open(o)
		if root != nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s about %q", what, err, kind, says)
		}
	}
	want("nothing", Options{Dir: dir}, fault.NotFound, "no EFI system partition")
	efi := filepath.Join(dir, "boot/efi")
	check(t, os.MkdirAll(efi, 0o755))
	want("not mounted", Options{Dir: dir}, fault.NotFound, "no EFI system partition")
	check(t, unix.Mount("esp", efi, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { check(t, unix.Unmount(efi, unix.MNT_DETACH)) })
	want("another file system", Options{Dir: dir}, fault.Conflict, "not a FAT file system")
	check(t, unix.Mount("", efi, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	want("read-only", Options{Dir: dir, Write: true, AnyFilesystem: true}, fault.Denied, "read-only")
	want("a partition with a path for a name", Options{Dir: t.TempDir(), Firmware: loader.Firmware{Partition: "../x"}}, fault.Corrupt, "names the partition")
	want("a partition that is gone", Options{Dir: t.TempDir(), Firmware: loader.Firmware{Partition: "0123"}}, fault.NotFound, "is not there")
	disk := lab.Mounted(t, "ext4", 64<<20)
	// No kernel mounts a file of zeros.
	o := Options{Dir: disk, Machine: machine(t, disk, "vfat"), Disk: disk}
	want("a partition that cannot be mounted", o, fault.Conflict, "p1")
}
