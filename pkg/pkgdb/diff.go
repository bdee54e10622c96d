package pkgdb

import (
	"cmp"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// The words of a Change.
const (
	Added      = "added"
	Removed    = "removed"
	Upgraded   = "upgraded"
	Downgraded = "downgraded"
)

// Change is a package in which two databases differ. From is the version in the
// old one, "" for one that was added; To that in the new, "" for one that was
// removed.
type Change struct {
	Name, Arch, Change, From, To string
}

// Diff returns in what b differs from a, ordered by name. Packages of one name
// and architecture, or else of one name, are versions of one package; where
// several are installed side by side (kernels), those that both have are no
// change.
//
// The error is a Conflict where the databases are of two package managers.
func Diff(a, b *Database) ([]Change, error) {
	if a.Kind != b.Kind {
		return nil, fault.New(fault.Conflict, "compare the files instead", "one has packages of %s, the other of %s", a.Kind, b.Kind)
	}
	changes := []Change{}
	gone, come := without(a.Packages, b.Packages), without(b.Packages, a.Packages)
	for _, key := range []func(Package) string{
		func(p Package) string { return p.Name + "\x00" + p.Arch },
		func(p Package) string { return p.Name },
	} {
		olds, news := group(gone, key), group(come, key)
		paired := make(map[string]bool)
		for k, old := range olds {
			if len(old) != 1 || len(news[k]) != 1 {
				continue
			}
			p, q := old[0], news[k][0]
			word := Upgraded
			switch CompareVersions(a.Kind, p.Version, q.Version) {
			case 0: // the same for another architecture
				continue
			case 1:
				word = Downgraded
			}
			changes = append(changes, Change{p.Name, q.Arch, word, p.Version, q.Version})
			paired[k] = true
		}
		isPaired := func(p Package) bool { return paired[key(p)] }
		gone, come = slices.DeleteFunc(gone, isPaired), slices.DeleteFunc(come, isPaired)
	}
	for _, p := range gone {
		changes = append(changes, Change{p.Name, p.Arch, Removed, p.Version, ""})
	}
	for _, p := range come {
		changes = append(changes, Change{p.Name, p.Arch, Added, "", p.Version})
	}
	slices.SortFunc(changes, func(x, y Change) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.Arch, y.Arch), strings.Compare(x.From+"\x00"+x.To, y.From+"\x00"+y.To))
	})
	return changes, nil
}

// without are the packages of a that b has not.
func without(a, b []Package) []Package {
	have := make(map[Package]bool, len(b))
	for _, p := range b {
		have[Package{Name: p.Name, Version: p.Version, Arch: p.Arch}] = true
	}
	var out []Package
	for _, p := range a {
		if p.State = ""; !have[p] {
			out = append(out, p)
		}
	}
	return out
}

func group(list []Package, key func(Package) string) map[string][]Package {
	out := make(map[string][]Package)
	for _, p := range list {
		out[key(p)] = append(out[key(p)], p)
	}
	return out
}
