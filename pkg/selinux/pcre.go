package selinux

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// maxDepth bounds nested groups; it is PCRE2's own limit.
const maxDepth = 250

// translation is a PCRE pattern in the syntax that Go's regexp and regexp2
// read alike: classes and escapes are spelled out as sets of bytes, each byte
// being the rune of the same number. Only the constructs that mark it
// backtracking are foreign to Go's regexp.
type translation struct {
	text         string
	backtracking bool
}

// translator reads a pattern as PCRE2 without PCRE2_UTF and with PCRE2_DOTALL
// does (pcre2pattern(3)). What it does not know it refuses.
type translator struct {
	in           string
	pos          int
	out          strings.Builder
	atom         int   // where in out the item starts that a quantifier would repeat, or -1
	groups       []int // where in out the open groups start
	backtracking bool
}

func translate(pattern string) (translation, error) {
	t := translator{in: pattern, atom: -1}
	for t.pos < len(t.in) {
		if err := t.item(); err != nil {
			return translation{}, fmt.Errorf("pattern %q, offset %d: %w", pattern, t.pos, err)
		}
	}
	if len(t.groups) > 0 {
		return translation{}, fmt.Errorf("pattern %q: a group is not closed", pattern)
	}
	return translation{t.out.String(), t.backtracking}, nil
}

func (t *translator) next() byte {
	c := t.in[t.pos]
	t.pos++
	return c
}

// rest is what is left to read.
func (t *translator) rest() string { return t.in[t.pos:] }

func (t *translator) accept(s string) bool {
	if strings.HasPrefix(t.rest(), s) {
		t.pos += len(s)
		return true
	}
	return false
}

// emit writes an item that a quantifier may repeat.
func (t *translator) emit(s string) {
	t.atom = t.out.Len()
	t.out.WriteString(s)
}

// assert writes what matches no text; PCRE lets nobody repeat most of it.
func (t *translator) assert(s string, backtracking bool) {
	t.out.WriteString(s)
	t.atom = -1
	t.backtracking = t.backtracking || backtracking
}

func (t *translator) item() error {
	switch c := t.next(); c {
	case '\\':
		return t.escape()
	case '[':
		return t.class()
	case '(':
		return t.open()
	case ')':
		if len(t.groups) == 0 {
			return fmt.Errorf("a group is closed that was not opened")
		}
		t.out.WriteByte(')')
		t.atom = t.groups[len(t.groups)-1]
		t.groups = t.groups[:len(t.groups)-1]
	case '|':
		t.assert("|", false)
	case '^':
		t.assert(`\A`, false)
	case '$':
		t.assert(`\Z`, true)
	case '.':
		t.emit(".")
	case '*', '+', '?':
		return t.quantify(string(c))
	case '{':
		if m := counted.FindString(t.rest()); m != "" {
			t.pos += len(m)
			return t.count(m)
		}
		if strings.HasPrefix(t.rest(), ",") || strings.HasPrefix(t.rest(), " ") {
			return fmt.Errorf("%q means different things to different versions of PCRE2", "{"+t.rest()[:1])
		}
		t.emit(`\{`)
	default:
		t.emit(quoteByte(c))
	}
	return nil
}

var counted = regexp.MustCompile(`^(\d+)(,(\d*))?\}`)

func (t *translator) count(braces string) error {
	m := counted.FindStringSubmatch(braces)
	low, err := strconv.ParseUint(m[1], 10, 16)
	high := low
	if err == nil && m[3] != "" {
		high, err = strconv.ParseUint(m[3], 10, 16)
	}
	if err != nil || high < low {
		return fmt.Errorf("the count {%s is out of range", braces)
	}
	q := "{" + strconv.FormatUint(low, 10)
	if m[2] != "" {
		q += ","
		if m[3] != "" {
			q += strconv.FormatUint(high, 10)
		}
	}
	return t.quantify(q + "}")
}

// quantify repeats the last item. A possessive quantifier becomes an atomic
// group around it.
func (t *translator) quantify(q string) error {
	if t.atom < 0 {
		return fmt.Errorf("%q repeats nothing", q)
	}
	switch {
	case t.accept("+"):
		item := t.out.String()
		t.out.Reset()
		t.out.WriteString(item[:t.atom] + "(?>" + item[t.atom:] + q + ")")
		t.backtracking = true
	case t.accept("?"):
		t.out.WriteString(q + "?")
	default:
		t.out.WriteString(q)
	}
	t.atom = -1
	return nil
}

var groupName = regexp.MustCompile(`^(P?<[A-Za-z_]\w*>|'[A-Za-z_]\w*')`)

func (t *translator) open() error {
	if len(t.groups) == maxDepth {
		return fmt.Errorf("groups are nested deeper than %d", maxDepth)
	}
	if t.accept("*") {
		return fmt.Errorf("(* verbs are not supported")
	}
	start, open := t.out.Len(), "("
	if t.accept("?") {
		switch rest := t.rest(); {
		case t.accept("#"):
			end := strings.IndexByte(t.rest(), ')')
			if end < 0 {
				return fmt.Errorf("a comment is not closed")
			}
			t.pos += end + 1
			return nil
		case start == 0 && t.pos == 2 && t.accept("i)"):
			t.assert("(?i)", false)
			return nil
		case t.accept(":"):
			open = "(?:"
		case t.accept("i:"):
			open = "(?i:"
		case t.accept("="), t.accept("!"), t.accept("<="), t.accept("<!"), t.accept(">"):
			open = "(?" + rest[:len(rest)-len(t.rest())]
			t.backtracking = true
		case groupName.MatchString(rest):
			t.pos += len(groupName.FindString(rest))
		default:
			return fmt.Errorf("the group (?%.2s is not supported", rest)
		}
	}
	t.groups = append(t.groups, start)
	t.out.WriteString(open)
	t.atom = -1
	return nil
}

// quoteByte writes a byte as a literal in both engines' syntax.
func quoteByte(c byte) string {
	if c < ' ' || c >= 0x7f {
		return fmt.Sprintf(`\x%02x`, c)
	}
	return regexp.QuoteMeta(string(rune(c)))
}
