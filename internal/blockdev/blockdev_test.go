package blockdev

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk makes the image of a disk with an ESP, an XBOOTLDR partition and a root.
func disk(t *testing.T, path string) []byte {
	t.Helper()
	lab.Need(t, "sfdisk")
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, os.Truncate(path, 64<<20))
	cmd := exec.Command("sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader("label: gpt\n" +
		"size=8M, type=U, uuid=11111111-2222-3333-4444-555555555555\n" +
		"size=8M, type=" + TypeXBOOTLDR + "\n" + path + "5 : type=L\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	check(t, err)
	return data
}

func TestReadGPT(t *testing.T) {
	data := disk(t, filepath.Join(t.TempDir(), "disk"))
	list, err := ReadGPT(bytes.NewReader(data))
	check(t, err)
	if len(list) != 3 || list[0].Type != TypeESP || list[0].UUID != "11111111-2222-3333-4444-555555555555" || list[1].Type != TypeXBOOTLDR || list[2].Number != 5 {
		t.Errorf("the table is %+v", list)
	}
	for what, change := range map[string]func(b []byte) []byte{
		"header":    func(b []byte) []byte { b[512+56]++; return b },
		"entries":   func(b []byte) []byte { b[1024+40]++; return b },
		"cut short": func(b []byte) []byte { return b[:2048] },
	} {
		if list, err := ReadGPT(bytes.NewReader(change(slices.Clone(data)))); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%s: %+v, %v, want it called damaged", what, list, err)
		}
	}
	for what, b := range map[string][]byte{"empty": nil, "no table": make([]byte, 8192)} {
		if list, err := ReadGPT(bytes.NewReader(b)); len(list) > 0 || err != nil {
			t.Errorf("%s: %+v, %v", what, list, err)
		}
	}
}

func FuzzReadGPT(f *testing.F) {
	f.Add(append(make([]byte, 512), "EFI PART"...))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = ReadGPT(bytes.NewReader(data)) })
}

// TestPartitions: a root on an encrypted volume on two disks, as sysfs shows it.
func TestPartitions(t *testing.T) {
	machine := t.TempDir()
	for _, dir := range []string{"sys/class/block", "sys/devices/vda/vda1", "sys/devices/vda/vda2", "sys/devices/vda/vda5", "sys/devices/vdb/vdb1", "sys/devices/dm-0/slaves", "dev"} {
		check(t, os.MkdirAll(filepath.Join(machine, dir), 0o755))
	}
	for name, n := range map[string]string{"vda/vda1": "1", "vda/vda2": "2", "vda/vda5": "5", "vdb/vdb1": "1"} {
		check(t, os.WriteFile(filepath.Join(machine, "sys/devices", name, "partition"), []byte(n+"\n"), 0o644))
		check(t, os.Symlink("../../devices/"+name, filepath.Join(machine, "sys/class/block", filepath.Base(name))))
	}
	for _, name := range []string{"vda", "vdb", "dm-0"} {
		check(t, os.Symlink("../../devices/"+name, filepath.Join(machine, "sys/class/block", name)))
	}
	for _, name := range []string{"vda5", "vdb1"} {
		check(t, os.WriteFile(filepath.Join(machine, "sys/devices/dm-0/slaves", name), nil, 0o644))
	}
	disk(t, filepath.Join(machine, "dev/vda"))
	for device, want := range map[string]string{"/dev/dm-0": "vda vdb", "/dev/vda2": "vda", "/dev/vdb": "vdb"} {
		got, err := Disks(machine, device)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s lies on %q, %v, want %s", device, got, err, want)
		}
	}
	list, err := Partitions(machine, "vda")
	check(t, err)
	if len(list) != 3 || list[0].Type != TypeESP || list[0].Device != filepath.Join(machine, "dev/vda1") || list[2].Number != 5 {
		t.Errorf("the partitions are %+v", list)
	}
}

func TestUUID(t *testing.T) {
	const id = "01234567-89ab-cdef-0123-456789abcdef"
	for kind, args := range map[string][]string{"ext4": {"-q", "-U"}, "xfs": {"-q", "-m"}, "btrfs": {"-q", "-U"}} {
		lab.Need(t, "mkfs."+kind)
		path := filepath.Join(t.TempDir(), kind)
		check(t, os.WriteFile(path, nil, 0o600))
		check(t, os.Truncate(path, 512<<20))
		value := id
		if kind == "xfs" {
			value = "uuid=" + id
		}
		if out, err := exec.Command("mkfs."+kind, append(args, value, path)...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
		}
		f, err := os.Open(path)
		check(t, err)
		if got, err := UUID(f); got != id || err != nil {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
		f.Close()
	}
	if _, err := UUID(bytes.NewReader(make([]byte, 1<<20))); fault.KindOf(err) != fault.NotFound {
		t.Errorf("no file system: %v", err)
	}
}

// TestFind: a directory of a mounted file system.
func TestFind(t *testing.T) {
	lab.NeedRoot(t)
	dir := lab.Mounted(t, "ext4", 64<<20)
	check(t, os.Mkdir(filepath.Join(dir, "boot"), 0o755))
	for name, want := range map[string]string{"": "/", "boot": "/boot"} {
		p, err := Find(filepath.Join(dir, name))
		check(t, err)
		if p.Path != want || !strings.HasPrefix(p.Device, "/dev/loop") {
			t.Errorf("%q is %+v, want %s of a loop device", name, p, want)
		}
		f, err := os.Open(p.Device)
		check(t, err)
		if _, err := UUID(f); err != nil {
			t.Error(err)
		}
		f.Close()
	}
	if p, err := Find("/proc"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("/proc is %+v, %v", p, err)
	}
}

func TestIsFAT(t *testing.T) {
	lab.Need(t, "mkfs.vfat", "mkfs.ext4")
	for _, c := range []struct {
		args []string
		want bool
	}{{[]string{"mkfs.vfat", "-F", "16"}, true}, {[]string{"mkfs.vfat", "-F", "32"}, true}, {[]string{"mkfs.ext4", "-q"}, false}} {
		path := filepath.Join(t.TempDir(), "image")
		check(t, os.WriteFile(path, nil, 0o600))
		check(t, os.Truncate(path, 64<<20))
		if out, err := exec.Command(c.args[0], append(c.args[1:], path)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.args, err, out)
		}
		f, err := os.Open(path)
		check(t, err)
		if got, err := IsFAT(f); got != c.want || err != nil {
			t.Errorf("%v: %v, %v, want %v", c.args, got, err, c.want)
		}
		f.Close()
	}
	if got, err := IsFAT(bytes.NewReader(nil)); got || err != nil {
		t.Errorf("an empty device: %v, %v", got, err)
	}
}
