// Package grub writes a menu for a GRUB that cannot read boot entries (Debian's
// and Ubuntu's up to 2.12 have no blscfg): a fragment in GRUB's own language,
// /boot/grub/kedge.cfg, which a grub.cfg reads. GRUB reads kernels from /boot, so
// the fragment is all that there is to write.
//
// GRUB does not replay a journal. The fragment is written beside its place,
// synced, renamed over it, and the file system frozen and thawed, which brings the
// rename to where GRUB reads it. Until then GRUB finds the old one.
package grub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Paths beneath the boot directory.
const (
	dir      = "grub"
	fragment = dir + "/kedge.cfg"
	config   = dir + "/grub.cfg"
	custom   = dir + "/custom.cfg"
)

// Options are the surroundings of a Loader.
type Options struct {
	Logger *slog.Logger
	// Host is the root of the running machine, nil where it booted from this boot
	// directory (bootdir.Sync).
	Host *os.Root
	// ESP is the EFI system partition, which has GRUB's program; nil: the program
	// is somebody else's to look after.
	ESP  *os.Root
	Arch string // of the firmware as Go names it ("amd64")
	// Place has Update install the program; nil: it brings one up to date that was
	// installed.
	Place *Place
	// Entries: GRUB reads boot entries, and no menu is generated.
	Entries bool
	// NoSync leaves out every flush, for tests.
	NoSync bool
}

// Loader is GRUB with a generated menu; loader.None does for what it does not do.
type Loader struct {
	loader.None
	opts Options
	boot *os.Root
}

// New returns the loader of a boot directory, which is its own from then on.
func New(boot *os.Root, o Options) *Loader {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Loader{None: loader.None{As: loader.NameGRUB}, opts: o, boot: boot}
}

// EntriesSources are paths of which an image has one whose GRUB reads boot entries
// itself: the module, or the names that GRUB's programs have in Fedora's family.
var EntriesSources = []string{
	"usr/lib/grub/x86_64-efi/blscfg.mod", "usr/lib/grub/i386-pc/blscfg.mod", "usr/lib/grub/arm64-efi/blscfg.mod",
	"usr/bin/grub2-editenv", "usr/sbin/grub2-install", "usr/lib/bootupd/grub2-static",
}

// InUse reports whether a boot directory has a menu that this package wrote.
func InUse(boot *os.Root) bool {
	_, err := boot.Lstat(fragment)
	return err == nil
}

// ReadsEntries reports whether a boot directory has the configuration that Update
// makes for a GRUB that reads boot entries.
func ReadsEntries(boot *os.Root) bool {
	_, err := boot.Lstat(entriesConfig)
	return err == nil
}

// Close implements loader.Loader.
func (l *Loader) Close() {
	_ = l.boot.Close()
	for _, root := range []*os.Root{l.opts.Host, l.opts.ESP} {
		if root != nil {
			_ = root.Close()
		}
	}
}

// Commit implements loader.Loader. The commit point is the rename of the fragment.
func (l *Loader) Commit(ctx context.Context, m loader.Menu) error {
	if l.opts.Entries {
		return nil
	}
	runs, err := l.runs(m.Items)
	if err != nil {
		return fmt.Errorf("read GRUB's menu: %w", err)
	}
	text, err := encode(m.Items, runs)
	if err != nil {
		return err
	}
	if have, err := l.boot.ReadFile(fragment); err == nil && bytes.Equal(have, text) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.write(text); err != nil {
		return fmt.Errorf("write GRUB's menu: %w", err)
	}
	l.opts.Logger.Info("boot menu written", "file", "/boot/"+fragment, "entries", len(m.Items))
	return nil
}

func (l *Loader) write(text []byte) error {
	if err := l.boot.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(l.boot, fragment, text, 0o644); err != nil {
		return err
	}
	if err := l.hook(); err != nil {
		return err
	}
	if l.opts.NoSync {
		return nil
	}
	return bootdir.Sync(l.boot, l.opts.Host, l.opts.Logger)
}

// source reads the fragment, from whichever of its two names the file system of
// GRUB's prefix has it under.
const source = "# kedge keeps its boot menu here\nif [ -e $prefix/kedge.cfg ]; then source $prefix/kedge.cfg; fi\n"

// hook makes GRUB read the fragment: there is a grub.cfg, and where another
// program generates it, its custom.cfg. What somebody wrote there stays.
func (l *Loader) hook() error {
	have, err := l.boot.ReadFile(config)
	if errors.Is(err, fs.ErrNotExist) {
		return atomicfile.Write(l.boot, config, []byte("set timeout=3\n"+source), 0o644)
	}
	if err != nil || bytes.Contains(have, []byte(path.Base(fragment))) {
		return err
	}
	if !bytes.Contains(have, []byte(path.Base(custom))) {
		return fault.New(fault.Conflict, "add this line to it: source $prefix/"+path.Base(fragment), "/boot/%s is somebody's own and does not read /boot/%s", config, fragment)
	}
	have, err = l.boot.ReadFile(custom)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || bytes.Contains(have, []byte(path.Base(fragment))) {
		return err
	}
	return atomicfile.Write(l.boot, custom, append(have, source...), 0o644)
}

func entryName(i int) string { return fmt.Sprintf("kedge-%d", i) }

// encode makes the fragment, the default first, and the tries of each. Its words
// are quoted: nothing in a title or an argument is GRUB's language.
func encode(items []loader.Item, runs []*run) ([]byte, error) {
	var b strings.Builder
	b.WriteString("# Written by kedge; the next change of deployments writes it anew.\n")
	choose(&b, runs)
	for i, item := range items {
		get := item.Entry.Value
		if get("linux") == "" {
			return nil, fault.New(fault.Internal, "", "the boot entry of %s has no kernel", item.ID)
		}
		b.WriteString(entry{item.ID, runs[i]}.mark())
		fmt.Fprintf(&b, "menuentry %s --id %s {\n", quote(get("title")), quote(entryName(i)))
		if runs[i] != nil {
			runs[i].try(&b)
		}
		fmt.Fprintf(&b, "\tlinux %s", quote(get("linux")))
		for arg := range strings.FieldsSeq(get("options")) {
			b.WriteString(" " + quote(arg))
		}
		b.WriteByte('\n')
		if initrds := item.Entry.Initrds(); len(initrds) > 0 {
			b.WriteString("\tinitrd")
			for _, name := range initrds {
				b.WriteString(" " + quote(name))
			}
			b.WriteByte('\n')
		}
		if v := get("devicetree"); v != "" {
			fmt.Fprintf(&b, "\tdevicetree %s\n", quote(v))
		}
		b.WriteString("}\n")
	}
	return []byte(b.String()), nil
}

// quote makes one word of GRUB's language of a text: single quotes, in which only
// the quote itself has a meaning.
func quote(s string) string {
	return "'" + strings.ReplaceAll(strings.Map(printable, s), "'", `'\''`) + "'"
}

// printable makes a space of what could end a line.
func printable(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}
