package grub

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/units"
)

// GRUB passes over the counters of boot entries, but it can write to a file that
// lies in whole blocks of a partition: to its environment block, with load_env and
// save_env. So it counts with what the menu tells it to. The block lies on the EFI
// system partition, beside the configuration that leads to the menu, for FAT is a
// file system that GRUB can always write, wherever /boot is.
//
// A run is the tries of one deployment. The menu says how many there are, the
// block how many are left of a run that was begun, in one of a few variables. Only
// GRUB writes the block, a sector at a time; kedge begins a run by giving it a
// new name, and ends it by leaving it out of the menu. So the menu stays the one
// thing that changes, at one instant.
//
// Source: grub-core/commands/loadenv.c and util/grub-editenv.c of GRUB.

const (
	// variable names what is left of a run: "NAME:LEFT".
	variable = "kedge_"
	// slots is how many deployments can be counted at a time.
	slots = 8
	// environment is the variable that has the name of the block; the
	// configuration on the EFI system partition sets it.
	environment = "kedge_env"
	blockSize   = 1024
	blockHeader = "# GRUB Environment Block\n"
)

// blockFile is the environment block of a vendor's GRUB.
func blockFile(vendor string) string { return "EFI/" + vendor + "/kedge.env" }

// emptyBlock is an environment block without variables.
func emptyBlock() []byte {
	return append([]byte(blockHeader), bytes.Repeat([]byte{'#'}, blockSize-len(blockHeader))...)
}

// run is the tries of a deployment.
type run struct {
	slot  int
	name  string
	tries uint64
}

func newRun(slot int, tries uint64) *run {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return &run{slot, hex.EncodeToString(b[:]), tries}
}

// value is that of the run's variable when so many tries are left.
func (r *run) value(left uint64) string { return fmt.Sprintf("%s:%d", r.name, left) }

// left returns how many tries the block leaves a run.
func (r *run) left(block map[string]string) uint64 {
	name, n, ok := strings.Cut(block[variable+strconv.Itoa(r.slot)], ":")
	left, err := strconv.ParseUint(n, 10, 8)
	if !ok || name != r.name || err != nil || left > r.tries {
		return r.tries
	}
	return left
}

// parseBlock returns the variables of an environment block; none of what is none.
func parseBlock(data []byte) map[string]string {
	vars := map[string]string{}
	if len(data) != blockSize || !bytes.HasPrefix(data, []byte(blockHeader)) {
		return vars
	}
	for line := range bytes.Lines(data[len(blockHeader):]) {
		if k, v, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), "="); ok && !strings.HasPrefix(k, "#") {
			vars[k] = v
		}
	}
	return vars
}

// entry is a line of the menu that is there.
type entry struct {
	id  string
	run *run // nil: it is not counted
}

// mark begins the line of the fragment that says of an entry what its commands do
// not: "# kedge: ID", and where it is counted "# kedge: SLOT NAME TRIES ID".
const mark = "# kedge: "

func (e entry) mark() string {
	id := strings.Map(printable, e.id)
	if e.run == nil {
		return mark + "- - - " + id + "\n"
	}
	return fmt.Sprintf(mark+"%d %s %d %s\n", e.run.slot, e.run.name, e.run.tries, id)
}

func parseMark(line string) (entry, bool) {
	text, ok := strings.CutPrefix(line, mark)
	fields := strings.SplitN(strings.TrimSuffix(text, "\n"), " ", 4)
	if !ok || len(fields) != 4 {
		return entry{}, false
	}
	e := entry{id: fields[3]}
	slot, err := strconv.Atoi(fields[0])
	tries, terr := strconv.ParseUint(fields[2], 10, 8)
	if err == nil && terr == nil && slot >= 0 && slot < slots {
		e.run = &run{slot, fields[1], tries}
	}
	return e, true
}

// maxFragment bounds what is read of a menu.
const maxFragment = 1 << 20

// entries returns the lines of the menu that is there, none where there is no menu.
func (l *Loader) entries() ([]entry, error) {
	st, err := l.boot.Stat(fragment)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || st.Size() > maxFragment {
		return nil, err
	}
	text, err := l.boot.ReadFile(fragment)
	if err != nil {
		return nil, err
	}
	var list []entry
	for line := range strings.Lines(string(text)) {
		if e, ok := parseMark(line); ok {
			list = append(list, e)
		}
	}
	return list, nil
}

