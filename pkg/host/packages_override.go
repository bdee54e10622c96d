package host

import (
	"cmp"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// override changes what is to become of packages of the base.
func (o PackagesOptions) override(now *packageIntent) error {
	if o.ResetAll {
		now.remove, now.replace = nil, nil
	}
	for _, name := range o.Reset {
		if !now.reset(name) && !o.Idempotent {
			return fault.New(fault.NotFound, "kedge pkg list shows what is overridden; --idempotent ignores the rest", "the package %s is not overridden on this host", name)
		}
	}
	for _, name := range o.OverrideRemove {
		if slices.Contains(now.remove, name) {
			if !o.Idempotent {
				return fault.New(fault.Conflict, "--idempotent makes this no error", "the package %s was removed already", name)
			}
			continue
		}
		now.reset(name)
		now.remove = append(now.remove, name)
	}
	for _, name := range o.Replace {
		r := replacement{localPackage: localPackage{name: name}}
		if isPackageFile(name) {
			var err error
			if r.localPackage, err = newLocalPackage(name); err != nil {
				return err
			}
		} else {
			now.remove = slices.DeleteFunc(now.remove, func(s string) bool { return s == name })
		}
		at := slices.IndexFunc(now.replace, func(have replacement) bool { return have.same(r) })
		switch {
		case at < 0:
			now.replace = append(now.replace, r)
		case !o.Idempotent:
			return fault.New(fault.Conflict, "--idempotent makes this no error; kedge pkg refresh looks for newer versions", "the package %s was replaced already", now.replace[at].name)
		}
	}
	return nil
}

// reset takes back what was asked for of a package of the base.
func (i *packageIntent) reset(name string) bool {
	n := len(i.remove) + len(i.replace)
	i.remove = slices.DeleteFunc(i.remove, func(s string) bool { return s == name })
	i.replace = slices.DeleteFunc(i.replace, func(r replacement) bool { return r.is(name) })
	return len(i.remove)+len(i.replace) < n
}

// is reports whether a user means the package: as it was asked for, or by its
// name alone.
func (r replacement) is(name string) bool {
	return r.localPackage.is(name) || strings.HasPrefix(r.name, name+"=") || strings.HasPrefix(r.name, name+":")
}

// same reports whether two ask for the same.
func (r replacement) same(o replacement) bool {
	return r.sum == o.sum && (r.sum != "" || r.name == o.name)
}

func byKind(a, b replacement) int { return cmp.Compare(min(1, len(a.sum)), min(1, len(b.sum))) }

// asked are the packages of the base that an operation was told to change: where
// nothing can be changed, that is an error.
type asked struct {
	remove, replace []string
}

func (o PackagesOptions) asked() asked {
	if o.Idempotent {
		return asked{}
	}
	return asked{remove: o.OverrideRemove, replace: o.Replace}
}

func (a asked) check(req layering.Request, lock *layering.Lock) error {
	for _, name := range a.remove {
		if slices.Contains(req.Remove, name) && slices.Contains(lock.Inactive, name) {
			return fault.New(fault.NotFound, "kedge pkg list --all shows what it has; kedge pkg remove takes off what was added", "the base image has no package %s", name)
		}
	}
	for i, r := range lock.Replaced {
		ask := req.Replace[i]
		if ask.Against != "" || r.To != "" || len(a.replace) == 0 || slices.ContainsFunc(lock.Replaced[i+1:], func(o layering.Replaced) bool { return o.Name == r.Name }) {
			continue
		}
		if r.From == "" {
			return fault.New(fault.NotFound, "kedge pkg add puts packages on the image", "the base image has no package %s to replace", r.Name)
		}
		return fault.New(fault.Conflict, "give another version, or a package file", "the base image has %s %s, and there is no other version to replace it with", r.Name, r.From)
	}
	return nil
}

// settle records what became of replacements: what they replaced, which of them
// rest, and of two for one package the later.
func (r *packageRecord) settle(set []wanted, lock *layering.Lock) {
	n := 0
	last := map[string]*replacement{}
	drop := map[*replacement]bool{}
	for _, w := range set {
		if w.replace == nil {
			continue
		}
		done := lock.Replaced[n]
		n++
		at := &r.replace[slices.IndexFunc(r.replace, func(o replacement) bool { return o.same(*w.replace) })]
		if old := last[done.Name]; old != nil {
			drop[old] = true
			r.inactive = slices.DeleteFunc(r.inactive, func(s string) bool { return s == old.name })
		}
		last[done.Name] = at
		if at.against == "" {
			at.against = done.From
		}
		if done.To == "" {
			r.inactive = append(r.inactive, at.name)
		}
	}
	var kept []replacement
	for i := range r.replace {
		if !drop[&r.replace[i]] {
			kept = append(kept, r.replace[i])
		}
	}
	r.replace = kept
	slices.SortStableFunc(r.replace, byKind)
}

// sameReplacements reports whether an image was made with the replacements that
// are wanted; files are told apart by its lock.
func sameReplacements(made []layering.Replacement, wants []replacement) bool {
	return len(made) == len(wants) && !slices.ContainsFunc(wants, func(w replacement) bool {
		ask := layering.Replacement{Name: w.name, Against: w.against}
		if w.sum != "" {
			ask.Name = ""
		}
		return !slices.Contains(made, ask)
	})
}

// inactiveOf lists what an image was asked for and does not need.
func inactiveOf(s *layering.Stored) []string {
	names := slices.Clone(s.Lock.Inactive)
	for i, r := range s.Lock.Replaced {
		if r.To == "" {
			names = append(names, s.Request.Replace[i].Name)
		}
	}
	return names
}
