package layering

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// engine is a package manager that an image brings. Its methods run it in boxes
// on the session's roots and turn what it says into the package's terms; they
// change nothing but what the method is for.
type engine interface {
	name() string
	// helpers puts into root what the manager needs while it runs and what
	// never becomes a part of the layer. root is a preparation above the base.
	helpers(root *os.Root) error
	// cacheDirs are the directories that the manager wants to find in boxCache.
	cacheDirs() []string
	// adapt makes the root's database lie in /usr where the image has it in
	// /var. What it changes becomes a part of the layer.
	adapt(root *os.Root) error
	// resolve has the manager choose for the request, with fresh metadata in
	// boxCache. The root is read-only.
	resolve(ctx context.Context, b *box, r *resolution) (*Lock, error)
	// search lists what the repositories have whose name or summary has the words,
	// with fresh metadata in boxCache.
	search(ctx context.Context, b *box, words []string) ([]Found, error)
	// inspect says what a local package file is; what is none is a fault.Usage.
	inspect(ctx context.Context, b *box, file string) (Package, error)
	// fetch brings the lock's packages from their repositories to boxPackages.
	fetch(ctx context.Context, b *box, l *Lock) error
	// transact installs and removes what the lock says, from boxPackages, and
	// returns the manager's output. A scriptlet that fails is a fault.Conflict
	// with the package, the scriptlet and its last lines.
	transact(ctx context.Context, b *box, l *Lock) (string, error)
	// query lists the packages of the database, ordered by name and architecture.
	query(ctx context.Context, b *box) ([]Package, error)
	// owner names the package that has a file, "" for none.
	owner(ctx context.Context, b *box, file string) (string, error)
	// transient reports whether a path of the layer (without a leading slash) is
	// the manager's own state, of no use in an image or different each time.
	transient(path string) bool
	// checkName says what is wrong with the name of a requested package.
	checkName(name string) error
	// packageOf returns the name of the base's package that a name with a version
	// or an architecture means; where there is none, the name as it is.
	packageOf(name string, base []Package) string
}

// resolution is a request as an engine sees it in its box.
type resolution struct {
	install []string
	files   []Package // local files: name, version, architecture, checksum; Repository is ""
	paths   []string  // of files, in the box
	remove  []string
	upgrade []string  // packages of the base, to the newest version of the repositories
	exact   []string  // packages of the base, with the version to have
	base    []Package // the database before
	// replacing: versions of the base may go back.
	replacing bool
}

// ofBase returns a package of the base; nil for none.
func (r *resolution) ofBase(name string) *Package {
	if i := slices.IndexFunc(r.base, func(p Package) bool { return p.Name == name }); i >= 0 {
		return &r.base[i]
	}
	return nil
}

func (r *resolution) inBase(name string) bool { return r.ofBase(name) != nil }

// named are the packages that are asked for by name.
func (r *resolution) named() []string { return slices.Concat(r.install, r.exact, r.upgrade) }

// detect finds the package manager of a root: its programs, and the database
// with the root's own packages. Debian's images may have dnf as a tool beside
// apt, and Fedora's dpkg; what such a tool would manage has no package in it.
func detect(root *os.Root) (engine, error) {
	rpmAt := slices.Concat(rpmDatabases, []string{rpmVar})
	managers := []manager{
		{[]string{"usr/bin/apt-get", "usr/bin/dpkg"}, []string{dpkgUsr + "/status", dpkgVar + "/status"}, &apt{}},
		{[]string{"usr/bin/dnf5", "usr/bin/rpm"}, rpmAt, &dnf5{}},
		// dnf 4's own name; /usr/bin/dnf may be dnf5.
		{[]string{"usr/bin/dnf-3", "usr/bin/rpm"}, rpmAt, &dnf{}},
	}
	// Of both, the one that the image calls dnf.
	if to, err := root.Readlink("usr/bin/dnf"); err == nil && path.Base(to) == "dnf-3" {
		managers[1], managers[2] = managers[2], managers[1]
	}
	for _, m := range managers {
		there := true
		for _, p := range m.programs {
			there = there && notEmpty(root, p)
		}
		if there && slices.ContainsFunc(m.databases, func(p string) bool { return notEmpty(root, p) }) {
			return m.engine, nil
		}
	}
	if notEmpty(root, "usr/bin/microdnf") {
		return nil, fault.New(fault.Conflict, "add dnf5 to the image (FROM this image, RUN microdnf install dnf5), or dnf where its distribution has no dnf5",
			"the only package manager of the image is microdnf, which kedge does not use")
	}
	return nil, fault.New(fault.Conflict, "add dnf5, dnf 4 or apt to the image, or install the packages in the image itself (FROM this image, RUN dnf install …)",
		"the image has no package manager that kedge knows (dnf5 or dnf 4 with rpm, or apt with dpkg)")
}

