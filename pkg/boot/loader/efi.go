package loader

import (
	"encoding/binary"
	"os"
	"path"
	"strings"
	"unicode/utf16"
)

// Variables of the firmware and, by the Boot Loader Interface of systemd
// (https://systemd.io/BOOT_LOADER_INTERFACE), of the boot loader: four bytes of
// attributes, then the value.
const (
	efivars        = "sys/firmware/efi/efivars"
	secureBoot     = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	loaderGUID     = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	loaderInfo     = "LoaderInfo" + loaderGUID
	loaderPart     = "LoaderDevicePartUUID" + loaderGUID
	loaderFeatures = "LoaderFeatures" + loaderGUID
	loaderCounted  = "LoaderBootCountPath" + loaderGUID
	systemdPrefix  = "systemd-boot"
)

// featureCounting is the bit of LoaderFeatures that says that it counts boots.
const featureCounting = 1 << 4

// Firmware is what a running machine's firmware tells.
type Firmware struct {
	EFI bool
	// SecureBoot is "enabled", "disabled" or, where it is not told, "unknown".
	SecureBoot string
	// Info is the boot loader's name and version, "systemd-boot 257.9-1"; "" for
	// one that does not say.
	Info string
	// Partition is the UUID of the partition that the loader was started from,
	// lower case; "" where it is not told.
	Partition string
	// Features: the boot loader says what it can. Counts: it can count boots.
	Features, Counts bool
	// Counted: this boot was of an entry that was counted.
	Counted bool
}

// SystemdBoot reports whether systemd-boot started the machine.
func (f Firmware) SystemdBoot() bool { return strings.HasPrefix(f.Info, systemdPrefix) }

// ReadFirmware reads the variables of the machine whose root is given.
func ReadFirmware(machine *os.Root) Firmware {
	f := Firmware{SecureBoot: "unknown"}
	if st, err := machine.Stat(path.Dir(efivars)); err != nil || !st.IsDir() {
		f.SecureBoot = "disabled" // there is none without EFI
		return f
	}
	f.EFI = true
	if v := variable(machine, secureBoot); len(v) == 1 {
		f.SecureBoot = "disabled"
		if v[0] == 1 {
			f.SecureBoot = "enabled"
		}
	}
	f.Info = text(variable(machine, loaderInfo))
	f.Partition = strings.ToLower(text(variable(machine, loaderPart)))
	if v := variable(machine, loaderFeatures); len(v) >= 8 {
		f.Features, f.Counts = true, binary.LittleEndian.Uint64(v)&featureCounting != 0
	}
	f.Counted = len(variable(machine, loaderCounted)) > 0
	return f
}

// variable reads a variable without the four bytes of attributes before it.
func variable(machine *os.Root, name string) []byte {
	name = path.Join(efivars, name)
	st, err := machine.Stat(name)
	if err != nil || st.Size() > 4<<10 {
		return nil
	}
	data, err := machine.ReadFile(name)
	if err != nil || len(data) < 4 {
		return nil
	}
	return data[4:]
}

// text decodes UTF-16LE up to a NUL.
func text(data []byte) string {
	var units []uint16
	for ; len(data) >= 2; data = data[2:] {
		u := binary.LittleEndian.Uint16(data)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
