package sdboot

import (
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
	base string
	file string
	text []byte
}

// Commit implements loader.Loader. m is to become the menu, old is what is there:
//
//  1. remove what a writer left that died before its entries were shown; flush
//  2. write the new default under a sort-key before all others, hidden; flush
//  3. COMMIT: show it; flush
//  4. write the entries of m that are not there, hidden; flush; show them; flush
//  5. remove the entries of old that m does not have; flush
//  6. remove the entry of step 2; flush
//
// Where the default stays, 2, 3 and 6 are left out. A process or a machine that
// dies between 3 and 6 leaves a menu with more lines than it needs, all of them
// whole, that begins with the new default; the next Commit finishes it.
// Kernels of old may go only when Commit has returned.
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
	there := func(r rendered) bool {
		return slices.ContainsFunc(ours, func(f found) bool { return f.base == r.base })
	}
	stale := func(f found) bool {
		return !slices.ContainsFunc(want, func(r rendered) bool { return r.base == f.base })
	}
	if !slices.ContainsFunc(ours, stale) && !slices.ContainsFunc(want, func(r rendered) bool { return !there(r) }) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.root.MkdirAll(entriesDir, 0o755); err != nil {
		return writeError(err)
	}
	hidden := slices.DeleteFunc(slices.Clone(all), func(f found) bool { return f.live || !f.ours && !leftover(f) })
	if err := l.remove(hidden); err != nil {
		return err
	}
	var first *rendered
	if len(ours) == 0 || ours[0].base != want[0].base {
		before, err := keyBefore(key(0), ours)
		if err != nil {
			return err
		}
		r := render(m, m.Items[0], before, ours)
		first = &r
		if err := l.show([]rendered{r}); err != nil {
			return err
		}
	}
	l.log.Info("boot menu written", "default", m.Items[0].ID, "entries", len(want))
	if err := l.show(slices.DeleteFunc(slices.Clone(want), there)); err != nil {
		return err
	}
	if err := l.remove(slices.DeleteFunc(slices.Clone(ours), func(f found) bool { return !stale(f) })); err != nil {
		return err
	}
	if first != nil {
		return l.remove([]found{{Line: loader.Line{File: first.file}}})
	}
	return nil
}

// render makes the entry of an item. A deployment that the menu has keeps what
// is left of its tries, unless nothing is and it is to be tried again.
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
	named := slices.Clone(text)
	counter := ""
	i := slices.IndexFunc(ours, func(f found) bool { return f.ID != "" && f.ID == item.ID })
	renew := i >= 0 && item.Renew && ours[i].Counter != nil && ours[i].Counter.Left == 0
	switch {
	case i >= 0 && ours[i].Counter != nil && !renew:
		counter = fmt.Sprintf("+%d-%d", ours[i].Counter.Left, ours[i].Counter.Done)
	case (i < 0 || renew) && item.Tries > 0:
		counter = fmt.Sprintf("+%d", item.Tries)
	}
	if renew {
		// The same text under another name: what is there is not renamed.
		named = append(named, ours[i].File...)
	}
	sum := sha256.Sum256(named)
	r := rendered{base: item.Name + "." + hex.EncodeToString(sum[:4]), text: text}
	r.file = r.base + counter + ".conf"
	return r
}

// keyBefore returns a sort-key that stands before those of the entries that are
// there and before first: what begins another key sorts before it. Each writer
// that died may have left one that is shorter by a letter.
func keyBefore(first string, ours []found) (string, error) {
	for _, f := range ours {
		if k, _ := f.Entry.Get("sort-key"); k != "" {
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
			return fault.New(fault.Internal, "", "the boot entry %s names nothing to boot", r.file)
		}
		text := slices.Clone(r.text)
		text[at[i]] = '#'
		f, err := l.root.OpenFile(path.Join(entriesDir, r.file), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
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
		f, err := l.root.OpenFile(path.Join(entriesDir, r.file), os.O_WRONLY, 0)
		if err != nil {
			return writeError(err)
		}
		_, err = f.WriteAt(r.text[at[i]:at[i]+1], int64(at[i]))
		if err = errors.Join(err, f.Close()); err != nil {
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

func (l *Loader) remove(list []found) error {
	for _, f := range list {
		if err := l.root.Remove(path.Join(entriesDir, f.File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return writeError(err)
		}
	}
	if len(list) == 0 {
		return nil
	}
	if err := l.sync(); err != nil {
		return writeError(err)
	}
	return nil
}

func writeError(err error) error { return fmt.Errorf("write the boot menu: %w", err) }
