package etcmerge_test

import (
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestPolicy(t *testing.T) {
	lab.NeedRoot(t)
	image := files{
		etcmerge.ImageRules + "/10-a.toml":  rule("fail", "a") + rule("keep-local", "b/**/conf"),
		etcmerge.ImageRules + "/20-b.toml":  rule("take-image", "c"),
		etcmerge.ImageRules + "/30-c.toml":  rule("take-image", "d"),
		etcmerge.ImageRules + "/README":     "no rule",
		etcmerge.ImageRules + "/40-no.toml": "->/dev/null",
	}
	machine := files{
		etcmerge.MachineRules + "/00-mine.toml": rule("merge", "a"), // comes after the image's all the same
		etcmerge.MachineRules + "/20-b.toml":    "->/dev/null",
		etcmerge.MachineRules + "/30-c.toml":    rule("fail", "e"),
	}
	p, err := etcmerge.ReadPolicy(tree(t, image.make(t)), tree(t, machine.make(t)))
	must(t, err)
	for path, want := range map[string]string{
		"a": "merge", "a/below": "merge", "b/conf": "keep-local", "b/x/y/conf": "keep-local", "b/x/y/conf/z": "keep-local", "b/x": "",
		"c": "", "d": "", "e": "fail", "ab": "",
	} {
		action, ruled := p.For(path)
		got := ""
		if ruled {
			got = action.String()
		}
		if got != want {
			t.Errorf("the rule for %s = %q, want %q", path, got, want)
		}
	}
}

func TestPolicyRefused(t *testing.T) {
	lab.NeedRoot(t)
	for name, c := range map[string]struct{ text, want string }{
		"syntax":          {"[[path]]\nmatch = [\n", "line 2"},
		"unknown key":     {rule("merge", "a") + "polcy = 1\n", `line 4: unknown key "path.polcy"`},
		"unknown table":   {"[rules]\n", `line 1: unknown key "rules"`},
		"unknown policy":  {"[[path]]\nmatch = [\"a\"]\n\npolicy = \"maybe\"\n", `line 4: "maybe" is no policy`},
		"no policy":       {rule("merge", "a") + "[[path]]\nmatch = [\"a\"]\n", "line 4: rule 2 has no policy"},
		"no match":        {"\n[[path]]\npolicy = \"merge\"\n", "line 2: rule 1 has no match"},
		"pattern":         {"[[path]]\npolicy = \"merge\"\nmatch = [\"[a\"]\n", `line 3: "[a" is no pattern`},
		"out of /etc":     {rule("merge", "../usr"), `line 2: "../usr" is no pattern`},
		"costly pattern":  {rule("merge", "**/**/**/x"), `line 2: "**/**/**/x" has more than`},
		"type":            {"path = 1\n", "line 1"},
		"large":           {strings.Repeat("#", 70_000), "larger than 65536 bytes"},
		"a link":          {"->../../../../shadow", "a symlink"},
		"a directory not": {"|", "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := etcmerge.ReadPolicy(tree(t, files{etcmerge.ImageRules + "/x.toml": c.text}.make(t)), nil)
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), "/usr/lib/kedge/etc.d/x.toml: "+c.want) {
				t.Errorf("of the image: %v, want %q", err, c.want)
			}
			_, err = etcmerge.ReadPolicy(tree(t, files{}.make(t)), tree(t, files{etcmerge.MachineRules + "/x.toml": c.text}.make(t)))
			if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "/etc/kedge/etc.d/x.toml: "+c.want) || fault.HintOf(err) == "" {
				t.Errorf("of the machine: %v, want %q", err, c.want)
			}
		})
	}
}
