package assess

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/kedge-os/kedge/pkg/boot/loader"
)

// efi writes variables as the kernel shows them.
func efi(t *testing.T, machine, info string, features uint64, counted string) {
	t.Helper()
	text := func(s string) string {
		var b []byte
		for _, c := range utf16.Encode([]rune(s)) {
			b = binary.LittleEndian.AppendUint16(b, c)
		}
		return string(b) + "\x00\x00"
	}
	const attributes, vars, guid = "\x06\x00\x00\x00", "/sys/firmware/efi/efivars/", "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	put(t, machine, vars+"LoaderInfo"+guid, attributes+text(info), 0o644)
	put(t, machine, vars+"LoaderFeatures"+guid, attributes+string(binary.LittleEndian.AppendUint64(nil, features)), 0o644)
	if counted != "" {
		put(t, machine, vars+"LoaderBootCountPath"+guid, attributes+text(counted), 0o644)
	}
}

func TestReadCounting(t *testing.T) {
	for name, tc := range map[string]struct {
		info            string
		features        uint64
		counted         string
		bless           bool
		counts, isCount bool
		why             string
	}{
		"systemd-boot, new root":  {"systemd-boot 257.8-1", 0x1ff, "/loader/entries/a+2-1.conf", true, true, true, ""},
		"systemd-boot, good root": {"systemd-boot 257.8-1", 0x1ff, "", true, true, false, ""},
		"without bless-boot":      {"systemd-boot 257.8-1", 0x1ff, "", false, false, false, "no systemd-bless-boot"},
		"GRUB":                    {"GRUB 2.12", 0, "", true, false, false, "GRUB 2.12 does not count"},
	} {
		t.Run(name, func(t *testing.T) {
			machine := t.TempDir()
			efi(t, machine, tc.info, tc.features, tc.counted)
			if tc.bless {
				put(t, machine, loader.BlessProgram, "", 0o755)
			}
			c := ReadCounting(machine)
			if c.Loader != tc.info || c.Counts != tc.counts || c.Counted != tc.isCount || !strings.Contains(c.Why, tc.why) || c.Counts != (c.Why == "") {
				t.Errorf("counting = %+v", c)
			}
		})
	}
	if c := ReadCounting(t.TempDir()); c.Counts || !strings.Contains(c.Why, "not started through UEFI") {
		t.Errorf("without UEFI: %+v", c)
	}
}

// TestReboot: a machine is rebooted only where that leads somewhere else.
func TestReboot(t *testing.T) {
	all := State{Counting: Counting{Counts: true, Counted: true}, Fallback: true, Failures: 1}
	if ok, why := all.Reboot(); !ok || why != "" {
		t.Errorf("a first failure with all that is needed: %v, %q", ok, why)
	}
	for name, change := range map[string]func(*State){
		"no counting":           func(s *State) { s.Counts, s.Why = false, "GRUB does not count boots" },
		"an entry that is good": func(s *State) { s.Counted = false },
		"nothing to go back to": func(s *State) { s.Fallback = false },
		"a loop":                func(s *State) { s.Failures = maxFailures + 1 },
		"found good before":     func(s *State) { s.Good = true },
	} {
		s := all
		change(&s)
		if ok, why := s.Reboot(); ok || why == "" {
			t.Errorf("%s: %v, %q; want no reboot, and why", name, ok, why)
		}
	}
}
