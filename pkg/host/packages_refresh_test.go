package host

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// without serves the lab's apt repository as if some of its packages were not in
// it: stanzas of its index that match.
func (l *packageLab) without(t *testing.T, hidden *atomic.Pointer[regexp.Regexp]) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(l.dir, "deb/Packages"))
	must(t, err)
	index := func() string {
		var keep []string
		for stanza := range strings.SplitSeq(string(raw), "\n\n") {
			if re := hidden.Load(); re == nil || !re.MatchString(stanza) {
				keep = append(keep, stanza)
			}
		}
		return strings.Join(keep, "\n\n")
	}
	files := http.FileServer(http.Dir(filepath.Join(l.dir, "deb")))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch filepath.Base(r.URL.Path) {
		case "Packages":
			fmt.Fprint(w, index())
		case "Release":
			fmt.Fprintf(w, "Suite: lab\nDate: Wed, 01 Jan 2025 00:00:00 UTC\nSHA256:\n %x %d Packages\n", sha256.Sum256([]byte(index())), len(index()))
		default:
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	l.url = srv.URL
}

// refreshLife: the repositories get newer versions of what was put on an image,
// and lose it.
func refreshLife(t *testing.T) []step {
	l := newPackageLab(t, "apt")
	var hidden atomic.Pointer[regexp.Regexp]
	l.without(t, &hidden)
	hide := func(pattern string) step {
		return act("repository", func(*stage) { hidden.Store(regexp.MustCompile(pattern)) })
	}
	unchanged := func(t *testing.T, s *stage) {
		t.Helper()
		if s.last.(*v1.Result).Changed {
			t.Errorf("refresh without anything newer = %+v", s.last)
		}
	}
	has := func(version string) func(*testing.T, *stage) {
		return func(t *testing.T, s *stage) {
			t.Helper()
			list, err := doListPackages(s)
			must(t, err)
			layered := list.(*v1.PackageList).Layered
			if !slices.ContainsFunc(layered, func(p v1.Package) bool { return p.Name == "lab-tilde" && p.Version == version }) {
				t.Errorf("layered = %+v, want lab-tilde %s", layered, version)
			}
		}
	}
	return []step{
		act("image", func(s *stage) { s.refs["a"], _ = s.pushImage("a", l.image(s.t, "apt", 1)) }),
		{name: "install", do: doInstall("a", "rw")},
		act("configure", func(s *stage) { l.configure(s, 0) }),
		{name: "refresh of nothing", do: doPackages(PackagesOptions{Refresh: true}), check: unchanged},
		hide(`Package: lab-tilde\nVersion: 1.0\n`),
		{name: "add", do: doPackages(PackagesOptions{Add: []string{"lab-tilde", "lab-anchor"}}), check: has("1.0~rc1")},
		{name: "refresh without anything newer", do: doPackages(PackagesOptions{Refresh: true}), check: unchanged},
		hide(`^$`),
		{name: "refresh, dry run", do: doPackages(PackagesOptions{Refresh: true, DryRun: true}), check: func(t *testing.T, s *stage) {
			if c := s.last.(*v1.Result).Packages.Changed; len(c) != 1 || c[0].Version != "1.0" {
				t.Errorf("dry run = %+v", c)
			}
			has("1.0~rc1")(t, s)
		}},
		{name: "refresh", do: doPackages(PackagesOptions{Refresh: true}), check: has("1.0")},
		{name: "rollback after the refresh", do: doRollback, check: has("1.0~rc1")},
		{name: "rollback again", do: doRollback},
		hide(`Package: lab-tilde\n`),
		{name: "refresh of what the repository lost", do: doPackages(PackagesOptions{Refresh: true}), kind: fault.NotFound, check: func(t *testing.T, s *stage) {
			has("1.0")(t, s)
			wantIntact(t, s)
			nothingLeft(t, s)
		}},
	}
}

func TestPackagesRefresh(t *testing.T) { conform(t, refreshLife) }
