package layering

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

// Found is a package of the repositories, in its newest version.
type Found struct {
	Package
	Summary   string `json:"summary"` // one line
	Installed string `json:"-"`       // the version that the base has; "" for none
}

// Search lists the packages of the repositories whose name or summary has all of
// the words, whatever their case: names that are a word first, then names that
// begin with one, then names that have one. Nothing found is no error.
//
// Errors: Usage for words that are none, Unavailable and Untrusted as Resolve.
func (s *Session) Search(ctx context.Context, words []string) (list []Found, err error) {
	for _, w := range words {
		if len(w) > 256 || strings.TrimSpace(w) == "" || strings.ContainsFunc(w, func(r rune) bool { return r < ' ' }) {
			return nil, fault.New(fault.Usage, "give a part of a package's name or summary", "%.80q is nothing to search for", w)
		}
	}
	err = s.do(func() error {
		b, done, err := s.netBox()
		if err != nil {
			return err
		}
		defer done()
		have, err := s.engine.query(ctx, b)
		if err != nil {
			return err
		}
		if list, err = s.engine.search(ctx, b, words); err != nil {
			return s.orFull(err)
		}
		for i := range list {
			if at := slices.IndexFunc(have, func(p Package) bool { return p.Name == list[i].Name }); at >= 0 {
				list[i].Installed = have[at].Version
			}
		}
		return nil
	})
	slices.SortStableFunc(list, func(a, b Found) int {
		return cmp.Or(cmp.Compare(rank(a.Name, words), rank(b.Name, words)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch))
	})
	return list, err
}

// matches reports whether a package has all of the words.
func matches(name, summary string, words []string) bool {
	text := strings.ToLower(name + "\n" + summary)
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, strings.ToLower(w)) })
}

// rank is how well a name answers to the words: lower is better.
func rank(name string, words []string) int {
	best := 3
	name = strings.ToLower(name)
	for _, w := range words {
		switch w = strings.ToLower(w); {
		case name == w:
			return 0
		case strings.HasPrefix(name, w):
			best = min(best, 1)
		case strings.Contains(name, w):
			best = min(best, 2)
		}
	}
	return best
}

// newest keeps the newest version of each name and architecture.
func newest(kind pkgdb.Kind, list []Found) []Found {
	at := make(map[string]int)
	var out []Found
	for _, f := range list {
		key := f.Name + "\x00" + f.Arch
		i, ok := at[key]
		if !ok {
			at[key] = len(out)
			out = append(out, f)
		} else if pkgdb.CompareVersions(kind, f.Version, out[i].Version) > 0 {
			out[i] = f
		}
	}
	return out
}

// search implements engine. apt-cache finds names by a regular expression, and
// says more of those that are asked for.
func (e *apt) search(ctx context.Context, b *box, words []string) ([]Found, error) {
	if err := e.update(ctx, b); err != nil {
		return nil, err
	}
	var quoted []string
	for _, w := range words {
		quoted = append(quoted, regexp.QuoteMeta(w))
	}
	out, err := b.run(ctx, command{argv: aptCache(append([]string{"search", "--"}, quoted...)...)})
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(out.stdout) {
		name, summary, _ := strings.Cut(strings.TrimSpace(line), " - ")
		if matches(name, summary, words) {
			names = append(names, name)
		}
	}
	var list []Found
	for some := range slices.Chunk(names, 1000) { // a command line's length
		if out, err = b.run(ctx, command{argv: aptCache(append([]string{"show", "--no-all-versions"}, some...)...)}); err != nil {
			return nil, err
		}
		for stanza := range strings.SplitSeq(out.stdout, "\n\n") {
			f := fields(stanza)
			if f["Package"] == "" || f["Size"] == "" { // of the database, in no repository
				continue
			}
			p := Package{Name: f["Package"], Version: f["Version"], Arch: f["Architecture"]}
			_, _ = fmt.Sscan(f["Size"], &p.Size) // 0: it does not say
			list = append(list, Found{Package: p, Summary: cmp.Or(f["Description"], f["Description-en"])})
		}
	}
	return newest(pkgdb.Dpkg, list), nil
}

// search implements engine.
func (e *dnf) search(ctx context.Context, b *box, words []string) ([]Found, error) {
	a, _, err := e.call(ctx, b, "search", map[string]any{"cache": boxCache, "cacheonly": b.s.opt.CacheOnly, "refresh": true, "words": words})
	if err != nil {
		return nil, err
	}
	return newest(pkgdb.RPM, a.Found), nil
}

// search implements engine.
func (e *dnf5) search(ctx context.Context, b *box, words []string) ([]Found, error) {
	const format = "--qf=%{name}\t%{epoch}:%{version}-%{release}\t%{arch}\t%{repoid}\t%{downloadsize}\t%{summary}\n"
	out, err := b.run(ctx, b.dnf5("-q", "repoquery", "--available", "--latest-limit=1", format))
	if err != nil {
		return nil, err
	}
	if out.code != 0 {
		return nil, e.failure(ctx, b, out)
	}
	var list []Found
	for line := range strings.Lines(out.stdout) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 6)
		if len(f) != 6 || !matches(f[0], f[5], words) {
			continue
		}
		p := Package{Name: f[0], Version: f[1], Arch: f[2], Repository: f[3]}
		_, _ = fmt.Sscan(f[4], &p.Size) // 0: it does not say
		list = append(list, Found{Package: p, Summary: f[5]})
	}
	return newest(pkgdb.RPM, list), nil
}
