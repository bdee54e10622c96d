// Package loadertest is what every boot loader has to do, as tests: each
// implementation of loader.Loader runs the suite, with the menus of both
// sysroots.
package loadertest

import (
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
)

// Factory returns a new loader and the directory that its program reads, "" for
// one that writes nothing.
type Factory func(t *testing.T) (l loader.Loader, dir string)

// Style is how a sysroot names what it boots.
type Style struct {
	Name      string
	SortKey   string
	KernelDir string
	Kernel    func(id string) string // directory of a kernel, beneath KernelDir
	Options   func(id string) string // nil: Kernel is a unified kernel image
}

// Separate are those of the two sysroots for kernels that have their initrd beside
// them, which every loader starts.
var Separate = []Style{
	{
		"ostree", "ostree-0123abcd", "ostree",
		func(id string) string { return "default-" + strings.Repeat(id[:1], 64) },
		func(id string) string { return "root=LABEL=root ostree=/ostree/boot.1/default/" + id + "/0" },
	},
	{
		"composefs", "bootc-debian", "EFI/Linux",
		func(id string) string { return "bootc_composefs-" + strings.Repeat(id[:1], 128) },
		func(id string) string { return "root=LABEL=root composefs=" + strings.Repeat(id[:1], 128) },
	},
}

// Unified is that of unified kernel images, which not every loader starts.
var Unified = Style{
	"unified", "bootc-debian", "EFI/Linux/bootc",
	func(id string) string { return "bootc_composefs-" + strings.Repeat(id[:1], 128) + ".efi" },
	nil,
}

// Item makes the line of a deployment; ids begin with different letters.
func (s Style) Item(id string, tries uint64) loader.Item {
	e := &bls.Entry{}
	dir := path.Join(s.KernelDir, s.Kernel(id))
	e.Set("title", "System "+id)
	e.Set("version", "1")
	if s.Options == nil {
		e.Set("efi", "/"+dir)
		return loader.Item{ID: id, Name: s.Name + "-test", Entry: e, Tries: func() uint64 { return tries }, Files: func() ([]loader.File, error) {
			return []loader.File{file(dir, "kernel of "+id)}, nil
		}}
	}
	e.Set("linux", "/"+dir+"/vmlinuz")
	e.SetInitrds([]string{"/" + dir + "/initrd"})
	e.Set("options", s.Options(id))
	return loader.Item{ID: id, Name: s.Name + "-test", Entry: e, Tries: func() uint64 { return tries }, Files: func() ([]loader.File, error) {
		return []loader.File{file(dir+"/vmlinuz", "kernel of "+id), file(dir+"/initrd", "initrd of "+id)}, nil
	}}
}

// kernelFile is where the kernel of a deployment is.
func (s Style) kernelFile(id string) string {
	name := path.Join(s.KernelDir, s.Kernel(id))
	if s.Options != nil {
		name = path.Join(name, "vmlinuz")
	}
	return name
}

func file(name, text string) loader.File {
	return loader.File{Path: name, Size: int64(len(text)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	}}
}

// Menu makes the menu of deployments.
func (s Style) Menu(items ...loader.Item) loader.Menu {
	return loader.Menu{
		Owns:    func(file string, _ *bls.Entry) bool { return strings.HasPrefix(file, s.Name+"-test") },
		SortKey: s.SortKey, Items: items, KernelDir: s.KernelDir,
		OwnKernel: func(name string) bool {
			return strings.HasPrefix(name, "default-") || strings.HasPrefix(name, "bootc_composefs-")
		},
	}
}

// Run runs the suite with Separate and the styles named.
func Run(t *testing.T, make Factory, more ...Style) {
	for _, s := range slices.Concat(Separate, more) {
		t.Run(s.Name, func(t *testing.T) {
			t.Run("Life", func(t *testing.T) { life(t, make, s) })
			t.Run("Tries", func(t *testing.T) { tries(t, make, s) })
			t.Run("Others", func(t *testing.T) { others(t, make, s) })
		})
	}
}

