package sdboot

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/fault"
)

func open(t *testing.T, dir string, o Options) *Loader {
	t.Helper()
	root, err := os.OpenRoot(dir)
	check(t, err)
	o.Arch = "amd64"
	l := New(root, o)
	t.Cleanup(l.Close)
	return l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	loadertest.Run(t, func(t *testing.T) (loader.Loader, string) {
		dir := t.TempDir()
		return open(t, dir, Options{}), dir
	}, loadertest.Unified)
}

// TestExtended: kernels and entries are on the one partition, the program on the
// other.
func TestExtended(t *testing.T) {
	loadertest.Run(t, func(t *testing.T) (loader.Loader, string) {
		dir := t.TempDir()
		programs, err := os.OpenRoot(t.TempDir())
		check(t, err)
		return open(t, dir, Options{Programs: programs}), dir
	})
	kernels, esp := t.TempDir(), t.TempDir()
	programs, err := os.OpenRoot(esp)
	check(t, err)
	l := open(t, kernels, Options{Programs: programs})
	_, err = l.Update(image("257"))
	check(t, err)
	for _, name := range []string{esp + "/EFI/BOOT/BOOTX64.EFI", esp + "/loader/loader.conf", kernels + "/loader/entries.srel"} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(kernels + "/EFI"); err == nil || !l.Extended() {
		t.Error("the program is on the partition of the kernels")
	}
}

var errPower = errors.New("the power is gone")

// TestEveryFlush ends Commit at each of its flushes: what systemd-boot then
// shows begins with the old default or the new one, once the new one never with
// the old again, every line of it has its kernel, and the next Commit finishes
// the work.
func TestEveryFlush(t *testing.T) {
	for _, s := range append(loadertest.Separate[:1:1], loadertest.Unified) {
		a, b, c := s.Item("a", 0), s.Item("b", 3), s.Item("c", 0)
		menus := map[string][2]loader.Menu{
			"switch":   {s.Menu(a), s.Menu(b, a)},
			"rollback": {s.Menu(b, a), s.Menu(a, b)},
			"third":    {s.Menu(b, a), s.Menu(c, b)},
			"drop":     {s.Menu(b, a), s.Menu(b)},
			"other id": {s.Menu(b, a), otherKey(s.Menu(c, b))},
			"rewrite":  {s.Menu(b, a), s.Menu(otherRoot(b), otherRoot(a))},
			"back":     {s.Menu(b, a), s.Menu(otherRoot(a), otherRoot(b))},
		}
		for name, m := range menus {
			t.Run(s.Name+"/"+name, func(t *testing.T) {
				seenNew, n := false, 0
				for done := false; !done; n++ {
					dir := t.TempDir()
					l := open(t, dir, Options{NoSync: true})
					for _, menu := range m {
						check(t, l.Prepare(t.Context(), menu.Items))
					}
					check(t, l.Commit(t.Context(), m[0]))
					tried := try(t, dir)
					flushes := 0
					l.flush = func(*os.Root) error {
						if flushes++; flushes > n {
							return errPower
						}
						return nil
					}
					err := l.Commit(t.Context(), m[1])
					if done = err == nil; !done && !errors.Is(err, errPower) {
						t.Fatal(err)
					}
					isNew := checkMenu(t, dir, l, m)
					if seenNew && !isNew {
						t.Errorf("after flush %d the old default is back", n)
					}
					seenNew = seenNew || isNew && m[0].Items[0].ID != m[1].Items[0].ID
					checkTries(t, l, m)
					l.flush = func(*os.Root) error { return nil }
					check(t, l.Commit(t.Context(), m[1]))
					lines, _, err := l.Lines(m[1].Owns)
					check(t, err)
					if len(lines) != len(m[1].Items) || lines[0].ID != m[1].Items[0].ID {
						t.Errorf("after flush %d and another try the menu has %d lines, the first %s", n, len(lines), lines[0].ID)
					}
					if n == 0 || done {
						// A writer that is cut off in between may leave the name of a copy,
						// and the machine is started from that.
						checkTried(t, tried, lines, m)
					}
				}
				if n < 2 {
					t.Errorf("there were %d flushes, want more", n)
				}
			})
		}
	}
}

// otherRoot is an item whose root is found another way, as after libostree's
// change of its boot version.
func otherRoot(item loader.Item) loader.Item {
	item.Entry = item.Entry.Clone()
	options, _ := item.Entry.Get("options")
	item.Entry.Set("options", options+" other")
	return item
}

