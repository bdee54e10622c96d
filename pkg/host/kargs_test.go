package host

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

func doListKargs(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.ListKargs(s.ctx) })
}

func wantKargs(want string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		var got []string
		for _, k := range s.last.([]v1.Karg) {
			got = append(got, k.Owner[:1]+":"+k.Arg)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("kernel arguments: %s, want %s", strings.Join(got, " "), want)
		}
	}
}

// kargsLife is a life in which everything is about kernel arguments.
func kargsLife() []step {
	from := func(list string) smallimage.Entry {
		return smallimage.File("usr/lib/bootc/kargs.d/10.toml", 0, "kargs = ["+list+"]\n")
	}
	other := smallimage.File("usr/lib/kedge/kargs.d/20.toml", 0, "kargs = [\"elsewhere\"]\nmatch-architectures = [\"s390x\"]\n")
	return []step{
		act("images", func(s *stage) {
			s.image("a", 1, from(`"quiet", "rw", "image=1"`), other)
			s.image("b", 2, from(`"quiet", "image=2"`), other)
		}),
		{name: "install", do: doInstall("a", "root=LABEL=root", "rw", `rd.x="a b"`, "rd.luks.uuid=1", "rd.luks.uuid=2")},
		{name: "owners", do: doListKargs, check: wantKargs(`m:root=LABEL=root i:rw m:rd.x="a b" m:rd.luks.uuid=1 m:rd.luks.uuid=2 i:quiet m:rw i:image=1`)},
		{name: "append", do: doKargs(KargsOptions{Append: []string{"mine=1", `mine="c d"`, "quiet"}})},
		{name: "append what is there", do: doKargs(KargsOptions{AppendMissing: []string{"mine=1", "quiet"}}), check: func(t *testing.T, s *stage) {
			if r := s.last.(*v1.Result); r.Changed {
				t.Error("--append-if-missing of what is there changed something")
			}
		}},
		{name: "append what is missing", do: doKargs(KargsOptions{AppendMissing: []string{"mine=1", "mine=3", "mine=3"}})},
		{name: "delete what is not there", do: doKargs(KargsOptions{DeletePresent: []string{"absent", "mine=9"}}), check: func(t *testing.T, s *stage) {
			if r := s.last.(*v1.Result); r.Changed {
				t.Error("--delete-if-present of what is not there changed something")
			}
		}},
		{name: "delete of many values", do: doKargs(KargsOptions{DeletePresent: []string{"mine"}}), kind: fault.Conflict},
		{name: "an open quote", do: doKargs(KargsOptions{AppendMissing: []string{`a="b c" d`}}), kind: fault.Usage},
		{name: "a quote that is not closed", do: doKargs(KargsOptions{Append: []string{`a="b`}}), kind: fault.Usage},
		{name: "a control character", do: doKargs(KargsOptions{Append: []string{"a=b\vc"}}), kind: fault.Usage},
		{name: "a line break", do: doKargs(KargsOptions{Append: []string{"a=b\nc"}}), kind: fault.Usage},
		{name: "nothing at all", do: doKargs(KargsOptions{Append: []string{""}}), kind: fault.Usage},
		{name: "what leads to the root", do: doKargs(KargsOptions{DeletePresent: []string{"ostree"}}), kind: fault.Usage},
		{name: "delete and replace", do: doKargs(KargsOptions{DeletePresent: []string{`mine="c d"`}, Replace: []string{"rd.luks.uuid=2=3"}})},
		{name: "owners after the edits", do: doListKargs, check: wantKargs(`m:root=LABEL=root i:rw m:rd.x="a b" m:rd.luks.uuid=1 u:rd.luks.uuid=3 u:quiet m:rw i:image=1 u:mine=1 i:quiet u:mine=3`)},
		{name: "switch", do: doSwitch(SwitchOptions{Image: "b"})},
		{name: "owners after the switch", do: doListKargs, check: wantKargs(`m:root=LABEL=root m:rd.x="a b" m:rd.luks.uuid=1 u:rd.luks.uuid=3 u:quiet m:rw u:mine=1 i:quiet u:mine=3 i:image=2`)},
		{name: "rollback", do: doRollback},
		{name: "owners after the rollback", do: doListKargs, check: wantKargs(`m:root=LABEL=root i:rw m:rd.x="a b" m:rd.luks.uuid=1 u:rd.luks.uuid=3 u:quiet m:rw i:image=1 u:mine=1 i:quiet u:mine=3`)},
	}
}

func TestUserKargs(t *testing.T) {
	for _, c := range []struct{ user, before, after, want string }{
		{"", "a b", "a b c", "c"},
		{"c", "a b c", "a b", ""},
		{"c", "a b c", "a b c c", "c c"},
		{"", "a", "a a", "a"},
		{"a", "a a", "a", "a"},
		{"x", "a x", "x=2 a", "x=2"},
	} {
		got := userKargs(karg.Parse(c.user), karg.Parse(c.before), karg.Parse(c.after))
		if !slices.Equal(got, karg.Parse(c.want)) {
			t.Errorf("of %q the user's were %q; of %q they are %q, want %q", c.before, c.user, c.after, got, c.want)
		}
	}
}