// commit does what a sysroot does for a new menu.
func commit(t *testing.T, l loader.Loader, s Style, items ...loader.Item) {
	t.Helper()
	m := s.Menu(items...)
	if err := l.Prepare(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := l.Sweep(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
}

func ids(t *testing.T, l loader.Loader, s Style) (list []string) {
	t.Helper()
	lines, _, err := l.Lines(s.Menu().Owns)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		list = append(list, line.ID)
	}
	return list
}

func want(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: the menu has %q, want %q", what, got, want)
	}
}

// life is install, switch, roll back and forth, and a third one that takes the
// place of the first.
func life(t *testing.T, make Factory, s Style) {
	l, dir := make(t)
	defer l.Close()
	a, b, c := s.Item("a", 0), s.Item("b", 0), s.Item("c", 0)
	if dir == "" {
		commit(t, l, s, b, a)
		if l.Root() != nil {
			t.Error("a loader without a directory has one")
		}
		return
	}
	for _, step := range []struct {
		what  string
		items []loader.Item
		ids   []string
	}{
		{"installed", []loader.Item{a}, []string{"a"}},
		{"a new one", []loader.Item{b, a}, []string{"b", "a"}},
		{"rolled back", []loader.Item{a, b}, []string{"a", "b"}},
		{"and forth", []loader.Item{b, a}, []string{"b", "a"}},
		{"a third one", []loader.Item{c, b}, []string{"c", "b"}},
		{"the rollback goes", []loader.Item{c}, []string{"c"}},
	} {
		if need, free, err := l.Space(step.items); err != nil || free == 0 {
			t.Fatalf("%s: space is %d of %d, %v", step.what, need, free, err)
		}
		commit(t, l, s, step.items...)
		want(t, step.what, ids(t, l, s), step.ids)
		var have []string
		for _, f := range []string{"a", "b", "c"} {
			text, err := os.ReadFile(filepath.Join(dir, s.kernelFile(f)))
			if err == nil {
				have = append(have, f)
				if string(text) != "kernel of "+f {
					t.Errorf("%s: the kernel of %s is %q", step.what, f, text)
				}
			}
		}
		sorted := slices.Sorted(slices.Values(step.ids))
		if !slices.Equal(have, sorted) {
			t.Errorf("%s: there are the kernels of %q, want those of %q", step.what, have, sorted)
		}
		before := snapshot(t, dir)
		commit(t, l, s, step.items...)
		if after := snapshot(t, dir); !slices.Equal(before, after) {
			t.Errorf("%s: the same menu again writes: %q, before %q", step.what, after, before)
		}
	}
	// A kernel of which a write was cut off is not taken for whole.
	kernel := filepath.Join(dir, s.kernelFile("a"))
	check(t, os.MkdirAll(filepath.Dir(kernel), 0o755))
	check(t, os.WriteFile(kernel, []byte("kernel of X"), 0o644))
	commit(t, l, s, a, c)
	if text, err := os.ReadFile(kernel); err != nil || string(text) != "kernel of a" {
		t.Errorf("a damaged kernel that nothing boots is %q, %v, want it written anew", text, err)
	}
}

func snapshot(t *testing.T, dir string) (list []string) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		list = append(list, path+" "+info.ModTime().String())
		return err
	}))
	return list
}

