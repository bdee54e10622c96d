package sdboot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/internal/pefile"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/fault"
)

// programDir is where an image has the loader.
const programDir = "usr/lib/systemd/boot/efi"

// firmwareNames are the architectures as EFI spells them in file names.
var firmwareNames = map[string]string{"386": "ia32", "amd64": "x64", "arm": "arm", "arm64": "aa64", "riscv64": "riscv64", "loong64": "loongarch64"}

// maxProgram bounds the loader's program; systemd-boot has about 100 kB.
const maxProgram = 16 << 20

// Sources are the paths of the loader's program in an image: the one that is
// signed for Secure Boot comes before the other.
func Sources(arch string) []string {
	name := path.Join(programDir, "systemd-boot"+firmwareNames[arch]+".efi")
	return []string{name + ".signed", name}
}

// source returns the path of the loader's program in an image; NotFound where it
// has none.
func source(image fs.FS, arch string) (string, error) {
	for _, n := range Sources(arch) {
		if st, err := fs.Stat(image, n); err == nil && st.Mode().IsRegular() && st.Size() <= maxProgram {
			return n, nil
		}
	}
	return "", fault.New(fault.NotFound, "put systemd-boot into the image, or use --bootloader none", "the image has no systemd-boot")
}

// targets are the places of the program on the EFI system partition: the one
// that boot entries of the firmware name, and the one that it takes without any.
func targets(arch string) (own, fallback string) {
	n := firmwareNames[arch]
	return "EFI/systemd/systemd-boot" + n + ".efi", "EFI/BOOT/BOOT" + strings.ToUpper(n) + ".EFI"
}

// infoSection holds "#### LoaderInfo: systemd-boot 257.9-1 ####" (sdmagic of
// systemd).
const (
	infoSection = ".sdmagic"
	infoBegin   = "#### LoaderInfo: systemd-boot "
	infoEnd     = " ####"
)

// Version returns the version of a systemd-boot program; false for anything
// else.
func Version(program []byte) (string, bool) {
	data, _ := pefile.Find(program, infoSection, maxProgram)
	_, rest, ok := strings.Cut(string(data), infoBegin)
	version, _, closed := strings.Cut(rest, infoEnd)
	return version, ok && closed
}

// Installed reports whether a partition has systemd-boot.
func Installed(esp *os.Root, arch string) bool {
	own, fallback := targets(arch)
	for _, name := range []string{own, fallback} {
		if data, err := readProgram(esp, name); err == nil {
			if _, ok := Version(data); ok {
				return true
			}
		}
	}
	return false
}

func readProgram(root *os.Root, name string) ([]byte, error) {
	st, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxProgram {
		return nil, fault.New(fault.Corrupt, "", "%s is not a program", name)
	}
	return root.ReadFile(name)
}

// Update implements loader.Loader. The two copies are replaced one after the
// other, each at one instant, so that the firmware always finds one that is
// whole. The fallback of another system is left alone.
func (l *Loader) Update(image fs.FS) (bool, error) {
	name, err := source(image, l.opts.Arch)
	if err != nil {
		return false, err
	}
	program, err := fs.ReadFile(image, name)
	if err != nil {
		return false, err
	}
	version, ok := Version(program)
	if !ok {
		return false, fault.New(fault.Corrupt, "the image has to be repaired", "%s of the image is not systemd-boot", name)
	}
	changed := false
	own, fallback := targets(l.opts.Arch)
	for _, target := range []string{own, fallback} {
		have, err := readProgram(l.opts.Programs, target)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
		old, known := Version(have)
		switch {
		case err == nil && !known && target == fallback:
			l.log.Warn("the firmware's fallback is another loader's and stays; make a boot entry for "+own, "file", target)
			continue
		case known && bls.CompareVersions(old, version) >= 0:
			continue
		}
		if err := bootdir.ReplaceOnFAT(l.opts.Programs, target, program, l.opts.NoSync); err != nil {
			return changed, fmt.Errorf("install systemd-boot: %w", err)
		}
		l.log.Info("boot loader installed", "file", target, "version", version, "before", old)
		changed = true
	}
	settled, err := l.settle()
	if err == nil && (changed || settled) {
		err = l.sync()
		if err == nil && l.Extended() {
			err = l.flush(l.opts.Programs)
		}
	}
	return changed || settled, err
}

// settle makes the files that systemd-boot and kernel-install look for, where
// they are not there, and reports whether it made one.
func (l *Loader) settle() (changed bool, err error) {
	for _, f := range []struct {
		root       *os.Root
		name, text string
	}{
		{l.opts.Programs, "loader/loader.conf", "timeout 3\n"},
		{l.root, "loader/entries.srel", "type1\n"},
	} {
		if _, err := f.root.Lstat(f.name); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return changed, err
			}
			continue
		}
		if err := f.root.MkdirAll("loader", 0o755); err != nil {
			return changed, err
		}
		if err := f.root.WriteFile(f.name, []byte(f.text), 0o644); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}
