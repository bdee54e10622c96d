package grub

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/loader"
)

// counting is a loader with a partition on which GRUB can count.
func counting(t *testing.T) (l *Loader, boot, block string) {
	t.Helper()
	boot, partition := t.TempDir(), t.TempDir()
	l = open(t, boot)
	esp, err := os.OpenRoot(partition)
	check(t, err)
	l.opts.ESP = esp
	block = filepath.Join(partition, blockFile("debian"))
	check(t, os.MkdirAll(filepath.Dir(block), 0o755))
	check(t, os.WriteFile(block, emptyBlock(), 0o644))
	check(t, os.WriteFile(filepath.Join(filepath.Dir(block), "grub.cfg"), Place{"1234", "/boot"}.pointer("debian", config), 0o644))
	return l, boot, block
}

func counted(id string, tries uint64) loader.Item {
	it := item(id, "quiet")
	it.Tries = func() uint64 { return tries }
	return it
}

// started does what GRUB does when it starts an entry that is counted, with the
// program that GRUB has for its environment block.
func started(t *testing.T, l *Loader, block, id string) {
	t.Helper()
	list, err := l.entries()
	check(t, err)
	i := slices.IndexFunc(list, func(e entry) bool { return e.id == id })
	if i < 0 || list[i].run == nil {
		t.Fatalf("%s is not counted: %+v", id, list)
	}
	vars, ok := l.block()
	if !ok {
		t.Fatal("there is no environment block")
	}
	r := list[i].run
	out, err := exec.Command("grub-editenv", block, "set", fmt.Sprintf("%s%d=%s", variable, r.slot, r.value(r.left(vars)-1))).CombinedOutput()
	if err != nil {
		t.Fatalf("grub-editenv: %v\n%s", err, out)
	}
}

