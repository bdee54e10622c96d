// Package loader is what stands between a sysroot and the firmware: boot loaders
// behind one interface, which both sysroots use. A sysroot says what it wants to
// boot; a loader puts it where its program reads it.
//
// On the ostree backend libostree's /boot stays what it is, and what a loader
// writes is a one-way mirror of it. On the composefs backend the boot directory
// is, as with bootc, the file system that the loader's program reads.
//
// A loader that has nothing to write, because its program reads the sysroot's
// own boot directory, is None.
package loader

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Names of the boot loaders, as --bootloader and status spell them.
const (
	NameNone        = "none"
	NameSystemdBoot = "systemd-boot"
	NameGRUB        = "grub"
	NameAuto        = "auto"
)

// Loader writes what a boot loader reads. Every method may be called again
// after a crash at any point of itself; what it finds half done it does anew.
// One process calls it at a time: the sysroot's lock is held.
type Loader interface {
	// Name is one of the names above.
	Name() string
	// Root is the file system that the loader's program reads, nil where that is
	// the sysroot's own boot directory. It is valid until Close.
	Root() *os.Root
	// Lines are the entries of the menu that a sysroot owns, the default first,
	// and what is wrong with others there. It needs no lock.
	Lines(owns Owner) ([]Line, []error, error)
	// Space returns the bytes that the kernels of items would add, and how many
	// are free; both are 0 where nothing is written.
	Space(items []Item) (need, free int64, err error)
	// Prepare makes the kernels of items durable. Nothing boots from them yet.
	// NoSpace is returned before anything is written, never half a kernel.
	Prepare(ctx context.Context, items []Item) error
	// Commit makes the menu that of the sysroot; its kernels have been prepared.
	// It has one commit point: before it the default boots that was there, behind
	// it the first item. Where the menu is that already it writes nothing.
	Commit(ctx context.Context, m Menu) error
	// Sweep removes the sysroot's kernels that no entry boots and keep does not
	// name, by the directory beneath Menu.KernelDir.
	Sweep(ctx context.Context, m Menu, keep func(name string) bool) error
	// BlessedBy are paths in a root, of which it has to have one to say that a boot
	// of it was good: without, its entry is not counted, for it would be given up
	// after some good boots.
	BlessedBy() []string
	// Update installs the loader's program from an image, or replaces it where
	// the image's is newer. It reports whether it wrote anything.
	Update(image fs.FS) (bool, error)
	Close()
}

// Owner reports whether an entry belongs to a sysroot: by the name of its file,
// and by what is in it.
type Owner func(file string, e *bls.Entry) bool

// Menu is what a sysroot wants to boot.
type Menu struct {
	Owns Owner
	// SortKey begins the sort-keys of the entries; "-0" and so on follows, which
	// is what orders them.
	SortKey string
	// Order is the order of the keys in an entry (bls.Entry.EncodeIn); nil:
	// libostree's.
	Order []string
	Items []Item // the default first
	// KernelDir holds the sysroot's kernels, beneath the loader's file system, in
	// directories whose names OwnKernel knows.
	KernelDir string
	OwnKernel func(name string) bool
}

// Item is a line of the menu to be.
type Item struct {
	// ID names the deployment for as long as it exists. It stands in the entry
	// under the key KeyID: by it tries are carried over when the entry is written
	// anew under another name.
	ID string
	// Name begins the name of the entry's file.
	Name  string
	Entry *bls.Entry // paths are those in the loader's file system
	// Files are what the entry names. It is called only where the files are not
	// known to be there.
	Files func() ([]File, error)
	// Tries returns how often a deployment that the menu did not have is tried
	// before the next line is taken; nil, or 0: it is not counted. What is left of
	// them is not changed afterwards. It is called only for such a deployment.
	Tries func() uint64
	// Renew gives a deployment whose tries are used up Tries again: somebody asked
	// for it.
	Renew bool
	// Good: a boot of it was found good, and it is not counted any more. A loader
	// leaves this out whose counters systemd-bless-boot takes off.
	Good bool
}

// Count has the i-th of n lines tried: the default alone, and not where it has
// nothing to fall back to.
func (it *Item) Count(i, n int, tries func() uint64, renew bool) {
	if i == 0 && n > 1 {
		it.Tries, it.Renew = tries, renew
	}
}

// Refresh brings a loader's program up to date by update, which gives Update an
// image. The menu is what boots: a program that stays as it was is told, and no
// error. An image without one leaves it to whoever installed it.
func Refresh(l Loader, log *slog.Logger, update func() error) {
	if _, none := l.(None); none {
		return
	}
	if err := update(); err != nil && fault.KindOf(err) != fault.NotFound {
		log.Warn("the boot loader was not brought up to date", "error", err)
	}
}

// BlessProgram takes the counter off the entry of a good boot, where the loader
// counts in the names of entries.
const BlessProgram = "usr/lib/systemd/systemd-bless-boot"

// Counter is a loader with which kedge says itself that a boot was good
// (Item.Good).
type Counter interface {
	// Counts reports whether the loader counts boots, and why not.
	Counts() (ok bool, why string)
}

// KeyID is the key of an entry that names its deployment. Boot loaders pass it
// over and bootc keeps it.
const KeyID = "x-kedge-deployment"

// File is a file that an entry names.
type File struct {
	Path string // beneath the loader's file system, without a slash before it
	Size int64
	Open func() (io.ReadCloser, error)
}

// SameBytes reports whether two readers have the same bytes.
func SameBytes(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(a, x)
		m, berr := io.ReadFull(b, y)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		switch {
		case err != nil && !ended:
			return false, err
		case berr != nil && !errors.Is(berr, io.EOF) && !errors.Is(berr, io.ErrUnexpectedEOF):
			return false, berr
		case !bytes.Equal(x[:n], y[:m]):
			return false, nil
		case ended:
			return true, nil
		}
	}
}

// Line is a line of the menu as it is there.
type Line struct {
	ID      string // "" where another program wrote it
	File    string // name of its file, counter and all
	Entry   *bls.Entry
	Counter *bls.Counter // tries left and done; nil: it is not counted
}

// None is the loader that writes nothing: the firmware, or a program that
// somebody else looks after, reads the sysroot's own boot directory.
type None struct{ As string }

// Name implements Loader.
func (n None) Name() string {
	if n.As == "" {
		return NameNone
	}
	return n.As
}

// Root implements Loader.
func (None) Root() *os.Root { return nil }

// Lines implements Loader.
func (None) Lines(Owner) ([]Line, []error, error) { return nil, nil, nil }

// Space implements Loader.
func (None) Space([]Item) (need, free int64, err error) { return 0, 0, nil }

// Prepare implements Loader.
func (None) Prepare(context.Context, []Item) error { return nil }

// Commit implements Loader.
func (None) Commit(context.Context, Menu) error { return nil }

// Sweep implements Loader.
func (None) Sweep(context.Context, Menu, func(string) bool) error { return nil }

// BlessedBy implements Loader.
func (None) BlessedBy() []string { return nil }

// Update implements Loader.
func (None) Update(fs.FS) (bool, error) { return false, nil }

// Close implements Loader.
func (None) Close() {}
