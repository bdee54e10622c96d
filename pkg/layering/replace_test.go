package layering_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// version is a package with a version, as the package manager takes it.
func (w *world) version(name, version string) string {
	return name + map[string]string{"apt": "=", "dnf": "-"}[w.engine] + version
}

// file is a package of the lab: in the repository, or in dir.
func (w *world) file(dir, name, version string) string {
	if w.engine == "apt" {
		return filepath.Join(w.made, or(dir, "deb"), name+"_"+version+"_all.deb")
	}
	_, version, _ = strings.Cut(":"+version, ":")
	return filepath.Join(w.made, or(dir, "rpm"), name+"-"+version+"-1.noarch.rpm")
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// rebase makes the base a later build of its image, with packages installed or
// removed ("!NAME") by its package manager.
func (w *world) rebase(t *testing.T, change ...string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	database := filepath.Join(root, "usr/lib/sysimage")
	for _, argv := range [][]string{
		// Package managers rename what they write, but for the database.
		{"cp", "-al", w.base.Root, root},
		{"rm", "-r", database},
		{"cp", "-a", filepath.Join(w.base.Root, "usr/lib/sysimage"), database},
	} {
		if _, err := lab.Command(t.Context(), argv[0], argv[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range change {
		argv := []string{"rpm", "-U", "--nosignature", "--oldpackage", "/run/package"}
		if w.engine == "apt" {
			argv = []string{"dpkg", "--admindir=/usr/lib/sysimage/dpkg", "--log=/dev/null", "-i", "/run/package"}
		}
		box := []string{"--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--tmpfs", "/tmp", "--tmpfs", "/var", "--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin"}
		if name, gone := strings.CutPrefix(c, "!"); gone {
			argv = slices.Concat(argv[:1], []string{"-e", name})
			if w.engine == "apt" {
				argv = []string{"dpkg", "--admindir=/usr/lib/sysimage/dpkg", "--log=/dev/null", "--purge", name}
			}
		} else {
			box = append(box, "--ro-bind", c, "/run/package")
		}
		if _, err := lab.Command(t.Context(), "bwrap", slices.Concat(box, argv)...); err != nil {
			t.Fatal(err)
		}
	}
	w.base.Root = root
}

// replace asks for replacements and returns what became of each, "NAME FROM→TO".
func (w *world) replace(t *testing.T, list ...layering.Replacement) (*result, string) {
	t.Helper()
	r, err := w.add(t, layering.Request{Replace: list})
	if err != nil {
		t.Fatalf("%+v: %v", list, err)
	}
	plain := func(v string) string { return strings.TrimSuffix(strings.TrimPrefix(v, "0:"), "-1") }
	var out []string
	for _, p := range r.lock.Replaced {
		out = append(out, p.Name+" "+plain(p.From)+"→"+plain(p.To))
	}
	return r, strings.Join(out, ", ")
}

// TestReplace: a version of the repositories, a named one, a file; forward and
// back.
func TestReplace(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		r, got := w.replace(t, layering.Replacement{Name: "lab-tool"})
		if got != "lab-tool 1.0→2.0" || r.installed() != "lab-tool 2.0" || !r.lock.Install[0].Requested {
			t.Errorf("lab-tool from the repository: %s, locked %+v", got, r.lock.Install)
		}
		if text := content(r, "usr/bin/lab-tool"); !strings.Contains(text, "lab-tool 2.0") {
			t.Errorf("lab-tool in the layer: %q", text)
		}
		same, got := w.replace(t, layering.Replacement{Name: w.version("lab-tool", "2.0")})
		if got != "lab-tool 1.0→2.0" || same.DiffID != r.DiffID {
			t.Errorf("lab-tool by its version: %s, layer %s, want %s", got, same.DiffID, r.DiffID)
		}
		same, got = w.replace(t, layering.Replacement{File: w.file("", "lab-tool", "2.0")})
		if got != "lab-tool 1.0→2.0" || same.DiffID != r.DiffID || same.lock.Install[0].Repository != "" {
			t.Errorf("lab-tool from a file: %s, layer %s, want %s", got, same.DiffID, r.DiffID)
		}
		if _, got = w.replace(t, layering.Replacement{Name: "lab-base"}); got != "lab-base 1.0→" {
			t.Errorf("a package that no repository has: %s, want it to stay", got)
		}
		if _, got = w.replace(t, layering.Replacement{Name: "lab-anchor"}); got != "lab-anchor →" {
			t.Errorf("a package that the base does not have: %s, want it not to come", got)
		}
		// The later of two for one package.
		_, got = w.replace(t, layering.Replacement{Name: "lab-tool"}, layering.Replacement{File: w.file("", "lab-tool", "2.0")})
		if got != "lab-tool →, lab-tool 1.0→2.0" {
			t.Errorf("two for lab-tool: %s", got)
		}
	})
}

// TestReplaceOnAMovingBase: what was asked for on one base stays for as long as
// that does not take a newer version away.
func TestReplaceOnAMovingBase(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		was := map[string]string{"apt": "1.0", "dnf": "0:1.0-1"}[w.engine]
		older := layering.Replacement{File: w.file("base", "lab-tool", "1.0")}
		named := layering.Replacement{Name: w.version("lab-tilde", "1.0~rc1")}
		w.rebase(t, w.file("", "lab-tool", "2.0"), w.file("", "lab-tilde", "1.0"))
		r, got := w.replace(t, older, named)
		if got != "lab-tool 2.0→1.0, lab-tilde 1.0→1.0~rc1" {
			t.Errorf("back to older versions: %s", got)
		}
		if text := content(r, "usr/bin/lab-tool"); !strings.Contains(text, "lab-tool 1.0") {
			t.Errorf("lab-tool in the layer: %q", text)
		}
		older.Against, named.Against = r.lock.Replaced[0].From, r.lock.Replaced[1].From
		again, got := w.replace(t, older, named)
		if got != "lab-tool 2.0→1.0, lab-tilde 1.0→1.0~rc1" || again.DiffID != r.DiffID {
			t.Errorf("once more on the same base: %s, layer %s, want %s", got, again.DiffID, r.DiffID)
		}
		older.Against, named.Against = was, strings.Replace(was, "1.0", "0.9", 1)
		r, got = w.replace(t, older, named)
		if got != "lab-tool 2.0→, lab-tilde 1.0→" || len(r.lock.Install) > 0 {
			t.Errorf("on a base that has newer versions: %s, locked %s", got, r.installed())
		}
		newer := layering.Replacement{File: w.file("", "lab-tool", "2.0"), Against: was}
		if r, got = w.replace(t, newer); got != "lab-tool 2.0→" || len(r.files) > 0 {
			t.Errorf("on a base that has the version: %s", got)
		}
		w.rebase(t, "!lab-tool")
		if r, got = w.replace(t, newer); got != "lab-tool →" || len(r.files) > 0 {
			t.Errorf("on a base that lacks the package: %s", got)
		}
		r, err := w.add(t, layering.Request{Remove: []string{"lab-tool", "lab-editor"}})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"lab-tool"}, r.lock.Inactive); diff != "" {
			t.Errorf("to remove what the base lacks: %s", diff)
		}
		r.has(t, "usr/bin/.wh.lab-editor")
	})
}

// TestReplaceRefused: what a replacement would break.
func TestReplaceRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rebase(t, w.file("", "lab-tool", "2.0"), w.file("", "lab-modern", "1.0"))
		_, err := w.add(t, layering.Request{Replace: []layering.Replacement{{File: w.file("base", "lab-tool", "1.0")}}})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "lab-modern") {
			t.Errorf("a version that is too old for another package of the base: %v, want a conflict that names it", err)
		}
	})
}