// block returns the variables of the environment block, and whether GRUB has one:
// kedge installed GRUB, and the configuration there names it.
func (l *Loader) block() (map[string]string, bool) {
	if l.opts.ESP == nil || l.opts.Entries {
		return nil, false
	}
	vendors, err := fs.ReadDir(l.opts.ESP.FS(), "EFI")
	if err != nil {
		return nil, false
	}
	for _, v := range vendors {
		data, err := readSmall(l.opts.ESP, blockFile(v.Name()))
		if err != nil {
			continue
		}
		pointer, err := readSmall(l.opts.ESP, "EFI/"+v.Name()+"/grub.cfg")
		if err == nil && bytes.HasPrefix(pointer, []byte(pointerMark)) && bytes.Contains(pointer, []byte(environment)) {
			return parseBlock(data), true
		}
	}
	return nil, false
}

// Counts implements loader.Counter.
func (l *Loader) Counts() (ok bool, why string) {
	if l.opts.Entries {
		return false, "GRUB reads boot entries here, and passes over their counters"
	}
	if _, ok := l.block(); !ok {
		return false, "GRUB has nowhere to count: kedge did not install it on an EFI system partition"
	}
	return true, ""
}

// blessUnit takes the counter off after a good boot (pkg/boot/units).
const blessUnit = "systemd/system/multi-user.target.wants/" + units.Bless

// BlessedBy implements loader.Loader.
func (l *Loader) BlessedBy() []string { return []string{"usr/lib/" + blessUnit, "etc/" + blessUnit} }

// readSmall reads a file that is never large.
func readSmall(root *os.Root, name string) ([]byte, error) {
	st, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFragment {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	return root.ReadFile(name)
}

// Lines implements loader.Loader: what is left of the tries.
func (l *Loader) Lines(loader.Owner) ([]loader.Line, []error, error) {
	list, err := l.entries()
	block, ok := l.block()
	var lines []loader.Line
	for _, e := range list {
		line := loader.Line{ID: e.id}
		if e.run != nil && ok {
			left := e.run.left(block)
			line.Counter = &bls.Counter{Left: left, Done: e.run.tries - left}
		}
		lines = append(lines, line)
	}
	return lines, nil, err
}

// runs says which deployments of the menu to be are counted. A run that is there
// stays until the deployment is found good, or has used its tries up and is asked
// for again; what the menu did not have gets one.
func (l *Loader) runs(items []loader.Item) ([]*run, error) {
	have, err := l.entries()
	if err != nil {
		return nil, err
	}
	block, counts := l.block()
	list := make([]*run, len(items))
	begin := map[int]bool{}
	for i, item := range items {
		at := slices.IndexFunc(have, func(e entry) bool { return e.id == strings.Map(printable, item.ID) })
		switch {
		case at < 0:
			begin[i] = true
		case item.Good:
		case have[at].run != nil && item.Renew && counts && have[at].run.left(block) == 0:
			begin[i] = true
		default:
			list[i] = have[at].run
		}
	}
	for i := range items {
		if !begin[i] || !counts || items[i].Tries == nil {
			continue
		}
		slot := 0
		for slices.ContainsFunc(list, func(r *run) bool { return r != nil && r.slot == slot }) {
			slot++
		}
		if tries := items[i].Tries(); tries > 0 && slot < slots {
			list[i] = newRun(slot, tries)
		}
	}
	return list, nil
}

// choose writes the commands that make the first entry the default which is not
// counted or has tries left, the first of all where there is none.
func choose(b *strings.Builder, runs []*run) {
	var names []string
	for _, r := range runs {
		if r != nil {
			names = append(names, variable+strconv.Itoa(r.slot))
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(b, "if [ -s \"$%s\" ]; then load_env --file \"$%[1]s\" %s; fi\n", environment, strings.Join(names, " "))
	}
	last := len(runs)
	for i := range runs {
		if runs[i] == nil {
			last = i
			break
		}
	}
	fmt.Fprintf(b, "set default=%s\n", quote(entryName(last%max(len(runs), 1))))
	for i := last - 1; i >= 0; i-- {
		fmt.Fprintf(b, "if [ \"$%s%d\" != %s ]; then set default=%s; fi\n", variable, runs[i].slot, quote(runs[i].value(0)), quote(entryName(i)))
	}
}

// try writes the commands that take a try off before a start. What cannot be
// written is not counted, and boots.
func (r *run) try(b *strings.Builder) {
	name := variable + strconv.Itoa(r.slot)
	fmt.Fprintf(b, "\tif [ -s \"$%s\" ]; then\n\t\tif", environment)
	for left := uint64(0); left < r.tries; left++ {
		fmt.Fprintf(b, " [ \"$%s\" = %s ]; then set %[1]s=%[3]s\n\t\t", name, quote(r.value(left)), quote(r.value(max(left, 1)-1)))
		if left+1 < r.tries {
			b.WriteString("elif")
		}
	}
	fmt.Fprintf(b, "else set %s=%s; fi\n\t\tsave_env --file \"$%s\" %[1]s\n\tfi\n", name, quote(r.value(r.tries-1)), environment)
}
