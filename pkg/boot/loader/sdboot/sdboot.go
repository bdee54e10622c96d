// Package sdboot writes the menu of systemd-boot on an EFI system partition, or
// on an extended boot loader partition (XBOOTLDR): entries of type 1 in
// loader/entries, kernels beside them, and the loader's own program. Sources:
// the Boot Loader Specification, systemd-boot(7), and boot.c and sdmagic of
// systemd.
//
// # Writes on a file system that cannot rename
//
// These partitions are FAT. It has no journal; a rename changes several
// sectors, and a power cut may leave both names, one or none. So nothing that
// boots is ever renamed, edited or written over:
//
//   - A file that nothing names yet (a kernel) is written under its own name and
//     flushed before an entry names it. Whether it is whole is told by its bytes,
//     not by its name being there.
//   - An entry is written whole but for one letter: the key "linux" reads
//     "#inux" (and "efi" "#fi"), which makes the line a comment, and an entry without a kernel is
//     passed over by systemd-boot. That is flushed. Then the one letter is
//     written in place: one sector, which a disk writes whole or not at all. At
//     that instant the entry is there.
//   - An entry is removed, and that flushed, before a kernel that it names is.
//
// An entry's file is named after a digest of its text: another text is another
// file. Only one whose boots are being counted keeps its name: systemd-bless-boot
// looks for the name under which the machine was started.
//
// A power cut may leave, for fsck.fat to find: clusters that are marked as used
// and belong to no file, the two copies of the FAT differing, a wrong count of
// free clusters, and the dirty bit. None of them keeps anything from booting.
package sdboot

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Options are the surroundings of a Loader.
type Options struct {
	Logger *slog.Logger
	// Programs is the EFI system partition, where root is an XBOOTLDR partition;
	// nil: root is both.
	Programs *os.Root
	// Arch is the architecture of the firmware as Go names it ("amd64").
	Arch string
	// NoSync leaves out every flush: for tests, and for the negative control of a
	// power-cut proof.
	NoSync bool
}

// Loader is systemd-boot on the partition root.
type Loader struct {
	opts  Options
	log   *slog.Logger
	root  *os.Root
	flush func(*os.Root) error
}

// New returns the loader of a partition, which is its own from then on: Close
// closes it.
func New(root *os.Root, o Options) *Loader {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Programs == nil {
		o.Programs = root
	}
	l := &Loader{opts: o, log: o.Logger, root: root, flush: bootdir.Syncfs}
	if o.NoSync {
		l.flush = func(*os.Root) error { return nil }
	}
	return l
}

// Name implements loader.Loader.
func (l *Loader) Name() string { return loader.NameSystemdBoot }

// Extended reports whether kernels and entries are on another partition than the
// program.
func (l *Loader) Extended() bool { return l.opts.Programs != l.root }

// BlessedBy implements loader.Loader.
func (l *Loader) BlessedBy() []string { return []string{loader.BlessProgram} }

// Root implements loader.Loader.
func (l *Loader) Root() *os.Root { return l.root }

// Close implements loader.Loader.
func (l *Loader) Close() {
	_ = l.root.Close()
	if l.Extended() {
		_ = l.opts.Programs.Close()
	}
}

const entriesDir = "loader/entries"

// maxEntry bounds what is read of an entry.
const maxEntry = 64 << 10

// sync makes everything on the partition durable.
func (l *Loader) sync() error { return l.flush(l.root) }

// found is an entry on the partition.
type found struct {
	loader.Line
	text []byte
	base string // file name without counter and suffix
	live bool   // systemd-boot shows it
	ours bool
}

// read returns the entries on the partition in the order of the menu, and what
// is wrong with those that cannot be read.
func (l *Loader) read(owns loader.Owner) (list []found, problems []error, err error) {
	names, err := dirfd.ReadNames(l.root, entriesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the boot menu: %w", err)
	}
	for _, file := range names {
		name, ok := bls.ParseName(file)
		if !ok {
			continue
		}
		text, err := l.readEntry(file)
		if err != nil {
			problems = append(problems, fmt.Errorf("boot entry %s: %w", file, err))
			continue
		}
		f := found{Line: loader.Line{File: file, Entry: bls.Parse(string(text)), Counter: name.Counter}, text: text, base: name.Base}
		f.ID = f.Entry.Value(loader.KeyID)
		f.live = isLive(f.Entry)
		f.ours = owns(file, f.Entry)
		if !f.live && !f.ours {
			problems = append(problems, fault.New(fault.Corrupt, "", "boot entry %s: it names nothing to boot", file))
		}
		list = append(list, f)
	}
	slices.SortStableFunc(list, menuOrder)
	return list, problems, nil
}

func (l *Loader) readEntry(file string) ([]byte, error) {
	name := path.Join(entriesDir, file)
	st, err := l.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxEntry {
		return nil, fault.New(fault.Corrupt, "", "it is not a regular file of at most %d bytes", maxEntry)
	}
	return l.root.ReadFile(name)
}

func isLive(e *bls.Entry) bool {
	for _, key := range []string{"linux", "efi", "uki"} {
		if _, ok := e.Get(key); ok {
			return true
		}
	}
	return false
}

// menuOrder is systemd-boot's: entries without tries last; those with a sort-key
// first, by it upwards, then version and file name downwards.
func menuOrder(a, b found) int {
	spent := func(f found) bool { return f.Counter != nil && f.Counter.Left == 0 }
	ka, kb := a.Entry.Value("sort-key"), b.Entry.Value("sort-key")
	switch {
	case spent(a) != spent(b):
		if spent(a) {
			return 1
		}
		return -1
	case (ka == "") != (kb == ""):
		return strings.Compare(kb, ka)
	case ka != kb:
		return strings.Compare(ka, kb)
	}
	if ka != "" {
		if c := bls.CompareVersions(a.Entry.Value("version"), b.Entry.Value("version")); c != 0 {
			return -c
		}
	}
	return -strings.Compare(strings.ToLower(a.base), strings.ToLower(b.base))
}

// Lines implements loader.Loader.
func (l *Loader) Lines(owns loader.Owner) ([]loader.Line, []error, error) {
	list, problems, err := l.read(owns)
	var lines []loader.Line
	for _, f := range list {
		if f.live && f.ours {
			lines = append(lines, f.Line)
		}
	}
	return lines, problems, err
}