// try does what systemd-boot does with the entry of b: it counts a boot.
func try(t *testing.T, dir string) (tried string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, entriesDir, "*+3.conf"))
	check(t, err)
	for _, f := range files {
		tried = strings.Replace(f, "+3.", "+2-1.", 1)
		check(t, os.Rename(f, tried))
	}
	return filepath.Base(tried)
}

// checkTries checks that what is left of the tries of b is never forgotten.
func checkTries(t *testing.T, l *Loader, m [2]loader.Menu) {
	t.Helper()
	lines, _, err := l.Lines(m[0].Owns)
	check(t, err)
	n := 0
	for _, line := range lines {
		if line.ID != "b" {
			continue
		}
		n++
		if has(m[0], "b") && (line.Counter == nil || *line.Counter != bls.Counter{Left: 2, Done: 1}) {
			t.Errorf("the entry that was tried once of three times is %s", line.File)
		}
	}
	if n == 0 && has(m[0], "b") && has(m[1], "b") {
		t.Error("the entry that is being tried is not in the menu")
	}
}

// checkTried checks that systemd-bless-boot finds the entry of b.
func checkTried(t *testing.T, tried string, lines []loader.Line, m [2]loader.Menu) {
	t.Helper()
	found := slices.ContainsFunc(lines, func(line loader.Line) bool { return line.ID == "b" && line.File == tried })
	if has(m[0], "b") && has(m[1], "b") && !found {
		t.Errorf("the menu has no %s any more: %+v", tried, lines)
	}
}

func has(m loader.Menu, id string) bool {
	return slices.ContainsFunc(m.Items, func(i loader.Item) bool { return i.ID == id })
}

// otherKey is an image of another system: its sort-key stands before.
func otherKey(m loader.Menu) loader.Menu {
	m.SortKey = "a" + m.SortKey
	return m
}

func checkMenu(t *testing.T, dir string, l *Loader, m [2]loader.Menu) (isNew bool) {
	t.Helper()
	lines, _, err := l.Lines(m[0].Owns)
	check(t, err)
	if len(lines) == 0 {
		t.Fatal("the menu is empty")
	}
	// A second reader, which knows nothing of this package.
	first, err := lab.DefaultEntry(liveCopy(t, dir))
	check(t, err)
	if first.File != lines[0].File {
		t.Errorf("the default is %s, and for another reader %s", lines[0].File, first.File)
	}
	for _, line := range lines {
		for _, p := range named(line.Entry) {
			if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
				t.Errorf("entry %s: %v", line.File, err)
			}
		}
	}
	switch lines[0].ID {
	case m[1].Items[0].ID:
		return true
	case m[0].Items[0].ID:
		return false
	}
	t.Errorf("the default is %s", lines[0].ID)
	return false
}

// liveCopy copies the entries that name a kernel.
func liveCopy(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(to, entriesDir), 0o755))
	files, err := filepath.Glob(filepath.Join(dir, entriesDir, "*.conf"))
	check(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		check(t, err)
		if strings.Contains(string(text), "\nlinux ") || strings.Contains(string(text), "\nefi ") {
			check(t, os.WriteFile(filepath.Join(to, entriesDir, filepath.Base(f)), text, 0o644))
		}
	}
	return to
}

func TestFull(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	check(t, unix.Mount("esp", dir, "tmpfs", 0, "size=3m"))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	l := open(t, dir, Options{})
	s := loadertest.Separate[0]
	a := s.Item("a", 0)
	check(t, l.Prepare(t.Context(), []loader.Item{a}))
	check(t, l.Commit(t.Context(), s.Menu(a)))
	check(t, os.WriteFile(filepath.Join(dir, "theirs"), make([]byte, 2<<20), 0o644))
	b := s.Item("b", 0)
	err := l.Prepare(t.Context(), []loader.Item{b})
	if fault.KindOf(err) != fault.NoSpace {
		t.Fatalf("on a full partition: %v, want no space", err)
	}
	if _, err := os.Stat(filepath.Join(dir, s.KernelDir, s.Kernel("b"))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a part of a kernel: %v", err)
	}
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := l.Commit(t.Context(), s.Menu(b)); fault.KindOf(err) != fault.Denied {
		t.Errorf("on a read-only partition: %v, want denied", err)
	}
}
