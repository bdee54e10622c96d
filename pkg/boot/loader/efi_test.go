package loader_test

import (
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"

	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

const systemdGUID = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

func wide(s string) []byte {
	data := []byte{6, 0, 0, 0} // attributes
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		data = append(data, byte(u), byte(u>>8))
	}
	return data
}

func TestReadFirmware(t *testing.T) {
	for _, c := range []struct {
		name string
		vars map[string][]byte // nil: not started by EFI
		want loader.Firmware
	}{
		{"BIOS", nil, loader.Firmware{SecureBoot: "disabled"}},
		{"says nothing", map[string][]byte{}, loader.Firmware{EFI: true, SecureBoot: "unknown"}},
		{"systemd-boot", map[string][]byte{
			"SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": {6, 0, 0, 0, 1},
			"LoaderInfo" + systemdGUID:                        wide("systemd-boot 257.9-1~deb13u1"),
			"LoaderDevicePartUUID" + systemdGUID:              wide("AB12CD34-0000-4000-8000-0123456789AB"),
		}, loader.Firmware{EFI: true, SecureBoot: "enabled", Info: "systemd-boot 257.9-1~deb13u1", Partition: "ab12cd34-0000-4000-8000-0123456789ab"}},
		{"cut short", map[string][]byte{
			"SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": {6, 0},
			"LoaderInfo" + systemdGUID:                        {6, 0, 0, 0, 'G', 0, 'R'},
		}, loader.Firmware{EFI: true, SecureBoot: "unknown", Info: "G"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			machine := t.TempDir()
			if c.vars != nil {
				dir := filepath.Join(machine, "sys/firmware/efi/efivars")
				check(t, os.MkdirAll(dir, 0o755))
				for name, data := range c.vars {
					check(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
				}
			}
			root, err := os.OpenRoot(machine)
			check(t, err)
			defer root.Close()
			got := loader.ReadFirmware(root)
			if got != c.want {
				t.Errorf("firmware is %+v, want %+v", got, c.want)
			}
			if got.SystemdBoot() != (c.name == "systemd-boot") {
				t.Errorf("%s is taken for systemd-boot: %v", got.Info, got.SystemdBoot())
			}
		})
	}
}

func TestRecord(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	check(t, err)
	defer root.Close()
	if r, err := loader.ReadRecord(root, "state"); r != (loader.Record{}) || err != nil {
		t.Errorf("no record is read as %+v, %v", r, err)
	}
	want := loader.NewRecord(loader.NameSystemdBoot)
	check(t, want.Write(root, "state"))
	if r, err := loader.ReadRecord(root, "state"); r != want || err != nil {
		t.Errorf("%+v is read as %+v, %v", want, r, err)
	}
	for _, text := range []string{"", "{}", `{"bootloader":"systemd-boot","token":"../../etc"}`, string(make([]byte, 5000))} {
		check(t, root.WriteFile("state/loader", []byte(text), 0o644))
		if _, err := loader.ReadRecord(root, "state"); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("the record %.40q gives %v, want corrupt", text, err)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
