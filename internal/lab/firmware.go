package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// The firmware of a machine that boots by itself: OVMF, and the file that its
// variables begin as.
const (
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// The EFI system partition of a disk that a firmware boots from: /dev/vda1. The
// root file system, /dev/vda2, is what follows it.
const (
	espStart = 1 << 20
	espSize  = 512 << 20
)

// NewFirmwareDisk makes a sparse image of size bytes at path with a GPT, an empty
// EFI system partition labelled ESP, and behind it a file system of the kind fs,
// labelled root, with mkfs's options behind the kind.
func NewFirmwareDisk(ctx context.Context, path, fs string, size int64) (*Disk, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	const tail = 1 << 20 // the second copy of the table
	rootStart, rootSize := int64(espStart+espSize), size-espStart-espSize-tail
	kind, options, _ := strings.Cut(fs, " ")
	script := fmt.Sprintf(`
sfdisk --quiet "$1" <<END
label: gpt
start=%d, size=%d, type=U
start=%d, size=%d, type=L
END
mkfs.vfat -F 32 -n ESP --offset %d "$1" %d
mkfs.%s %s -q -L root -E offset=%d "$1" %dk
`, espStart/512, espSize/512, rootStart/512, rootSize/512, espStart/512, espSize/1024, kind, options, rootStart, rootSize/1024)
	_, err = Command(ctx, "bash", "-ec", script, "-", path)
	return &Disk{Path: path}, err
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
	if _, err := Command(ctx, "mount", "-o", fmt.Sprintf("loop,offset=%d", espStart+espSize), d.Path, root); err != nil {
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
// directory below dir, and returns it with what fsck.fat says of the partition;
// an error where it finds damage. The machine must not run.
func (d *Disk) ESP(ctx context.Context, dir string) (files, fsck string, err error) {
	to, err := os.MkdirTemp(dir, "esp-")
	if err != nil {
		return "", "", err
	}
	if _, err := Command(ctx, "mcopy", "-s", "-n", "-i", fmt.Sprintf("%s@@%d", d.Path, espStart), "::/", to); err != nil {
		return "", "", err
	}
	part := filepath.Join(to, ".partition")
	if err := copyPart(d.Path, part); err != nil {
		return "", "", err
	}
	defer os.Remove(part)
	fsck, err = Command(ctx, "fsck.fat", "-n", part)
	return to, fsck, err
}

func copyPart(disk, to string) error {
	src, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.NewSectionReader(src, espStart, espSize))
	return errors.Join(err, dst.Close())
}

// firmwareArguments give a machine its firmware, whose variables stay from boot
// to boot.
func (m *Machine) firmwareArguments() ([]string, error) {
	vars := filepath.Join(m.Dir, "firmware-vars.fd")
	if _, err := os.Stat(vars); errors.Is(err, os.ErrNotExist) {
		text, err := os.ReadFile(firmwareVars)
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
