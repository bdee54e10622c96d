package grub

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/pefile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// maxProgram bounds one of GRUB's or shim's programs; they have 1 to 4 MB.
const maxProgram = 32 << 20

// maxFiles bounds a tree for the partition; Fedora's have about ten.
const maxFiles = 64

// names are the architectures as GRUB and EFI spell them.
var names = map[string]struct{ grub, efi string }{
	"amd64": {"x86_64-efi", "x64"}, "arm64": {"arm64-efi", "aa64"}, "386": {"i386-efi", "ia32"},
	"riscv64": {"riscv64-efi", "riscv64"}, "loong64": {"loongarch64-efi", "loongarch64"},
}

// Sources are paths of which an image has one that has GRUB as a program for the
// firmware, made by its vendor: Fedora's family has trees for the EFI system
// partition (for bootupd, and its successor's with a version in the path), Debian's
// has programs, signed for Secure Boot or not.
func Sources(arch string) []string {
	n := names[arch]
	return []string{
		treesDir + "/grub2", bootupdDir,
		"usr/lib/grub/" + n.grub + "-signed/grub" + n.efi + ".efi.signed",
		"usr/lib/grub/" + n.grub + "/monolithic/grub" + n.efi + ".efi",
	}
}

const (
	treesDir   = "usr/lib/efi"
	bootupdDir = "usr/lib/bootupd/updates/EFI"
	fallback   = "EFI/BOOT"
)

// file is a file for the EFI system partition.
type file struct {
	name string // on the partition
	data []byte
}

// programs are the files that an image has for the EFI system partition.
type programs struct {
	files []file
	// vendor is the directory beneath EFI in which GRUB looks for its
	// configuration.
	vendor string
	boot   string // what the firmware starts without a boot entry
}

// read returns what an image has; NotFound where that is nothing.
func read(image fs.FS, arch string) (p programs, err error) {
	n := names[arch]
	p.boot = fallback + "/BOOT" + strings.ToUpper(n.efi) + ".EFI"
	for _, pattern := range []string{treesDir + "/*/*/EFI", bootupdDir} {
		trees, err := fs.Glob(image, pattern)
		if err != nil {
			return p, err
		}
		for _, tree := range trees {
			if err := p.addTree(image, tree); err != nil {
				return p, err
			}
		}
		if len(p.files) > 0 {
			break
		}
	}
	if len(p.files) == 0 {
		if err := p.addDebian(image, n.grub, n.efi); err != nil {
			return p, err
		}
	}
	if !slices.ContainsFunc(p.files, func(f file) bool { return f.name == p.boot }) {
		return p, fault.New(fault.NotFound, "put grub-efi-"+arch+"-signed and shim-signed (Debian), or grub2-efi and shim for bootupd (Fedora) into the image",
			"the image has no GRUB for this machine's firmware")
	}
	// A program is there before one that starts it.
	slices.SortStableFunc(p.files, func(a, b file) int { return p.rank(a.name) - p.rank(b.name) })
	return p, nil
}

func (p *programs) rank(name string) int {
	switch {
	case name == p.boot:
		return 2
	case strings.HasPrefix(path.Base(name), "shim"):
		return 1
	}
	return 0
}

// addTree adds a tree that is laid out as the partition is.
func (p *programs) addTree(image fs.FS, tree string) error {
	return fs.WalkDir(image, tree, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if len(p.files) == maxFiles {
			return fault.New(fault.Corrupt, "the image has to be repaired", "%s has more than %d files", tree, maxFiles)
		}
		data, err := readProgram(image, name)
		if err != nil {
			return err
		}
		to := "EFI/" + strings.TrimPrefix(name, tree+"/")
		if dir := path.Base(path.Dir(to)); strings.HasPrefix(path.Base(to), "grub") && !strings.EqualFold(dir, "BOOT") {
			p.vendor = dir
		}
		if strings.EqualFold(to, p.boot) {
			to = p.boot
		}
		p.files = append(p.files, file{to, data})
		return nil
	})
}

// addDebian adds Debian's programs, under the names that shim looks for, to the
// directory that is GRUB's own and to that of the fallback. Without shim the
// firmware starts GRUB itself.
func (p *programs) addDebian(image fs.FS, platform, efi string) error {
	grubs := []string{"usr/lib/grub/" + platform + "-signed/grub" + efi + ".efi.signed", "usr/lib/grub/" + platform + "/monolithic/grub" + efi + ".efi"}
	grub, err := first(image, grubs...)
	if err != nil || grub == nil {
		return err
	}
	p.vendor = prefixOf(grub)
	own := "EFI/" + p.vendor + "/"
	p.files = append(p.files, file{own + "grub" + efi + ".efi", grub})
	shim, err := first(image, "usr/lib/shim/shim"+efi+".efi.signed")
	if err != nil {
		return err
	}
	if shim == nil {
		p.files = append(p.files, file{p.boot, grub})
		return nil
	}
	manager, err := first(image, "usr/lib/shim/mm"+efi+".efi.signed")
	if err != nil {
		return err
	}
	if manager != nil {
		p.files = append(p.files, file{own + "mm" + efi + ".efi", manager}, file{fallback + "/mm" + efi + ".efi", manager})
	}
	p.files = append(p.files, file{own + "shim" + efi + ".efi", shim}, file{fallback + "/grub" + efi + ".efi", grub}, file{p.boot, shim})
	return nil
}

// first returns the content of the first of several files that there is, nil for
// none.
func first(image fs.FS, list ...string) ([]byte, error) {
	for _, name := range list {
		data, err := readProgram(image, name)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, nil
}

func readProgram(image fs.FS, name string) ([]byte, error) {
	st, err := fs.Stat(image, name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxProgram {
		return nil, fault.New(fault.Corrupt, "the image has to be repaired", "%s is not a program", name)
	}
	return fs.ReadFile(image, name)
}

// ownPrefix is the directory that a GRUB program was made to look for its
// configuration in, on the file system that it was loaded from.
var ownPrefix = regexp.MustCompile(`\x00/EFI/([A-Za-z0-9._-]{1,64})\x00`)

// prefixOf returns that directory beneath EFI, "BOOT" for a program that has none.
func prefixOf(program []byte) string {
	if m := ownPrefix.FindSubmatch(program); m != nil {
		return string(m[1])
	}
	return "BOOT"
}

// build is what a program says of itself in its section .sbat, by which Secure
// Boot revokes old ones (https://github.com/rhboot/shim/blob/main/SBAT.md): lines
// of component, generation, vendor, package, version and address.
type build struct{ component, version string }

// buildOf returns the vendor's build of GRUB or shim, "grub.debian" and
// "2.12-9+deb13u2"; false for any other program.
func buildOf(program []byte) (build, bool) {
	data, ok := pefile.Find(program, ".sbat", 64<<10)
	if !ok {
		return build{}, false
	}
	for line := range strings.Lines(string(bytes.TrimRight(data, "\x00"))) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) >= 5 && (strings.HasPrefix(f[0], "grub.") || strings.HasPrefix(f[0], "shim.")) {
			return build{f[0], f[4]}, true
		}
	}
	return build{}, false
}
