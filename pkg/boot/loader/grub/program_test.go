package grub

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/fault"
)

// program makes what says of itself that it is a build of GRUB or shim.
func program(component, version string) []byte {
	text := "sbat,1,SBAT Version,sbat,1,https://example.org\n" + strings.SplitN(component, ".", 2)[0] + ",4,Upstream,x,1,https://example.org\n" +
		component + ",1,Vendor,x," + version + ",https://example.org\n"
	return append(loadertest.PE(".sbat", text), "\x00\x00/EFI/debian\x00"...)
}

const (
	signedGRUB = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
	bareGRUB   = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
	signedShim = "usr/lib/shim/shimx64.efi.signed"
	manager    = "usr/lib/shim/mmx64.efi.signed"
)

func debian(version string) fstest.MapFS {
	return fstest.MapFS{
		signedGRUB: {Data: program("grub.debian", version)}, bareGRUB: {Data: program("grub.debian", "0")},
		signedShim: {Data: program("shim.debian", version)}, manager: {Data: program("shim.debian", version)},
	}
}

// openESP opens a loader with a partition, at installation where place is given.
func openESP(t *testing.T, boot, esp string, o Options) *Loader {
	t.Helper()
	root, err := os.OpenRoot(boot)
	check(t, err)
	o.ESP, err = os.OpenRoot(esp)
	check(t, err)
	o.Arch, o.NoSync = "amd64", true
	l := New(root, o)
	t.Cleanup(l.Close)
	return l
}

var place = &Place{UUID: "0123abcd-0000-0000-0000-000000000000", Path: "/boot"}

func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	}))
	slices.Sort(list)
	return list
}

