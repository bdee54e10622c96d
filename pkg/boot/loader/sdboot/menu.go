package sdboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// rendered is an entry to be.
type rendered struct {
	key     string // sort-key
	base    string // file name without counter and suffix
	counter string // "+LEFT-DONE", "" where it is not counted
	text    []byte
}

func (r rendered) file() string { return r.base + r.counter + ".conf" }

// is reports whether an entry that is there is the one to be.
func (r rendered) is(f found) bool { return r.base == f.base && bytes.Equal(r.text, f.text) }

// under returns the entry under a name that is told by its text, and by salt.
func (r rendered) under(name, salt string) rendered {
	sum := sha256.Sum256(append(slices.Clone(r.text), salt...))
	r.base = name + "." + hex.EncodeToString(sum[:4])
	return r
}

// Commit implements loader.Loader. m is to become the menu, old is what is there:
//
//  1. remove what a writer left that died before its entries were shown; flush
//  2. write copies, hidden: of the new default under a sort-key before all
//     others, of other entries that are to have the name of one of old; flush
//  3. COMMIT: show them; flush
//  4. remove the entries of old whose names are taken; flush
//  5. write the entries of m that are not there, hidden; flush; show them; flush
//  6. remove the other entries of old that m does not have; flush
//  7. remove the copies; flush
//
// An entry is hidden, and that flushed, before it is removed. Steps that have
// nothing to do are left out; where the default stays, it has no copy. A process
// or a machine that dies between 3 and 7 leaves a menu with more lines than it
// needs, all of them whole, that begins with the new default; the next Commit
// finishes it. Kernels of old may go only when Commit has returned.
func (l *Loader) Commit(ctx context.Context, m loader.Menu) error {
	if len(m.Items) == 0 {
		return fault.New(fault.Internal, "", "a boot menu needs a line")
	}
	all, _, err := l.read(m.Owns)
	if err != nil {
		return err
	}
	ours := slices.DeleteFunc(slices.Clone(all), func(f found) bool { return !f.ours || !f.live })
	key := func(i int) string { return fmt.Sprintf("%s-%0*d", m.SortKey, len(fmt.Sprint(len(m.Items)-1)), i) }
	want := make([]rendered, len(m.Items))
	for i, item := range m.Items {
		want[i] = render(m, item, key(i), ours)
	}
	there := func(r rendered) bool { return slices.ContainsFunc(ours, r.is) }
	stale := slices.DeleteFunc(slices.Clone(ours), func(f found) bool {
		return slices.ContainsFunc(want, func(r rendered) bool { return r.is(f) })
	})
	if len(stale) == 0 && !slices.ContainsFunc(want, func(r rendered) bool { return !there(r) }) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.makeRoomy(entriesDir); err != nil {
		return writeError(err)
	}
	hidden := slices.DeleteFunc(slices.Clone(all), func(f found) bool { return f.live || !f.ours && !leftover(f) })
	if err := l.remove(hidden); err != nil {
		return err
	}
	taken := func(f found) bool {
		return slices.ContainsFunc(want, func(r rendered) bool { return r.file() == f.File })
	}
	copies, err := standIns(m, want, ours)
	if err != nil {
		return err
	}
	if err := l.show(slices.DeleteFunc(slices.Clone(copies), there)); err != nil {
		return err
	}
	if err := l.remove(slices.DeleteFunc(slices.Clone(stale), func(f found) bool { return !taken(f) })); err != nil {
		return err
	}
	l.log.Info("boot menu written", "default", m.Items[0].ID, "entries", len(want))
	if err := l.show(slices.DeleteFunc(slices.Clone(want), there)); err != nil {
		return err
	}
	if err := l.remove(slices.DeleteFunc(stale, taken)); err != nil {
		return err
	}
	gone := make([]found, len(copies))
	for i, r := range copies {
		gone[i].File, gone[i].text = r.file(), r.text
	}
	return l.remove(gone)
}

// standIns returns the entries that stand in for those of want while Commit writes
// them.
func standIns(m loader.Menu, want []rendered, ours []found) (list []rendered, err error) {
	if len(ours) == 0 || !want[0].is(ours[0]) {
		before, err := keyBefore(want[0].key, ours)
		if err != nil {
			return nil, err
		}
		list = append(list, render(m, m.Items[0], before, ours).under(m.Items[0].Name, ""))
	}
	for i, r := range want[1:] {
		replaces := func(f found) bool { return f.File == r.file() && !r.is(f) }
		if slices.ContainsFunc(ours, replaces) {
			list = append(list, r.under(m.Items[i+1].Name, "copy"))
		}
	}
	return list, nil
}

