package selinux

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dlclark/regexp2"
)

// matchTimeout bounds one pattern on one path. The patterns come from the
// image, which may mean harm; those of real policies take microseconds.
const matchTimeout = time.Second

// shape says how a pattern is decided, from its prefix on.
type shape uint8

const (
	general   shape = iota // by a regular expression engine
	exactly                // PREFIX
	below                  // PREFIX(/.*)?
	anything               // PREFIX.*
	something              // PREFIX.+
	name                   // PREFIX[^/]*
	someName               // PREFIX[^/]+
)

// matcher decides a pattern. Rules with equal patterns share one.
type matcher struct {
	prefix string // what every match starts with
	*program
}

type program struct {
	shape  shape
	text   string // Go's syntax, anchored
	suffix string // what every match ends with (before a final newline)
	inner  string // what every match holds behind its prefix

	once         sync.Once
	re           *regexp.Regexp
	reErr        error
	backtracking *regexp2.Regexp
}

// compile makes the matcher of a pattern. libselinux wraps it as ^PATTERN$
// without a group, so an alternation at the top level splits that too.
func compile(pattern string) (matcher, error) {
	t, err := translate(pattern)
	if err != nil {
		return matcher{}, err
	}
	m := matcher{program: &program{}}
	var tree *syntax.Regexp
	if !t.backtracking {
		m.text = `(?s)\A` + t.text + `\n?\z`
		// Go's limits on repetition are lower than PCRE's: what they
		// refuse is left to the other engine.
		if tree, err = syntax.Parse(m.text, syntax.Perl); err != nil {
			t.backtracking = true
		}
	}
	if t.backtracking {
		m.text = ""
		if m.backtracking, err = regexp2.Compile(`\A`+t.text+`\Z`, regexp2.Singleline); err != nil {
			return matcher{}, err
		}
		m.backtracking.MatchTimeout = matchTimeout
	} else {
		m.analyse(tree)
	}
	// libselinux never tries a rule whose first directory is literal on a
	// path that is elsewhere, whatever the pattern's alternatives are.
	if s := stem(pattern); len(s) > len(m.prefix) {
		m.prefix, m.shape = s, general
	}
	return m, nil
}

// stem returns a pattern's first directory with its slashes, if it is literal.
func stem(pattern string) string {
	if pattern == "" {
		return ""
	}
	end := strings.IndexByte(pattern[1:], '/')
	if end < 0 || strings.ContainsAny(pattern[:end+1], `.^$?*+|[({\`) {
		return ""
	}
	return pattern[:end+2]
}

// notSlash is the class [^/] as translate spells it.
var notSlash = []rune{0, '/' - 1, '/' + 1, 0xff}

// analyse finds the literal parts of a pattern, which spare most runs of the
// engine.
func (m *matcher) analyse(tree *syntax.Regexp) {
	if tree.Op != syntax.OpConcat || tree.Sub[0].Op != syntax.OpBeginText {
		return
	}
	parts := tree.Sub[1:]
	if text, ok := literal(parts[0]); ok {
		m.prefix = text
		parts = parts[1:]
	}
	if len(parts) < 2 || parts[len(parts)-1].Op != syntax.OpEndText || !isFinalNewline(parts[len(parts)-2]) {
		return
	}
	parts = parts[:len(parts)-2]
	switch len(parts) {
	case 0:
		m.shape = exactly
		return
	case 1:
		if m.shape = shapeOf(parts[0]); m.shape != general {
			return
		}
	}
	for i, p := range parts {
		text, ok := literal(p)
		switch {
		case !ok:
		case i == len(parts)-1 && !strings.Contains(text, "\n"):
			m.suffix = text
		case len(text) > len(m.inner):
			m.inner = text
		}
	}
}

func isFinalNewline(re *syntax.Regexp) bool {
	text, ok := "", re.Op == syntax.OpQuest
	if ok {
		text, ok = literal(re.Sub[0])
	}
	return ok && text == "\n"
}

// literal returns the text of a literal of ASCII characters.
func literal(re *syntax.Regexp) (string, bool) {
	if re.Op != syntax.OpLiteral || re.Flags&syntax.FoldCase != 0 {
		return "", false
	}
	for _, r := range re.Rune {
		if r >= 0x80 {
			return "", false
		}
	}
	return string(re.Rune), true
}

func shapeOf(re *syntax.Regexp) shape {
	switch re.Op {
	case syntax.OpQuest:
		group := re.Sub[0]
		if group.Op == syntax.OpCapture {
			group = group.Sub[0]
		}
		if group.Op != syntax.OpConcat || len(group.Sub) != 2 || shapeOf(group.Sub[1]) != anything {
			return general
		}
		if slash, ok := literal(group.Sub[0]); ok && slash == "/" {
			return below
		}
	case syntax.OpStar, syntax.OpPlus:
		star := re.Op == syntax.OpStar
		switch of := re.Sub[0]; {
		case of.Op == syntax.OpAnyChar && star:
			return anything
		case of.Op == syntax.OpAnyChar:
			return something
		case of.Op == syntax.OpCharClass && slices.Equal(of.Rune, notSlash) && star:
			return name
		case of.Op == syntax.OpCharClass && slices.Equal(of.Rune, notSlash):
			return someName
		}
	}
	return general
}

// subject is a path that is being looked up.
type subject struct {
	path  string
	runes string // path with each byte as the rune of the same number
}

func (s *subject) text() string {
	if s.runes == "" {
		s.runes = s.path
		if strings.IndexFunc(s.path, func(r rune) bool { return r >= 0x80 }) >= 0 {
			var b strings.Builder
			for i := range len(s.path) {
				b.WriteRune(rune(s.path[i]))
			}
			s.runes = b.String()
		}
	}
	return s.runes
}

// matches decides the pattern for a path that starts with its prefix.
func (m *matcher) matches(s *subject) (bool, error) {
	rest := s.path[len(m.prefix):]
	switch m.shape {
	case exactly:
		return rest == "" || rest == "\n", nil
	case below:
		return rest == "" || rest[0] == '/' || rest == "\n", nil
	case anything:
		return true, nil
	case something:
		return rest != "", nil
	case name:
		return strings.IndexByte(rest, '/') < 0, nil
	case someName:
		return rest != "" && strings.IndexByte(rest, '/') < 0, nil
	}
	if m.backtracking != nil {
		return m.backtracking.MatchString(s.text())
	}
	if m.suffix != "" && !strings.HasSuffix(strings.TrimSuffix(rest, "\n"), m.suffix) ||
		m.inner != "" && !strings.Contains(rest, m.inner) {
		return false, nil
	}
	m.once.Do(func() { m.re, m.reErr = regexp.Compile(m.text) })
	if m.reErr != nil {
		return false, m.reErr
	}
	return m.re.MatchString(s.text()), nil
}
