package assess

import (
	"os"
	"path/filepath"

	"github.com/kedge-os/kedge/pkg/boot/loader"
)

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
	// Own: kedge itself says that a boot was good, not systemd-bless-boot.
	Own bool
}

// ReadCounting looks at the machine whose root is the directory machine.
func ReadCounting(machine string) Counting {
	var f loader.Firmware
	if root, err := os.OpenRoot(machine); err == nil {
		f = loader.ReadFirmware(root)
		_ = root.Close()
	}
	c := Counting{Loader: f.Info, Counted: f.Counted}
	_, bless := os.Stat(filepath.Join(machine, loader.BlessProgram))
	switch {
	case !f.EFI:
		c.Why = "the machine was not started through UEFI, and no boot loader that counts boots is known here"
	case !f.Features && f.Info == "":
		c.Why = "the boot loader does not say that it counts boots"
	case !f.Counts:
		c.Why = f.Info + " does not count boots"
	case bless != nil:
		c.Why = "the image has no systemd-bless-boot (Debian: package systemd-boot), which says that a boot was good"
	default:
		c.Counts = true
	}
	return c
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