// render makes the entry of an item. A deployment that the menu has keeps what
// is left of its tries, unless nothing is and it is to be tried again; and its
// name where its boots are being counted, for systemd-bless-boot looks for that.
func render(m loader.Menu, item loader.Item, key string, ours []found) rendered {
	e := item.Entry.Clone()
	e.Set("sort-key", key)
	if item.ID != "" {
		e.Set(loader.KeyID, item.ID)
	}
	text := e.Encode()
	if m.Order != nil {
		text = e.EncodeIn(m.Order)
	}
	r := rendered{key: key, text: text}
	i := slices.IndexFunc(ours, func(f found) bool { return f.ID != "" && f.ID == item.ID })
	if i < 0 {
		r.counter = newCounter(item)
		return r.under(item.Name, "")
	}
	have := ours[i]
	if c := have.Counter; c != nil {
		if item.Renew && c.Left == 0 {
			r.counter = newCounter(item)
			// The same text under another name: what is there is not renamed.
			return r.under(item.Name, have.File)
		}
		r.counter = fmt.Sprintf("+%d-%d", c.Left, c.Done)
	}
	if have.Counter != nil && have.Counter.Done > 0 || bytes.Equal(have.text, text) && strings.HasPrefix(have.base, item.Name+".") {
		r.base = have.base
		return r
	}
	return r.under(item.Name, "")
}

// newCounter is that of a deployment that has not been tried.
func newCounter(item loader.Item) string {
	if item.Tries != nil {
		if n := item.Tries(); n > 0 {
			return fmt.Sprintf("+%d", n)
		}
	}
	return ""
}

// keyBefore returns a sort-key that stands before those of the entries that are
// there and before first: what begins another key sorts before it. Each writer
// that died may have left one that is shorter by a letter.
func keyBefore(first string, ours []found) (string, error) {
	for _, f := range ours {
		if k := f.Entry.Value("sort-key"); k != "" {
			first = min(first, k)
		}
	}
	if len(first) < 2 {
		return "", fault.New(fault.Conflict, "give the entry in loader/entries another one", "the sort-key %q leaves no room before it", first)
	}
	return first[:len(first)-1], nil
}

// leftover reports whether an entry has a name that kedge gives: with a digest
// before the suffix.
func leftover(f found) bool {
	i := strings.LastIndexByte(f.base, '.')
	if i < 0 || len(f.base)-i != 9 {
		return false
	}
	_, err := hex.DecodeString(f.base[i+1:])
	return err == nil
}

// show writes entries so that each appears whole at one instant.
func (l *Loader) show(list []rendered) error {
	if len(list) == 0 {
		return nil
	}
	at := make([]int, len(list))
	for i, r := range list {
		at[i] = bootKey(r.text)
		if at[i] < 0 {
			return fault.New(fault.Internal, "", "the boot entry %s names nothing to boot", r.file())
		}
		text := slices.Clone(r.text)
		text[at[i]] = '#'
		f, err := l.root.OpenFile(path.Join(entriesDir, r.file()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return writeError(err)
		}
		_, err = f.Write(text)
		if err = errors.Join(err, f.Close()); err != nil {
			return writeError(err)
		}
	}
	if err := l.sync(); err != nil {
		return writeError(err)
	}
	for i, r := range list {
		if err := l.overwrite(r.file(), string(r.text[at[i]]), at[i]); err != nil {
			return writeError(err)
		}
	}
	if err := l.sync(); err != nil {
		return writeError(err)
	}
	return nil
}

// bootKey returns where in an entry the line begins that names what to boot; -1
// for none.
func bootKey(text []byte) int {
	at := 0
	for line := range strings.Lines(string(text)) {
		for _, key := range []string{"linux ", "efi ", "uki "} {
			if strings.HasPrefix(line, key) {
				return at
			}
		}
		at += len(line)
	}
	return -1
}

// remove removes entries, of which those that are shown are hidden before. On FAT
// the clusters of a file that is removed are given to the next one. A power cut
// may leave that one's name in the directory and not its text: under its name
// stands what was there before, and that must be no entry that boots a kernel
// which is gone.
func (l *Loader) remove(list []found) error {
	if len(list) == 0 {
		return nil
	}
	hidden := false
	for _, f := range list {
		at := bootKey(f.text)
		if at < 0 {
			continue
		}
		if err := l.overwrite(f.File, "#", at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return writeError(err)
		}
		hidden = true
	}
	if hidden {
		if err := l.sync(); err != nil {
			return writeError(err)
		}
	}
	for _, f := range list {
		if err := l.root.Remove(path.Join(entriesDir, f.File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return writeError(err)
		}
	}
	if err := l.sync(); err != nil {
		return writeError(err)
	}
	return nil
}

// overwrite writes a letter of an entry in place: one sector.
func (l *Loader) overwrite(file, letter string, at int) error {
	f, err := l.root.OpenFile(path.Join(entriesDir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(letter), int64(at))
	return errors.Join(err, f.Close())
}

func writeError(err error) error { return fmt.Errorf("write the boot menu: %w", err) }