func TestInstall(t *testing.T) {
	fedora := func(prefix string) fstest.MapFS {
		return fstest.MapFS{
			prefix + "/fedora/grubx64.efi": {Data: program("grub.rh", "2.12")}, prefix + "/fedora/shimx64.efi": {Data: program("shim.rh", "16")},
			prefix + "/fedora/BOOTX64.CSV": {Data: []byte("csv")}, prefix + "/BOOT/BOOTX64.EFI": {Data: program("shim.rh", "16")},
		}
	}
	split := fstest.MapFS{}
	for name, f := range fedora("usr/lib/efi/x/1-2/EFI") {
		pkg := "shim"
		if strings.Contains(name, "grub") {
			pkg = "grub2"
		}
		split[strings.Replace(name, "/x/", "/"+pkg+"/", 1)] = f
	}
	tree := []string{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grub.cfg", "EFI/fedora/BOOTX64.CSV", "EFI/fedora/grub.cfg", "EFI/fedora/grubx64.efi", "EFI/fedora/shimx64.efi"}
	for _, c := range []struct {
		name    string
		image   fstest.MapFS
		entries bool
		want    []string
	}{
		{"Debian, signed", debian("1"), false, []string{
			"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grub.cfg", "EFI/BOOT/grubx64.efi", "EFI/BOOT/mmx64.efi",
			"EFI/debian/grub.cfg", "EFI/debian/grubx64.efi", "EFI/debian/kedge.env", "EFI/debian/mmx64.efi", "EFI/debian/shimx64.efi",
		}},
		{"Debian, GRUB alone", fstest.MapFS{bareGRUB: {Data: program("grub.debian", "1")}}, false, []string{
			"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grub.cfg", "EFI/debian/grub.cfg", "EFI/debian/grubx64.efi", "EFI/debian/kedge.env",
		}},
		{"a tree for bootupd", fedora(bootupdDir), true, tree},
		{"trees with versions", split, true, tree},
	} {
		t.Run(c.name, func(t *testing.T) {
			boot, esp := t.TempDir(), t.TempDir()
			l := openESP(t, boot, esp, Options{Place: place, Entries: c.entries})
			changed, err := l.Update(c.image)
			check(t, err)
			if got := files(t, esp); !changed || !slices.Equal(got, c.want) {
				t.Errorf("changed %v; the partition has\n%q, want\n%q", changed, got, c.want)
			}
			for _, name := range c.want {
				text, err := os.ReadFile(filepath.Join(esp, name))
				check(t, err)
				menu := "'/boot/grub'"
				if c.entries {
					menu = "'/boot/grub2'"
				}
				if filepath.Base(name) == "grub.cfg" && (!strings.Contains(string(text), "--set=root "+place.UUID+"\n") || !strings.Contains(string(text), menu)) {
					t.Errorf("%s is %q", name, text)
				}
			}
			if _, err := os.Stat(filepath.Join(boot, entriesConfig)); c.entries != (err == nil) {
				t.Errorf("a configuration that reads boot entries: %v", err)
			}
			if changed, err := l.Update(c.image); changed || err != nil {
				t.Errorf("the same image once more: changed %v, %v", changed, err)
			}
		})
	}
}

// TestEntriesMenu: where entries are not below the file system's root, GRUB is told.
func TestEntriesMenu(t *testing.T) {
	lab.Need(t, "grub-script-check")
	for place, want := range map[string]string{
		"/":                 "insmod blscfg\nblscfg\n",
		"/boot":             "set blsdir='/boot/loader/entries'\n",
		"/it's a root/boot": `set blsdir='/it'\''s a root/boot/loader/entries'`,
	} {
		text := Place{Path: place}.entriesMenu()
		if !strings.Contains(string(text), want) {
			t.Errorf("for %s: %s", place, text)
		}
		file := filepath.Join(t.TempDir(), "grub.cfg")
		check(t, os.WriteFile(file, text, 0o600))
		if _, err := lab.Command(t.Context(), "grub-script-check", file); err != nil {
			t.Errorf("for %s: %v\n%s", place, err, text)
		}
	}
}

// TestUpdate: the programs follow the image forwards, not backwards, and the
// configuration stays.
func TestUpdate(t *testing.T) {
	boot, esp := t.TempDir(), t.TempDir()
	_, err := openESP(t, boot, esp, Options{Place: place}).Update(debian("2.12-9"))
	check(t, err)
	l := openESP(t, boot, esp, Options{})
	for _, c := range []struct {
		version string
		changed bool
		have    string
	}{{"2.12-9", false, "2.12-9"}, {"2.12-10", true, "2.12-10"}, {"2.12-9", false, "2.12-10"}} {
		changed, err := l.Update(debian(c.version))
		if changed != c.changed || err != nil {
			t.Errorf("image with %s: changed %v, %v", c.version, changed, err)
		}
		for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/debian/grubx64.efi"} {
			data, err := os.ReadFile(filepath.Join(esp, name))
			check(t, err)
			if b, ok := buildOf(data); !ok || b.version != c.have {
				t.Errorf("image with %s: %s is of %+v, want %s", c.version, name, b, c.have)
			}
		}
	}
	if changed, err := l.Update(fstest.MapFS{}); changed || fault.KindOf(err) != fault.NotFound {
		t.Errorf("an image without GRUB: changed %v, %v", changed, err)
	}
}

