package retention

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// menu reads a boot menu, one word a deployment: what it is called, "/" its
// stateroot if it has another one, ":" its letters (Booted, Staged, Pinned, Good)
// and "-" the days since it was used.
func menu(text string) (list []Deployment, names []string) {
	for word := range strings.FieldsSeq(text) {
		word, days, _ := strings.Cut(word, "-")
		word, letters, _ := strings.Cut(word, ":")
		name, root, _ := strings.Cut(word, "/")
		n := 0
		_, _ = fmt.Sscan(days, &n) // none is 0
		list = append(list, Deployment{
			Stateroot: root, Kernel: name[:1], Used: now.AddDate(0, 0, -n),
			Booted: strings.Contains(letters, "B"), Staged: strings.Contains(letters, "S"),
			Pinned: strings.Contains(letters, "P"), Good: strings.Contains(letters, "G"),
		})
		names = append(names, name)
	}
	return list, names
}

func TestDecide(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		policy Policy
		menu   string
		gone   string
		needed string
	}{
		"nothing":                             {Policy{Keep: 2}, "", "", ""},
		"one":                                 {Policy{Keep: 2}, "a", "", "a"},
		"default and rollback":                {Policy{Keep: 2}, "c b a", "a", "c b"},
		"three":                               {Policy{Keep: 3}, "d c b a", "a", "d c"},
		"all of a few":                        {Policy{Keep: 5}, "c b a", "", "c b"},
		"staged does not count":               {Policy{Keep: 2}, "s:S b:B a", "", "s b a"},
		"pinned do not count":                 {Policy{Keep: 2}, "e d:P c b a", "b a", "e d"},
		"a pinned rollback target":            {Policy{Keep: 2}, "e c:P b", "", "e c"},
		"a queued rollback":                   {Policy{Keep: 2}, "a c:B b", "b", "a c"},
		"booted is far down":                  {Policy{Keep: 2}, "d c b a:B", "c b", "d a"},
		"other stateroots":                    {Policy{Keep: 2}, "c x/other b y/other a", "a", "c x b y"},
		"a booted other stateroot":            {Policy{Keep: 2}, "c b x/other:B y/other", "", "c b x y"},
		"age spares what is needed":           {Policy{Keep: 9, MaxAge: day}, "c-50 b-60 a-70", "a", "c b"},
		"age spares what is pinned":           {Policy{Keep: 9, MaxAge: 20 * day}, "c b a:P-90 z-10 y-30", "y", "c b a"},
		"what is too old makes room":          {Policy{Keep: 3, MaxAge: day}, "d c b-9 a", "b", "d c"},
		"used in the future":                  {Policy{Keep: 3, MaxAge: day}, "d c a--9", "", "d c"},
		"the last good one":                   {Policy{Keep: 2}, "d c b a:G z:G", "b z", "d c a"},
		"a good default makes others spare":   {Policy{Keep: 2}, "d:G c b a:G", "b a", "d c"},
		"a good rollback makes others spare":  {Policy{Keep: 2}, "d c:G a:G", "a", "d c"},
		"a good one of another stateroot":     {Policy{Keep: 2}, "d c x/other:G a:G", "", "d c x a"},
		"the staged one is good: not its run": {Policy{Keep: 2}, "s:SG d:B c a:G", "", "s d c a"},
	} {
		t.Run(name, func(t *testing.T) {
			list, names := menu(tc.menu)
			var gone, needed []string
			for i, f := range tc.policy.Decide(list, now) {
				if f.Gone != "" {
					gone = append(gone, names[i])
				}
				if f.Needed != "" {
					needed = append(needed, names[i])
				}
			}
			if got := strings.Join(gone, " "); got != tc.gone {
				t.Errorf("of %q %q go, want %q", tc.menu, got, tc.gone)
			}
			if got := strings.Join(needed, " "); got != tc.needed {
				t.Errorf("of %q %q are needed, want %q", tc.menu, got, tc.needed)
			}
		})
	}
}

func TestOldest(t *testing.T) {
	for name, tc := range map[string]struct {
		policy  Policy
		menu    string
		kernels bool
		want    string
	}{
		"nothing to spare":                     {Policy{Keep: 2}, "c b", false, ""},
		"the one not used for longest":         {Policy{Keep: 9}, "e-1 d-2 c-9 b-20 a-5", false, "b"},
		"of the same age the last":             {Policy{Keep: 9}, "e d c b a", false, "a"},
		"what goes anyway first":               {Policy{Keep: 3}, "e d c-9 b-5", false, "b"},
		"a kernel of its own":                  {Policy{Keep: 9}, "k1 x k2-9 y-5", true, "y"},
		"no kernel of its own":                 {Policy{Keep: 9}, "k1 x k2-9 x2-5", true, ""},
		"a kernel that only spare ones share":  {Policy{Keep: 9}, "k1 x z1-3 z2-5", true, "z2"},
		"kernels do not matter to the store's": {Policy{Keep: 9}, "k1 x k2-9 x2-5", false, "k2"},
	} {
		t.Run(name, func(t *testing.T) {
			list, names := menu(tc.menu)
			got := ""
			if i := Oldest(list, tc.policy.Decide(list, now), tc.kernels); i >= 0 {
				got = names[i]
			}
			if got != tc.want {
				t.Errorf("of %q %q goes next, want %q", tc.menu, got, tc.want)
			}
		})
	}
}

