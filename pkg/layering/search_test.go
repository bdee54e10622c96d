package layering_test

import (
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

func TestSearch(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := w.open(t)
		defer w.close(t, s)
		names := func(words ...string) (string, []layering.Found) {
			t.Helper()
			list, err := s.Search(t.Context(), words)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, f := range list {
				out = append(out, f.Name)
			}
			return strings.Join(out, " "), list
		}
		got, list := names("LAB-tool")
		if got != "lab-tool" {
			t.Fatalf("lab-tool finds %q", got)
		}
		old, now := map[string]string{"apt": "1.0", "dnf": "0:1.0-1"}[w.engine], map[string]string{"apt": "2.0", "dnf": "0:2.0-1"}[w.engine]
		if f := list[0]; f.Version != now || f.Installed != old || f.Summary != "the lab's package lab-tool" || f.Size == 0 || f.Arch == "" {
			t.Errorf("lab-tool is found as %+v", f)
		}
		// The name itself, then names that begin with it, then the others.
		if got, _ = names("lab-trigger"); got != "lab-trigger lab-triggers" {
			t.Errorf("lab-trigger finds %q", got)
		}
		if got, _ = names("package", "anchor"); got != "lab-anchor" {
			t.Errorf("two words find %q", got)
		}
		// Two versions are one package, and a word is no pattern.
		if got, _ = names("tilde"); got != "lab-tilde" {
			t.Errorf("tilde finds %q", got)
		}
		for _, word := range []string{"lab.anchor", "lab-an.*", "^lab", "--help", "[", "$(id)"} {
			if got, _ = names(word); got != "" {
				t.Errorf("%s finds %q, want nothing", word, got)
			}
		}
		for _, word := range []string{"", " ", "a\nb"} {
			if _, err := s.Search(t.Context(), []string{word}); fault.KindOf(err) != fault.Usage {
				t.Errorf("search for %q: %v", word, err)
			}
		}
		w.repo.Close()
		if _, err := s.Search(t.Context(), []string{"lab"}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("a repository that is down: %v, want unavailable", err)
		}
	})
}
