package grub

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/fault"
)

// GRUB's program starts on the EFI system partition, and looks in its vendor's
// directory there for a grub.cfg. That one finds the file system of the boot
// directory by its UUID and reads the menu there, so that it stays as it is for as
// long as the host does.

// Place is where GRUB finds the boot directory.
type Place struct {
	UUID string // of its file system
	Path string // in that file system: "/boot", or "/" for one of its own
}

// pointerMark begins the configuration on the EFI system partition.
const pointerMark = "# Written by kedge: the menu is on another file system.\n"

// pointer is the configuration on the EFI system partition.
func (p Place) pointer(vendor, menu string) []byte {
	// What is read by configfile sees what is exported.
	return fmt.Appendf(nil, pointerMark+"set %s=($root)/%s\nexport %[1]s\nsearch --no-floppy --fs-uuid --set=root %[3]s\nset prefix=($root)%[4]s\nconfigfile $prefix/%[5]s\n",
		environment, blockFile(vendor), p.UUID, quote(path.Join(p.Path, path.Dir(menu))), path.Base(menu))
}

// Update implements loader.Loader. Where kedge did not install GRUB it
// does nothing. A file is replaced where the image's is of the
// same vendor and newer, each at one instant; what the firmware starts comes last.
// The fallback of another system is left alone, with all that lies beside it.
func (l *Loader) Update(image fs.FS) (bool, error) {
	if l.opts.ESP == nil {
		return false, nil
	}
	p, err := read(image, l.opts.Arch)
	if err != nil {
		return false, err
	}
	name := "EFI/" + p.vendor + "/" + path.Base(config)
	have, err := l.have(name)
	if err != nil {
		return false, err
	}
	var pointer []byte
	if place := l.opts.Place; place != nil {
		pointer = place.pointer(p.vendor, l.menu())
		if have != nil && !bytes.Equal(have, pointer) {
			return false, fault.New(fault.Conflict, "remove the file if that system is gone", "%s of the EFI system partition leads to another system", name)
		}
	} else if !bytes.HasPrefix(have, []byte(pointerMark)) {
		return false, nil // it is somebody else's to look after
	}
	theirs, err := l.foreign(p)
	if err != nil {
		return false, err
	}
	if theirs {
		l.opts.Logger.Warn("the firmware's fallback is another loader's and stays; make a boot entry for EFI/"+p.vendor, "file", p.boot)
		p.files = slices.DeleteFunc(p.files, func(f file) bool { return path.Dir(f.name) == fallback })
	}
	if pointer != nil {
		files := []file{{name, pointer}}
		if other := fallback + "/" + path.Base(config); !theirs && other != name {
			files = append(files, file{other, pointer})
		}
		block, err := l.have(blockFile(p.vendor))
		if err != nil {
			return false, err
		}
		if block == nil && !l.opts.Entries {
			files = append([]file{{blockFile(p.vendor), emptyBlock()}}, files...)
		}
		p.files = append(files, p.files...)
		if err := l.readEntries(); err != nil {
			return false, err
		}
	}
	changed, err := l.install(p.files)
	if err != nil {
		return changed, fmt.Errorf("install GRUB: %w", err)
	}
	return changed, nil
}

// menu is the configuration in the boot directory.
func (l *Loader) menu() string {
	if l.opts.Entries {
		return entriesConfig
	}
	return config
}

// foreign reports whether what the firmware starts without a boot entry is of
// another vendor.
func (l *Loader) foreign(p programs) (bool, error) {
	have, err := l.have(p.boot)
	if have == nil || err != nil {
		return false, err
	}
	i := slices.IndexFunc(p.files, func(f file) bool { return f.name == p.boot })
	old, known := buildOf(have)
	fresh, _ := buildOf(p.files[i].data)
	return !known || old.component != fresh.component, nil
}

// have returns a file of the partition, nil where there is none.
func (l *Loader) have(name string) ([]byte, error) {
	data, err := readProgram(l.opts.ESP.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// install writes the files that are not there, or are older.
func (l *Loader) install(files []file) (bool, error) {
	var stale []file
	var need int64
	block, free, err := bootdir.Space(l.opts.ESP)
	if err != nil {
		return false, err
	}
	for _, f := range files {
		have, err := l.have(f.name)
		if err != nil {
			return false, err
		}
		if have != nil {
			old, known := buildOf(have)
			fresh, ok := buildOf(f.data)
			if bytes.Equal(have, f.data) || known != ok || known && bls.CompareVersions(old.version, fresh.version) >= 0 {
				continue
			}
		}
		stale = append(stale, f)
		need += (int64(len(f.data)) + block - 1) / block * block
	}
	if !bootdir.Fits(need, free) {
		return false, fault.New(fault.NoSpace, "free space there; nothing was changed", "%d bytes are needed on the EFI system partition and %d are free", need, free)
	}
	for i, f := range stale {
		if err := l.opts.ESP.MkdirAll(path.Dir(f.name), 0o755); err != nil {
			return i > 0, err
		}
		if err := bootdir.ReplaceOnFAT(l.opts.ESP, f.name, f.data, l.opts.NoSync); err != nil {
			return i > 0, err
		}
		if b, ok := buildOf(f.data); ok {
			l.opts.Logger.Info("boot loader installed", "file", f.name, "version", b.version)
		}
	}
	if len(stale) == 0 || l.opts.NoSync {
		return len(stale) > 0, nil
	}
	return true, bootdir.Syncfs(l.opts.ESP)
}

// entriesConfig is the configuration of a GRUB that reads boot entries, in the
// directory that Fedora's family has it in.
const entriesConfig = "grub2/grub.cfg"

// readEntries makes that configuration where there is none.
func (l *Loader) readEntries() error {
	if !l.opts.Entries {
		return nil
	}
	if _, err := l.boot.Lstat(entriesConfig); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.boot.MkdirAll(path.Dir(entriesConfig), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(l.boot, entriesConfig, l.opts.Place.entriesMenu(), 0o644)
}

// entriesMenu is its text. By itself blscfg reads /loader/entries of the file system;
// another directory is named to Fedora's by a variable, and to upstream's, from 2.14
// on, by an option, which Fedora's refuses.
func (p Place) entriesMenu() []byte {
	read := "blscfg\n"
	if p.Path != "/" {
		read = fmt.Sprintf("set blsdir=%s\nif blscfg --path \"$blsdir\"; then set menu=read; else blscfg; fi\n", quote(path.Join(p.Path, "loader/entries")))
	}
	return []byte("# Written by kedge: boot entries are the menu.\nset timeout=3\ninsmod blscfg\n" + read)
}