// manager is what tells that an image is managed by an engine.
type manager struct {
	programs  []string
	databases []string
	engine    engine
}

func notEmpty(root *os.Root, name string) bool {
	st, err := root.Stat(name)
	return err == nil && st.Size() > 0
}

// sortPackages orders packages by name and architecture.
func sortPackages(list []Package) {
	slices.SortFunc(list, func(a, b Package) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		if c := strings.Compare(a.Arch, b.Arch); c != 0 {
			return c
		}
		return strings.Compare(a.Version, b.Version)
	})
}

// expected is the database after the lock is applied to base.
func expected(base []Package, l *Lock) []Package {
	gone := make(map[string]bool)
	for _, p := range l.Remove {
		gone[p.Name+"\x00"+p.Arch] = true
	}
	for _, p := range l.Install {
		if p.Replaces != "" {
			gone[p.Name+"\x00"+p.Arch] = true
		}
	}
	var out []Package
	for _, p := range base {
		if !gone[p.Name+"\x00"+p.Arch] {
			out = append(out, Package{Name: p.Name, Version: p.Version, Arch: p.Arch})
		}
	}
	for _, p := range l.Install {
		out = append(out, Package{Name: p.Name, Version: p.Version, Arch: p.Arch})
	}
	sortPackages(out)
	return out
}

// checkDatabase compares a database with what base and lock come to.
func checkDatabase(base []Package, l *Lock, got []Package) error {
	want := expected(base, l)
	if slices.Equal(want, got) {
		return nil
	}
	var lines []string
	for _, p := range want {
		if !slices.Contains(got, p) {
			lines = append(lines, fmt.Sprintf("%s %s is missing", p.Name, p.Version))
		}
	}
	for _, p := range got {
		if !slices.Contains(want, p) {
			lines = append(lines, fmt.Sprintf("%s %s is there", p.Name, p.Version))
		}
	}
	const shown = 10
	if n := len(lines); n > shown {
		lines = append(lines[:shown], fmt.Sprintf("and %d more", n-shown))
	}
	return fault.New(fault.Conflict, "a scriptlet of one of the packages changed or destroyed the package database; leave that package out",
		"after the transaction the package database is not what was resolved: %s", strings.Join(lines, "; "))
}

// nearest returns up to three names that a user may have meant.
func nearest(name string, names []string) []string {
	type scored struct {
		name string
		d    int
	}
	var best []scored
	limit := max(1, len(name)/3)
	for _, n := range names {
		if abs(len(n)-len(name)) > limit {
			continue
		}
		if d := distance(name, n); d <= limit {
			best = append(best, scored{n, d})
		}
	}
	slices.SortFunc(best, func(a, b scored) int {
		if a.d != b.d {
			return a.d - b.d
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, s := range best[:min(3, len(best))] {
		out = append(out, s.name)
	}
	return out
}

func abs(n int) int { return max(n, -n) }

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// noSuchPackage is the error for a name that no repository knows.
func noSuchPackage(name string, known []string) error {
	hint := "see the spelling, and whether the repository that has it is enabled"
	if near := nearest(name, known); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fault.New(fault.NotFound, hint, "no repository has a package %s", name)
}

// goneMeanwhile is the error for a package that was chosen and is not there to be
// fetched.
func goneMeanwhile(name string) error {
	return fault.New(fault.Unavailable, "try again: the repository changed meanwhile", "no repository has %s any more", name)
}