// TestNeverRemovesWhatIsNeeded: whatever the policy and the menu, what must stay
// is not in what goes, nor ever what is given up for room.
func TestNeverRemovesWhatIsNeeded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 20000 {
		list := make([]Deployment, random.IntN(9))
		for i := range list {
			list[i] = Deployment{
				Stateroot: []string{"default", "default", "other"}[random.IntN(3)], Pinned: random.IntN(4) == 0,
				Good: random.IntN(3) == 0, Kernel: string(rune('a' + random.IntN(3))), Used: now.AddDate(0, 0, random.IntN(90)-80),
			}
		}
		if len(list) > 1 && random.IntN(2) == 0 {
			list[0].Staged = true
		}
		if n := len(list); n > 1 && random.IntN(2) == 0 {
			list[1+random.IntN(n-1)].Booted = true
		}
		p := Policy{Keep: minKeep + random.IntN(4)}
		if random.IntN(2) == 0 {
			p.MaxAge = time.Duration(1+random.IntN(60)) * 24 * time.Hour
		}
		fates := p.Decide(list, now)
		if reason := mustStay(list, fates); reason != "" {
			t.Fatalf("round %d: %s goes under %+v: %+v: %+v", round, reason, p, list, fates)
		}
		spare := 0
		for _, f := range fates {
			if f.Needed != "" && f.Gone != "" {
				t.Fatalf("round %d: needed and gone: %+v", round, f)
			}
			if f.Needed == "" {
				spare++
			}
		}
		// Giving up one after the other ends with what is needed, and the next
		// decision is of the same mind as to what that is.
		for left := list; ; {
			fates := p.Decide(left, now)
			i := Oldest(left, fates, random.IntN(3) == 0)
			if i < 0 {
				if i = Oldest(left, fates, false); i < 0 {
					break
				}
			}
			if reason := mustStay(left, []Fate{{Gone: "x"}}, i); reason != "" {
				t.Fatalf("round %d: %s is given up for room: %+v", round, reason, left)
			}
			left = slices.Delete(slices.Clone(left), i, i+1)
			spare--
		}
		if spare != 0 {
			t.Fatalf("round %d: %d more were given up than could be spared: %+v", round, -spare, list)
		}
	}
}

// mustStay names the first deployment that goes and must not: written down apart
// from the code that it judges. only is the one that goes, else fates says.
func mustStay(list []Deployment, fates []Fate, only ...int) string {
	current, def := -1, -1
	for i, d := range list {
		if d.Booted {
			current = i
		}
		if !d.Staged && def < 0 {
			def = i
		}
	}
	if current < 0 {
		current = def
	}
	rollback := true
	good := false
	for i, d := range list {
		gone := len(only) > 0 && only[0] == i || len(only) == 0 && fates[i].Gone != ""
		target := rollback && i != current && !d.Staged && d.Stateroot == list[current].Stateroot
		if target {
			rollback = false
		}
		lastGood := false
		if d.Good && !d.Staged && d.Stateroot == list[current].Stateroot {
			lastGood = !good && !list[def].Good && !list[current].Good
			good = true
		}
		switch {
		case !gone:
		case d.Booted:
			return "the booted deployment"
		case d.Staged:
			return "the staged deployment"
		case d.Pinned:
			return "a pinned deployment"
		case i == def:
			return "the default"
		case target:
			return "the rollback target"
		case d.Stateroot != list[current].Stateroot:
			return "a deployment of another stateroot"
		case lastGood:
			// The first good one in the menu; a good rollback target is before it.
			return "the last good deployment"
		}
	}
	return ""
}

func TestFit(t *testing.T) {
	spare := func(s string) bool { return strings.HasPrefix(s, "x") }
	for name, tc := range map[string]struct {
		room int
		want string
	}{
		"room for all":         {5, "x0 a x1 b x2"},
		"the last goes first":  {4, "x0 a x1 b"},
		"never the first":      {3, "x0 a b"},
		"not enough: as it is": {2, "x0 a x1 b x2"},
	} {
		got, err := Fit(strings.Fields("x0 a x1 b x2"), spare, func(l []string) (bool, error) { return len(l) <= tc.room, nil })
		if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tc.want)
		}
	}
}
