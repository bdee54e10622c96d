package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The firmware of a machine that boots by itself: OVMF, and the file that its
// variables begin as.
const (
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	// microsoftVars has the keys of machines that are sold, and Secure Boot on.
	microsoftVars = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
	// varsFile is a machine's own, in its directory.
	varsFile = "firmware-vars.fd"
)

// The EFI system partition of a disk that a firmware boots from: /dev/vda1. An
// extended boot loader partition of the same size may follow it; the root file
// system is what comes last.
const (
	espStart = 1 << 20
	espSize  = 512 << 20
)

// NewFirmwareDisk makes a sparse image of size bytes at path with a GPT, an empty
// EFI system partition labelled ESP, with extended an empty extended boot loader
// partition labelled XBOOTLDR, and behind them a file system of the kind fs,
// labelled root, with mkfs's options behind the kind.
func NewFirmwareDisk(ctx context.Context, path, fs string, size int64, extended bool) (*Disk, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	table, makeFAT, start := "label: gpt\n", "", int64(espStart)
	add := func(kind, label string) {
		table += fmt.Sprintf("start=%d, size=%d, type=%s\n", start/512, espSize/512, kind)
		makeFAT += fmt.Sprintf("mkfs.vfat -F 32 -n %s --offset %d \"$1\" %d\n", label, start/512, espSize/1024)
		start += espSize
	}
	add("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ESP")
	if extended {
		add("BC13C2FF-59E6-4262-A352-B275FD6F7172", "XBOOTLDR")
	}
	const tail = 1 << 20 // the second copy of the table
	rootSize := size - start - tail
	kind, options, _ := strings.Cut(fs, " ")
	script := fmt.Sprintf(`
sfdisk --quiet "$1" <<END
%sstart=%d, size=%d, type=L
END
%smkfs.%s %s -q -L root -E offset=%d "$1" %dk
`, table, start/512, rootSize/512, makeFAT, kind, options, start, rootSize/1024)
	_, err = Command(ctx, "bash", "-ec", script, "-", path)
	return &Disk{Path: path, RootStart: start}, err
}

// WithFirmware mounts the root file system of such a disk in a directory of its
// own, calls fn with it, copies what fn wrote to its directory efi to the EFI
// system partition, and unmounts: this machine's kernel may have no FAT.
func (d *Disk) WithFirmware(ctx context.Context, fn func(root string) error) (err error) {
	root, err := os.MkdirTemp("", "kedge-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(root)) }()
	if _, err := Command(ctx, "mount", "-o", fmt.Sprintf("loop,offset=%d", d.RootStart), d.Path, root); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(ctx, d.Path, root)) }()
	esp := filepath.Join(root, "efi")
	if err := os.Mkdir(esp, 0o755); err != nil {
		return err
	}
	if err := fn(root); err != nil {
		return err
	}
	_, err = Command(ctx, "bash", "-ec", `cd "$1"; mcopy -s -Q -i "$2" * ::/; rm -r *`, "-", esp, fmt.Sprintf("%s@@%d", d.Path, espStart))
	return err
}

// ESP copies what is on the EFI system partition of such a disk to a new
// directory below dir, and returns it; an error where fsck.fat finds anything, but
// for a partition on which the power was cut what that alone explains. The
// machine must not run.
func (d *Disk) ESP(ctx context.Context, dir string, powerCut bool) (files string, err error) {
	to, err := os.MkdirTemp(dir, "esp-")
	if err != nil {
		return "", err
	}
	if _, err := Command(ctx, "mcopy", "-s", "-n", "-i", fmt.Sprintf("%s@@%d", d.Path, espStart), "::/", to); err != nil {
		return "", err
	}
	part := filepath.Join(to, ".partition")
	defer os.Remove(part)
	if _, err := Command(ctx, "dd", "if="+d.Path, "of="+part, "bs=1M", fmt.Sprintf("skip=%d", espStart>>20), fmt.Sprintf("count=%d", espSize>>20), "conv=sparse", "status=none"); err != nil {
		return "", err
	}
	return to, checkFAT(ctx, part, powerCut)
}

func checkFAT(ctx context.Context, part string, powerCut bool) error {
	found, err := Command(ctx, "fsck.fat", "-n", part)
	if err != nil && powerCut && onlyDirty(found) {
		return nil
	}
	return err
}

// onlyDirty reports whether all that fsck.fat found is that a partition was not
// unmounted: Linux sets a bit in the boot sector, at byte 65, while it has the
// partition mounted, and leaves it where it was set before.
func onlyDirty(found string) bool {
	var lines []string
	for line := range strings.Lines(found) {
		lines = append(lines, strings.TrimSpace(line))
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return line == "" })
	// Before it the program's name and version, after it files and clusters.
	return len(lines) == len(dirty)+2 && slices.Equal(lines[1:len(lines)-1], dirty)
}

var dirty = []string{
	"There are differences between boot sector and its backup.",
	"This is mostly harmless. Differences: (offset:original/backup)",
	"65:01/00",
	"Not automatically fixing this.",
	"Dirty bit is set. Fs was not properly unmounted and some data may be corrupt.",
	"Automatically removing dirty bit.",
	"Leaving filesystem unchanged.",
}

// firmwareArguments give a machine its firmware, whose variables stay from boot
// to boot.
func (m *Machine) firmwareArguments() ([]string, error) {
	vars := filepath.Join(m.Dir, varsFile)
	if _, err := os.Stat(vars); errors.Is(err, os.ErrNotExist) {
		made := firmwareVars
		if m.SecureBoot {
			made = microsoftVars
		}
		text, err := os.ReadFile(made)
		if err == nil {
			err = os.WriteFile(vars, text, 0o600)
		}
		if err != nil {
			return nil, err
		}
	}
	return []string{
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + firmwareCode,
		"-drive", "if=pflash,unit=1,format=raw,file=" + vars,
	}, nil
}