// TestOtherSystems: what another system has on the partition stays.
func TestOtherSystems(t *testing.T) {
	put := func(dir, name string, data []byte) {
		t.Helper()
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	for what, theirs := range map[string][]byte{"Fedora": program("shim.rh", "1"), "unknown": []byte("MZ")} {
		esp := t.TempDir()
		put(esp, "EFI/BOOT/BOOTX64.EFI", theirs)
		put(esp, "EFI/BOOT/grubx64.efi", theirs)
		_, err := openESP(t, t.TempDir(), esp, Options{Place: place}).Update(debian("9"))
		check(t, err)
		if got := files(t, filepath.Join(esp, "EFI/BOOT")); !slices.Equal(got, []string{"BOOTX64.EFI", "grubx64.efi"}) {
			t.Errorf("%s: beside the fallback there is %q", what, got)
		}
		for _, name := range []string{"BOOTX64.EFI", "grubx64.efi"} {
			if data, _ := os.ReadFile(filepath.Join(esp, "EFI/BOOT", name)); !bytes.Equal(data, theirs) {
				t.Errorf("%s: %s was replaced", what, name)
			}
		}
		if _, err := os.Stat(filepath.Join(esp, "EFI/debian/shimx64.efi")); err != nil {
			t.Error(err)
		}
	}
	for what, text := range map[string][]byte{"another sysroot": (Place{"ffff0000-0000-0000-0000-000000000000", "/"}).pointer("debian", config), "Debian": []byte("search.fs_uuid x root\n")} {
		esp := t.TempDir()
		put(esp, "EFI/debian/grub.cfg", text)
		_, err := openESP(t, t.TempDir(), esp, Options{Place: place}).Update(debian("9"))
		if got := files(t, esp); fault.KindOf(err) != fault.Conflict || len(got) != 1 {
			t.Errorf("%s: %v; there is %q", what, err, got)
		}
	}
	esp := t.TempDir()
	put(esp, "EFI/debian/grub.cfg", []byte("search.fs_uuid x root\n"))
	if changed, err := openESP(t, t.TempDir(), esp, Options{}).Update(debian("9")); changed || err != nil {
		t.Errorf("a GRUB that kedge did not install: changed %v, %v", changed, err)
	}
}

// TestFullPartition: nothing is written where not all of it fits.
func TestFullPartition(t *testing.T) {
	lab.NeedRoot(t)
	esp := t.TempDir()
	check(t, unix.Mount("esp", esp, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { check(t, unix.Unmount(esp, unix.MNT_DETACH)) })
	_, err := openESP(t, t.TempDir(), esp, Options{Place: place}).Update(debian("1"))
	if got := files(t, esp); fault.KindOf(err) != fault.NoSpace || len(got) > 0 {
		t.Errorf("%v; there is %q", err, got)
	}
}

func TestBadImages(t *testing.T) {
	many := fstest.MapFS{}
	for i := range maxFiles + 1 {
		many[bootupdDir+"/x/"+strings.Repeat("a", i+1)] = &fstest.MapFile{}
	}
	for what, c := range map[string]struct {
		image fstest.MapFS
		kind  fault.Kind
	}{
		"nothing":           {fstest.MapFS{}, fault.NotFound},
		"shim alone":        {fstest.MapFS{signedShim: {Data: program("shim.debian", "1")}}, fault.NotFound},
		"a directory":       {fstest.MapFS{signedGRUB + "/x": {}}, fault.Corrupt},
		"a tree, no loader": {fstest.MapFS{bootupdDir + "/fedora/grubx64.efi": {Data: program("grub.rh", "1")}}, fault.NotFound},
		"no end of files":   {many, fault.Corrupt},
	} {
		esp := t.TempDir()
		_, err := openESP(t, t.TempDir(), esp, Options{Place: place}).Update(c.image)
		if got := files(t, esp); fault.KindOf(err) != c.kind || len(got) > 0 {
			t.Errorf("%s: %v, want %s; there is %q", what, err, c.kind, got)
		}
	}
}

// TestDebianPrograms reads what Debian's packages hold.
func TestDebianPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches packages; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "mmdebstrap")
	dir, err := lab.Make(t.Context(), "grub.sh")
	check(t, err)
	p, err := read(os.DirFS(dir), "amd64")
	check(t, err)
	if p.vendor != "debian" {
		t.Errorf("GRUB looks in EFI/%s, want EFI/debian", p.vendor)
	}
	for _, f := range p.files {
		b, ok := buildOf(f.data)
		if want := "grub.debian"; !ok || b.version == "" || strings.HasPrefix(filepath.Base(f.name), "grub") && b.component != want {
			t.Errorf("%s is a build %+v", f.name, b)
		}
	}
	esp := t.TempDir()
	_, err = openESP(t, t.TempDir(), esp, Options{Place: place}).Update(os.DirFS(dir))
	check(t, err)
	if _, err := os.Stat(filepath.Join(esp, "EFI/debian/mmx64.efi")); errors.Is(err, fs.ErrNotExist) {
		t.Error("shim's key manager is not installed")
	}
}

func FuzzBuildOf(f *testing.F) {
	f.Add(program("grub.debian", "1"))
	f.Add([]byte("MZ"))
	f.Fuzz(func(_ *testing.T, data []byte) { buildOf(data) })
}
