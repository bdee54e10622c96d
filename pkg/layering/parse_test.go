package layering

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/pkg/fault"
)

func TestDetect(t *testing.T) {
	const (
		aptProgram, dnfProgram = "usr/bin/apt-get", "usr/bin/dnf-3"
		dpkg, rpm              = "usr/bin/dpkg", "usr/bin/rpm"
	)
	for _, tc := range []struct {
		name  string
		files []string
		empty string
		want  string
	}{
		{"Debian", []string{aptProgram, dpkg, "var/lib/dpkg/status"}, "", "apt"},
		{"Debian with dnf as a tool", []string{aptProgram, dpkg, dnfProgram, rpm, "usr/lib/sysimage/dpkg/status", "var/lib/rpm/rpmdb.sqlite"}, "", "apt"},
		{"Fedora", []string{dnfProgram, rpm, "usr/lib/sysimage/rpm/rpmdb.sqlite"}, "", "dnf"},
		{"Fedora with dnf5 alone", []string{"usr/bin/dnf5", rpm, "usr/lib/sysimage/rpm/rpmdb.sqlite"}, "", "dnf"},
		{"Fedora with apt as a tool", []string{aptProgram, dpkg, dnfProgram, rpm, "usr/share/rpm/rpmdb.sqlite"}, "var/lib/dpkg/status", "dnf"},
		{"no database", []string{aptProgram, dpkg, dnfProgram, rpm}, "", ""},
		{"no program", []string{dpkg, rpm, "var/lib/dpkg/status", "usr/share/rpm/rpmdb.sqlite"}, "", ""},
	} {
		dir := t.TempDir()
		for _, f := range append(tc.files, tc.empty) {
			if f == "" {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755); err != nil {
				t.Fatal(err)
			}
			data := []byte("x")
			if f == tc.empty {
				data = nil
			}
			if err := os.WriteFile(filepath.Join(dir, f), data, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		e, err := detect(root)
		root.Close()
		switch {
		case tc.want == "":
			if fault.KindOf(err) != fault.Conflict {
				t.Errorf("%s: %v, want a conflict", tc.name, err)
			}
		case err != nil || e.name() != tc.want:
			t.Errorf("%s: %v (%v), want %s", tc.name, e, err, tc.want)
		}
	}
}

func TestParseSimulation(t *testing.T) {
	// Lines as apt 3.0 prints them.
	const text = `NOTE: This is only a simulation!
Reading package lists...
Remv lab-editor [1.0]
Inst libc6 [2.41-12] (2.41-13 Debian:13.2/stable, Debian-Security:13/stable-security [amd64]) [libc6:amd64 on libc-bin:amd64 ] [libc-bin:amd64 ]
Inst lab-vi (1:1.0~rc1+b2 localhost [all])
Inst libfoo:i386 (1.0 Debian:13.2/stable [i386])
Conf libc6 (2.41-13 Debian:13.2/stable [amd64])
`
	r := &resolution{install: []string{"lab-vi=1:1.0~rc1+b2"}, base: []Package{{Name: "lab-editor", Version: "1.0", Arch: "all"}}}
	var lock Lock
	if err := parseSimulation(text, r, &lock); err != nil {
		t.Fatal(err)
	}
	want := Lock{
		Install: []Package{
			{Name: "libc6", Version: "2.41-13", Arch: "amd64", Replaces: "2.41-12", Repository: "Debian:13.2/stable, Debian-Security:13/stable-security"},
			{Name: "lab-vi", Version: "1:1.0~rc1+b2", Arch: "all", Repository: "localhost", Requested: true},
			{Name: "libfoo", Version: "1.0", Arch: "i386", Repository: "Debian:13.2/stable"},
		},
		Remove: []Package{{Name: "lab-editor", Version: "1.0", Arch: "all"}},
	}
	if diff := cmp.Diff(want, lock); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"Inst x\n", "Inst x 1.0\n", "Remv x\n", "Remv lab-nowhere [1.0]\n"} {
		if err := parseSimulation(bad, r, &Lock{}); fault.KindOf(err) != fault.Internal {
			t.Errorf("%q: %v, want an error", bad, err)
		}
	}
}

func TestReadDpkgStatus(t *testing.T) {
	const text = `Package: b
Status: install ok installed
Architecture: all
Version: 1:2.0-1
Description: two
 Package: not this one

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: a
Status: install ok half-configured
Architecture: amd64
Version: 3
`
	got, err := readDpkgStatus(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Package{{Name: "a", Version: "3 (half-configured)", Arch: "amd64"}, {Name: "b", Version: "1:2.0-1", Arch: "all"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzReadDpkgStatus(f *testing.F) {
	f.Add("Package: a\nStatus: install ok installed\nVersion: 1\n\n")
	f.Add(": \n\n: x\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := readDpkgStatus(strings.NewReader(text))
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(list, func(a, b Package) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("not in order: %+v", list)
		}
	})
}

func FuzzParseSimulation(f *testing.F) {
	f.Add("Inst libc6 [2.41-12] (2.41-13 Debian:13.2/stable [amd64]) []\nRemv a [1] [b:amd64 ]\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := &resolution{base: []Package{{Name: "a", Version: "1", Arch: "all"}}}
		var lock Lock
		if err := parseSimulation(text, r, &lock); err == nil {
			_ = addChecksums(text, r, &lock)
		}
	})
}

func TestNearest(t *testing.T) {
	names := []string{"vim", "vim-tiny", "nano", "jq", "vim-nox"}
	for name, want := range map[string][]string{"vmi": nil, "vin": {"vim"}, "vim-tinny": {"vim-tiny"}, "jq": {"jq"}, "emacs": nil} {
		if diff := cmp.Diff(want, nearest(name, names)); diff != "" {
			t.Errorf("nearest to %s: %s", name, diff)
		}
	}
}

func TestParseNEVRA(t *testing.T) {
	for text, want := range map[string]Package{
		"lab-chain-1.0-1.noarch":        {Name: "lab-chain", Version: "0:1.0-1", Arch: "noarch"},
		"perl-4:5.40.0-512.fc42.x86_64": {Name: "perl", Version: "4:5.40.0-512.fc42", Arch: "x86_64"},
		"gtk2-devel-2.24.33~rc1-1.i686": {Name: "gtk2-devel", Version: "0:2.24.33~rc1-1", Arch: "i686"},
		"no-package":                    {},
		"-1-1.noarch":                   {},
	} {
		got, err := parseNEVRA(text)
		if got != want && err == nil || (err != nil) != (want.Name == "") {
			t.Errorf("%s is %+v (%v), want %+v", text, got, err, want)
		}
	}
}

func TestDnf5Scriptlet(t *testing.T) {
	const said = `[2/3] Installing lab-failing-0:1.0-1.no 100% |   2.3 KiB/s | 288.0   B |  00m00s
>>> Running %post scriptlet: lab-failing-0:1.0-1.noarch
>>> Non-critical error in %post scriptlet: lab-failing-0:1.0-1.noarch
>>> Scriptlet output:
>>> it cannot go on
>>> [RPM] %post(lab-failing-1.0-1.noarch) scriptlet failed, exit status 7
[3/3] Installing lab-anchor-0:1.0-1.noa 100% |   2.3 KiB/s | 288.0   B |  00m00s
`
	err := dnf5Scriptlet(said)
	if err == nil || fault.KindOf(err) != fault.Scriptlet || !strings.Contains(err.Error(), "package lab-failing: %post scriptlet failed") || !strings.Contains(err.Error(), "it cannot go on") {
		t.Errorf("%v", err)
	}
	if err := dnf5Scriptlet("[3/3] Installing lab-anchor-0:1.0-1.noa 100%\n>>> Running %post scriptlet: x-0:1-1.noarch\n"); err != nil {
		t.Errorf("a scriptlet that works: %v", err)
	}
}

func TestAptSaid(t *testing.T) {
	err := aptFailure("read", &outcome{tail: "Reading package lists...E: Failed to fetch http://x/Packages  404\n"})
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "read: E: Failed to fetch") {
		t.Errorf("%v", err)
	}
}
