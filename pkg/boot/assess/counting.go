package assess

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/loader"
)

// Variables by which a boot loader says what it is and did (the Boot Loader
// Interface, https://systemd.io/BOOT_LOADER_INTERFACE): four bytes of
// attributes, then the value.
const (
	efivars     = "sys/firmware/efi/efivars/"
	loaderGUID  = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	varFeatures = efivars + "LoaderFeatures" + loaderGUID
	varInfo     = efivars + "LoaderInfo" + loaderGUID
	varCounted  = efivars + "LoaderBootCountPath" + loaderGUID
)

// featureCounting is the bit of LoaderFeatures that says that it counts boots.
const featureCounting = 1 << 4

// Counting is what is known of how the running machine's boots are counted.
type Counting struct {
	// Loader is how the boot loader calls itself, "" for one that does not say.
	Loader string
	// Counts: the loader counts boots, and the root can bless one.
	Counts bool
	// Counted: this boot was of an entry that was counted.
	Counted bool
	// Why says why Counts is false.
	Why string
}

// ReadCounting looks at the machine whose root is the directory machine.
func ReadCounting(machine string) Counting {
	c := Counting{Loader: text16(variable(machine, varInfo)), Counted: len(variable(machine, varCounted)) > 0}
	features := variable(machine, varFeatures)
	_, efi := os.Stat(filepath.Join(machine, "sys/firmware/efi"))
	_, bless := os.Stat(filepath.Join(machine, loader.BlessProgram))
	switch {
	case efi != nil:
		c.Why = "the machine was not started through UEFI, and no boot loader that counts boots is known here"
	case len(features) < 8 && c.Loader == "":
		c.Why = "the boot loader does not say that it counts boots"
	case len(features) < 8 || binary.LittleEndian.Uint64(features)&featureCounting == 0:
		c.Why = c.Loader + " does not count boots"
	case bless != nil:
		c.Why = "the image has no systemd-bless-boot (Debian: package systemd-boot), which says that a boot was good"
	default:
		c.Counts = true
	}
	return c
}

// variable returns the value of an EFI variable; nil where there is none.
func variable(machine, name string) []byte {
	data, err := os.ReadFile(filepath.Join(machine, name))
	if err != nil || len(data) <= 4 {
		return nil
	}
	return data[4:]
}

// text16 decodes the UTF-16 of a variable, of which only ASCII is kept.
func text16(data []byte) string {
	var b strings.Builder
	for i := 0; i+1 < len(data); i += 2 {
		if c := binary.LittleEndian.Uint16(data[i:]); c >= ' ' && c < 0x7f {
			b.WriteByte(byte(c))
		}
	}
	return b.String()
}

// State is what is known of a host that failed, to decide whether a reboot can
// help it.
type State struct {
	Counting
	// Fallback: another deployment is there that is not known to fail.
	Fallback bool
	// Failures are the boots of this root that failed in a row, this one too.
	Failures int
	// Good: this boot was found good before.
	Good bool
}

// maxFailures ends a loop of reboots that should not be there: a loader that
// counts has given the root up before, for libostree allows five tries.
const maxFailures = 5

// Reboot decides whether a machine whose boot failed is to be rebooted, so that
// the boot loader tries again or takes what was before; otherwise it says why
// not.
func (s State) Reboot() (bool, string) {
	switch {
	case s.Good:
		return false, "this boot was found good before"
	case !s.Counts:
		return false, s.Why
	case !s.Counted:
		return false, "the boot loader does not count this entry: it would be booted again"
	case !s.Fallback:
		return false, "there is no other deployment to go back to"
	case s.Failures > maxFailures:
		return false, "it has failed many times in a row, and the boot loader did not go back"
	}
	return true, ""
}
