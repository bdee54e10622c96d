package layering

import (
	"context"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

// Replacement asks for another version of a package that the base has.
type Replacement struct {
	// Name is that of the base's package for the newest version of the
	// repositories, or with a version as for Request.Install. "" for a file.
	Name string `json:",omitempty"`
	File string `json:",omitempty"` // path of a local package file
	// Against is the base's version when this was first asked for. On a base
	// with another version, newer than the replacement, the base's stays. "":
	// what is asked for takes the place of any version.
	Against string `json:",omitempty"`
}

// Replaced is what became of a Replacement.
type Replaced struct {
	Name string `json:"name"`           // of the package
	From string `json:"from,omitempty"` // the base's version; "" where it has none
	To   string `json:"to,omitempty"`   // "" where the base's stays
}

// replacing are a request's replacements while they are resolved.
type replacing struct {
	asked []Replacement
	found []Replaced // in the order of asked
	local []*localFile
}

// localFile is a package file in the session.
type localFile struct {
	Package
	path string // in the box
}

// takeReplacements finds the packages of the base that are to be replaced. Of
// two for the same package, the later counts.
func (s *Session) takeReplacements(ctx context.Context, b *box, req *Request, r *resolution) (*replacing, error) {
	w := &replacing{asked: req.Replace, found: make([]Replaced, len(req.Replace)), local: make([]*localFile, len(req.Replace))}
	last := map[string]int{}
	for i, ask := range req.Replace {
		if ask.File != "" {
			f, err := s.takeFile(ctx, b, ask.File)
			if err != nil {
				return nil, err
			}
			w.local[i], w.found[i].Name = f, f.Name
		} else {
			w.found[i].Name = s.engine.packageOf(ask.Name, r.base)
		}
		name := w.found[i].Name
		if slices.Contains(req.Remove, name) {
			return nil, fault.New(fault.Conflict, "kedge pkg override reset takes one of them back", "%s is to be replaced and to be removed", name)
		}
		if old, ok := last[name]; ok {
			w.found[old].From = ""
		}
		if p := r.ofBase(name); p != nil {
			w.found[i].From, last[name] = p.Version, i
		}
	}
	for i, f := range w.found {
		if f.From == "" {
			continue
		}
		if l := w.local[i]; l != nil {
			if s.replaces(w.asked[i], f.From, l.Version) {
				r.files, r.paths, r.replacing = append(r.files, l.Package), append(r.paths, l.path), true
			}
			continue
		}
		r.replacing = true
		if w.asked[i].Name == f.Name {
			r.upgrade = append(r.upgrade, f.Name)
		} else {
			r.exact = append(r.exact, w.asked[i].Name)
		}
	}
	return w, nil
}

// replaces reports whether a version takes the place of the base's.
func (s *Session) replaces(ask Replacement, base, version string) bool {
	c := pkgdb.CompareVersions(databaseKind[s.engine.name()], version, base)
	return c > 0 || c < 0 && (ask.Against == "" || ask.Against == base)
}

var databaseKind = map[string]pkgdb.Kind{"apt": pkgdb.Dpkg, "dnf": pkgdb.RPM}

// took notes what a lock has of the replacements. It reports whether the lock is
// good; where the base has got a newer version than one that was named, that is
// taken out of r, and the package manager is to choose again.
func (w *replacing) took(s *Session, r *resolution, lock *Lock) bool {
	good := true
	for i := range w.found {
		f := &w.found[i]
		f.To = ""
		at := slices.IndexFunc(lock.Install, func(p Package) bool { return p.Name == f.Name })
		if f.From == "" || at < 0 {
			continue
		}
		if s.replaces(w.asked[i], f.From, lock.Install[at].Version) {
			f.To = lock.Install[at].Version
			continue
		}
		mine := func(n string) bool { return n == w.asked[i].Name }
		n := len(r.exact) + len(r.upgrade)
		r.exact, r.upgrade = slices.DeleteFunc(r.exact, mine), slices.DeleteFunc(r.upgrade, mine)
		good = good && len(r.exact)+len(r.upgrade) == n
	}
	return good
}

// longestPrefix returns the longest name of the base that spec begins with, and
// that what follows it in spec belongs to.
func longestPrefix(spec string, base []Package, follows func(p Package, rest string) bool) string {
	name := ""
	for _, p := range base {
		if rest, ok := strings.CutPrefix(spec, p.Name); ok && len(p.Name) > len(name) && (rest == "" || follows(p, rest)) {
			name = p.Name
		}
	}
	if name == "" {
		return spec
	}
	return name
}
