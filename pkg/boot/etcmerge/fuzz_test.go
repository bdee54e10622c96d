package etcmerge

import (
	"strings"
	"testing"
)

// FuzzRules: what is accepted names an action for every rule, and matches in
// bounded time.
func FuzzRules(f *testing.F) {
	f.Add("[[path]]\nmatch = [\"a/**/b*\", \"/etc/x\"]\npolicy = \"fail\"\n", "a/x/y/b1")
	f.Add("[[path]]\nmatch = [\"[a-\"]\npolicy = \"merge\"\n", "a")
	f.Add("path = [{match=[\"**/**\"], policy=\"keep-local\"}]", "a/a/a/a/a/a/a/a/a/a")
	f.Add("[path]\nmatch = 1\n\xff", "")
	f.Fuzz(func(t *testing.T, text, path string) {
		if strings.Count(path, "/") > maxDepth {
			return // deeper than any path that is looked up
		}
		rules, err := parseRules(text)
		if err != nil {
			return
		}
		for _, r := range rules {
			if r.Policy == nil || len(r.Match) == 0 || r.Policy.String() == "" {
				t.Errorf("accepted a rule without policy or match: %+v", r)
			}
		}
		if action, ruled := (Policy{rules}).For(path); !ruled && action != MergeLines {
			t.Errorf("%q: no rule, and the action %v", path, action)
		}
	})
}