// tries is a new deployment that is counted: what a boot loader and
// systemd-bless-boot make of the file's name stays.
func tries(t *testing.T, make Factory, s Style) {
	l, dir := make(t)
	defer l.Close()
	a, b, c := s.Item("a", 0), s.Item("b", 3), s.Item("c", 2)
	commit(t, l, s, a)
	commit(t, l, s, b, a)
	if dir == "" {
		return
	}
	counter := func(id string) (c bls.Counter, file string) {
		lines, _, err := l.Lines(s.Menu().Owns)
		check(t, err)
		for _, line := range lines {
			if line.ID == id {
				if line.Counter != nil {
					c = *line.Counter
				}
				return c, line.File
			}
		}
		t.Fatalf("the menu has no %s", id)
		return c, ""
	}
	left, name := counter("b")
	if left != (bls.Counter{Left: 3}) || !strings.HasSuffix(name, "+3.conf") {
		t.Errorf("a new entry with 3 tries is %s, want …+3.conf", name)
	}
	if _, name := counter("a"); strings.Contains(name, "+") {
		t.Errorf("an entry that is not counted is %s", name)
	}
	rename := func(from, to string) {
		check(t, os.Rename(filepath.Join(dir, "loader/entries", from), filepath.Join(dir, "loader/entries", to)))
	}
	tried := strings.Replace(name, "+3", "+2-1", 1)
	rename(name, tried)
	commit(t, l, s, b, a)
	if _, name := counter("b"); name != tried {
		t.Errorf("the menu again makes %s of %s, want it left alone", name, tried)
	}
	// A third one: the second gets another sort-key, and keeps what is left.
	commit(t, l, s, c, b)
	if _, name := counter("b"); name != tried {
		t.Errorf("an entry that is being tried is %s when it is written anew, want the name that the boot loader knows: %s", name, tried)
	}
	_, name = counter("c")
	rename(name, strings.Replace(name, "+2", "", 1))
	commit(t, l, s, c, b)
	if _, name := counter("c"); strings.Contains(name, "+") {
		t.Errorf("an entry that was blessed is %s, want no new tries", name)
	}
	// Of one without tries left the next line is the default.
	commit(t, l, s, b, c)
	_, name = counter("b")
	rename(name, strings.Replace(name, "+2-1", "+0-3", 1))
	want(t, "no tries left", ids(t, l, s), []string{"c", "b"})
	commit(t, l, s, c, b)
	want(t, "what was left made the default", ids(t, l, s), []string{"c", "b"})
	// Somebody asks for it again, with the menu as it was or another one.
	again := s.Item("b", 3)
	again.Renew = true
	for range 2 {
		commit(t, l, s, again, c)
		want(t, "asked for again", ids(t, l, s), []string{"b", "c"})
		if left, name := counter("b"); left != (bls.Counter{Left: 3}) {
			t.Errorf("asked for again it is %s, want 3 tries", name)
		}
		commit(t, l, s, b, c)
		if left, name := counter("b"); left != (bls.Counter{Left: 3}) {
			t.Errorf("written anew after that it is %s, want its 3 tries kept", name)
		}
		_, name = counter("b")
		rename(name, strings.Replace(name, name[strings.LastIndexByte(name, '+'):], "+0-3.conf", 1))
	}
}

// others is a partition that another system uses too.
func others(t *testing.T, make Factory, s Style) {
	l, dir := make(t)
	defer l.Close()
	if dir == "" {
		return
	}
	theirs := map[string]string{
		"loader/entries/arch.conf":                            "title Arch\nlinux /vmlinuz-arch\ninitrd /" + s.KernelDir + "/" + s.Kernel("z") + "/initrd\n",
		"loader/entries/broken.conf":                          "title Nothing\noptions quiet\n",
		"loader/entries/readme.txt":                           "not an entry",
		"vmlinuz-arch":                                        "theirs",
		s.KernelDir + "/" + s.Kernel("z") + "/initrd":         "theirs",
		s.KernelDir + "/other/vmlinuz":                        "theirs",
		"EFI/Microsoft/Boot/bootmgfw.efi":                     "theirs",
		"loader/loader.conf":                                  "default arch.conf\n",
		"EFI/Linux/arch.efi":                                  "theirs",
		"loader/entries/" + s.Name + "-other.12345678+3.conf": "title Other\nlinux /vmlinuz-arch\n",
	}
	for name, text := range theirs {
		check(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	commit(t, l, s, s.Item("a", 0))
	commit(t, l, s, s.Item("b", 0), s.Item("a", 0))
	commit(t, l, s, s.Item("b", 0))
	for name, text := range theirs {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, []byte(text)) {
			t.Errorf("%s of another system is %q, %v", name, got, err)
		}
	}
	_, problems, err := l.Lines(s.Menu().Owns)
	check(t, err)
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "broken.conf") {
		t.Errorf("problems are %v, want broken.conf to be told", problems)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