// counters are the lines of the menu with what is left of their tries.
func counters(t *testing.T, l *Loader) string {
	t.Helper()
	lines, _, err := l.Lines(nil)
	check(t, err)
	var list []string
	for _, line := range lines {
		text := line.ID
		if c := line.Counter; c != nil {
			text += fmt.Sprintf("+%d-%d", c.Left, c.Done)
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

// TestCount is a life in which deployments are tried, found good, given up and asked
// for again.
func TestCount(t *testing.T) {
	lab.Need(t, "grub-editenv", "grub-script-check")
	l, boot, block := counting(t)
	commit := func(what, want string, items ...loader.Item) {
		t.Helper()
		before, _ := os.ReadFile(block)
		check(t, l.Commit(t.Context(), loader.Menu{Items: items}))
		if got := counters(t, l); got != want {
			t.Errorf("%s: the menu has %s, want %s", what, got, want)
		}
		if after, _ := os.ReadFile(block); string(after) != string(before) {
			t.Errorf("%s: the environment block was written", what)
		}
		file := filepath.Join(boot, fragment)
		if out, err := exec.Command("grub-script-check", "-v", file).CombinedOutput(); err != nil {
			t.Errorf("%s: grub-script-check: %v\n%s", what, err, out)
		}
		st, err := os.Stat(file)
		check(t, err)
		check(t, l.Commit(t.Context(), loader.Menu{Items: items}))
		if again, err := os.Stat(file); err != nil || !os.SameFile(st, again) {
			t.Errorf("%s: the same menu was written again", what)
		}
	}
	a, b, c := item("a", "quiet"), counted("b", 3), counted("c", 2)
	commit("installed", "a", a)
	commit("a new one", "b+3-0 a", b, a)
	started(t, l, block, "b")
	if got := counters(t, l); got != "b+2-1 a" {
		t.Errorf("started once: %s", got)
	}
	commit("a third one while the second is tried", "c+2-0 b+2-1", c, b)
	started(t, l, block, "c")
	good := c
	good.Good = true
	commit("the third one is good", "c b+2-1", good, b)
	commit("and stays so", "c b+2-1", c, b)
	commit("back to the second", "b+2-1 c", b, c)
	started(t, l, block, "b")
	started(t, l, block, "b")
	commit("the second is given up", "c b+0-3", c, b)
	commit("and made the default as it is", "b+0-3 c", b, c)
	b.Renew = true
	commit("asked for again", "b+3-0 c", b, c)
	started(t, l, block, "b")
	commit("asked for again while it is tried", "b+2-1 c", b, c)
	// A deployment that is gone and comes again under its old name is a new one.
	commit("it goes", "c", c)
	b.Renew = false
	commit("it comes again", "b+3-0 c", b, c)

	l.opts.ESP = nil
	if got := counters(t, l); got != "b c" {
		t.Errorf("without the partition the menu has %s", got)
	}
	d := counted("d", 3)
	commit("a new one without the partition", "d b", d, b)
}

// TestSlots: more deployments that are counted than there are variables for.
func TestSlots(t *testing.T) {
	l, _, _ := counting(t)
	var items []loader.Item
	for i := range slots + 2 {
		items = append([]loader.Item{counted(fmt.Sprint("d", i), 5)}, items...)
		check(t, l.Commit(t.Context(), loader.Menu{Items: items}))
	}
	if got := strings.Count(counters(t, l), "+5-0"); got != slots {
		t.Errorf("%d of %d entries are counted, want %d: %s", got, len(items), slots, counters(t, l))
	}
	runs, err := l.runs(items)
	check(t, err)
	var used []int
	block := string(emptyBlock()[:len(blockHeader)])
	for _, r := range runs {
		if r != nil {
			used = append(used, r.slot)
			block += fmt.Sprintf("%s%d=%s\n", variable, r.slot, r.value(5))
		}
	}
	slices.Sort(used)
	if len(slices.Compact(used)) != slots || len(block) > blockSize {
		t.Errorf("slots %v, a block of %d bytes", used, len(block))
	}
}

// TestCounts says when GRUB does not count, and why.
func TestCounts(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(l *Loader, block string)
		why    string // "": it counts
	}{
		{"installed by kedge", func(*Loader, string) {}, ""},
		{"no partition", func(l *Loader, _ string) { l.opts.ESP = nil }, "kedge did not install it"},
		{"boot entries", func(l *Loader, _ string) { l.opts.Entries = true }, "boot entries"},
		{"no block", func(_ *Loader, block string) { check(t, os.Remove(block)) }, "kedge did not install it"},
		{"somebody else's configuration", func(_ *Loader, block string) {
			check(t, os.WriteFile(filepath.Join(filepath.Dir(block), "grub.cfg"), []byte("configfile /boot/grub/grub.cfg\n"), 0o644))
		}, "kedge did not install it"},
		{"a damaged block", func(_ *Loader, block string) { check(t, os.WriteFile(block, []byte("kedge_0=x"), 0o644)) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, _, block := counting(t)
			c.change(l, block)
			ok, why := l.Counts()
			if ok != (c.why == "") || !strings.Contains(why, c.why) {
				t.Errorf("counts: %v, %q; want %q", ok, why, c.why)
			}
		})
	}
}

// TestTry holds the commands against what they are to do, for each number of tries
// that is left; e2e has GRUB run them.
func TestTry(t *testing.T) {
	r := &run{4, "0a0b0c0d", 3}
	var b strings.Builder
	r.try(&b)
	want := `	if [ -s "$kedge_env" ]; then
		if [ "$kedge_4" = '0a0b0c0d:0' ]; then set kedge_4='0a0b0c0d:0'
		elif [ "$kedge_4" = '0a0b0c0d:1' ]; then set kedge_4='0a0b0c0d:0'
		elif [ "$kedge_4" = '0a0b0c0d:2' ]; then set kedge_4='0a0b0c0d:1'
		else set kedge_4='0a0b0c0d:2'; fi
		save_env --file "$kedge_env" kedge_4
	fi
`
	if b.String() != want {
		t.Errorf("a try is\n%s, want\n%s", b.String(), want)
	}
}

// FuzzBlock: a block and a menu that anybody wrote.
func FuzzBlock(f *testing.F) {
	f.Add(emptyBlock(), "# kedge: 0 0a0b0c0d 3 default/0.0\n")
	f.Add(append([]byte(blockHeader+"kedge_0=0a0b0c0d:2\n"), emptyBlock()[len(blockHeader)+19:]...), "# kedge: 7 x 255 \n")
	f.Fuzz(func(t *testing.T, block []byte, line string) {
		e, ok := parseMark(line)
		if !ok || e.run == nil {
			return
		}
		if left := e.run.left(parseBlock(block)); left > e.run.tries {
			t.Errorf("%d of %d tries are left", left, e.run.tries)
		}
		if again, ok := parseMark(e.mark()); !ok || again.id != strings.Map(printable, e.id) || again.run == nil || *again.run != *e.run {
			t.Errorf("%+v is read as %+v", *e.run, again)
		}
	})
}
