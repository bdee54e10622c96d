package selinux

import (
	"fmt"
	"strconv"
	"strings"
)

// byteSet is the set of bytes that a class or an escape matches.
type byteSet [256]bool

func (s *byteSet) addRange(low, high byte) {
	for c := int(low); c <= int(high); c++ {
		s[c] = true
	}
}

func (s *byteSet) add(o byteSet) {
	for c, in := range o {
		s[c] = s[c] || in
	}
}

func (s byteSet) inverted() byteSet {
	for c := range s {
		s[c] = !s[c]
	}
	return s
}

// String spells the set out as a class.
func (s byteSet) String() string {
	var b strings.Builder
	b.WriteByte('[')
	for low := 0; low < len(s); low++ {
		if !s[low] {
			continue
		}
		high := low
		for high+1 < len(s) && s[high+1] {
			high++
		}
		fmt.Fprintf(&b, `\x%02x-\x%02x`, low, high)
		low = high
	}
	b.WriteByte(']')
	return b.String()
}

func setOf(ranges string) (s byteSet) {
	for i := 0; i < len(ranges); i += 2 {
		s.addRange(ranges[i], ranges[i+1])
	}
	return s
}

// In the C locale, which PCRE2's built-in tables are for.
var (
	digits = setOf("09")
	words  = setOf("09AZaz__")
	spaces = setOf("\t\r  ")

	escapedSets = map[byte]byteSet{
		'd': digits, 'D': digits.inverted(),
		'w': words, 'W': words.inverted(),
		's': spaces, 'S': spaces.inverted(),
		'h': setOf("\t\t  \xa0\xa0"), 'H': setOf("\t\t  \xa0\xa0").inverted(),
		'v': setOf("\n\r\x85\x85"), 'V': setOf("\n\r\x85\x85").inverted(),
	}
	namedSets = map[string]byteSet{
		"alnum": setOf("09AZaz"), "alpha": setOf("AZaz"), "ascii": setOf("\x00\x7f"), "blank": setOf("\t\t  "),
		"cntrl": setOf("\x00\x1f\x7f\x7f"), "digit": digits, "graph": setOf("!~"), "lower": setOf("az"),
		"print": setOf(" ~"), "punct": setOf("!/:@[`{~"), "space": spaces, "upper": setOf("AZ"),
		"word": words, "xdigit": setOf("09AFaf"),
	}
	escapedBytes = map[byte]byte{'a': 7, 'e': 27, 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}
)

// asciiBoundary is \b without the engines' different ideas of a word.
const asciiBoundary = `(?:(?<=[0-9A-Za-z_])(?![0-9A-Za-z_])|(?<![0-9A-Za-z_])(?=[0-9A-Za-z_]))`

// escape reads what follows a backslash outside of a class.
func (t *translator) escape() error {
	if t.pos == len(t.in) {
		return fmt.Errorf("a backslash ends the pattern")
	}
	c := t.in[t.pos]
	if set, ok := escapedSets[c]; ok {
		t.pos++
		t.emit(set.String())
		return nil
	}
	switch c {
	case 'b':
		t.pos++
		t.assert(asciiBoundary, true)
	case 'B':
		t.pos++
		t.assert("(?!"+asciiBoundary+")", true)
	case 'A', 'z':
		t.pos++
		t.assert(`\`+string(rune(c)), false)
	case 'Z':
		t.pos++
		t.assert(`\Z`, true)
	case 'Q':
		t.pos++
		text, _, _ := strings.Cut(t.rest(), `\E`)
		t.pos += len(text)
		for i := range len(text) {
			t.emit(quoteByte(text[i]))
		}
		t.accept(`\E`)
	case 'E':
		t.pos++
	case '1', '2', '3', '4', '5', '6', '7', '8', '9':
		t.pos++
		if t.pos < len(t.in) && digits[t.in[t.pos]] {
			return fmt.Errorf(`\%c%c may be a reference or an octal number`, c, t.in[t.pos])
		}
		t.emit(`(?:\` + string(rune(c)) + `)`)
		t.backtracking = true
	default:
		c, err := t.escapedByte()
		if err != nil {
			return err
		}
		t.emit(quoteByte(c))
	}
	return nil
}

// escapedByte reads the escapes that stand for one byte, in and out of classes.
func (t *translator) escapedByte() (byte, error) {
	c := t.next()
	if b, ok := escapedBytes[c]; ok {
		return b, nil
	}
	switch {
	case c == 'x':
		text, width := "", 0
		if t.accept("{") {
			var ok bool
			if text, _, ok = strings.Cut(t.rest(), "}"); !ok {
				return 0, fmt.Errorf(`\x{ is not closed`)
			}
			width = len(text) + 1
		} else {
			for width < 2 && width < len(t.rest()) && namedSets["xdigit"][t.rest()[width]] {
				width++
			}
			text = t.rest()[:width]
			if width == 0 {
				text = "0"
			}
		}
		v, err := strconv.ParseUint(text, 16, 8)
		if err != nil {
			return 0, fmt.Errorf(`\x with %q is not a byte`, text)
		}
		t.pos += width
		return byte(v), nil
	case c == '0':
		v := 0
		for range 2 {
			if t.pos < len(t.in) && '0' <= t.in[t.pos] && t.in[t.pos] <= '7' {
				v = v*8 + int(t.next()-'0')
			}
		}
		return byte(v), nil
	case isAlnum(c):
		return 0, fmt.Errorf(`\%c is not supported`, c)
	}
	return c, nil
}

// class reads a bracketed class, the bracket being read.
func (t *translator) class() error {
	inverted := t.accept("^")
	var set byteSet
	for first := true; ; first = false {
		if t.pos == len(t.in) {
			return fmt.Errorf("a class is not closed")
		}
		if !first && t.accept("]") {
			break
		}
		members, low, err := t.classItem()
		if err != nil {
			return err
		}
		if members != nil {
			set.add(*members)
			continue
		}
		high := low
		if rest := t.rest(); len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			t.pos++
			var end *byteSet
			if end, high, err = t.classItem(); err != nil {
				return err
			}
			if end != nil || high < low {
				return fmt.Errorf("a range in a class has no proper end")
			}
		}
		set.addRange(low, high)
	}
	if inverted {
		set = set.inverted()
	}
	if set == (byteSet{}) {
		t.emit("(?!)")
		t.backtracking = true
		return nil
	}
	t.emit(set.String())
	return nil
}

// classItem reads a set or a single byte of a class.
func (t *translator) classItem() (*byteSet, byte, error) {
	c := t.next()
	switch {
	case c == '\\' && t.pos == len(t.in):
		return nil, 0, fmt.Errorf("a backslash ends the pattern")
	case c == '\\':
		e := t.in[t.pos]
		if set, ok := escapedSets[e]; ok {
			t.pos++
			return &set, 0, nil
		}
		if e == 'b' {
			t.pos++
			return nil, '\b', nil
		}
		b, err := t.escapedByte()
		return nil, b, err
	case c == '[' && t.accept(":"):
		name, _, ok := strings.Cut(t.rest(), ":]")
		base, inverted := strings.CutPrefix(name, "^")
		set, known := namedSets[base]
		if !ok || !known {
			return nil, 0, fmt.Errorf("[:%.8s is not a class name", t.rest())
		}
		t.pos += len(name) + 2
		if inverted {
			set = set.inverted()
		}
		return &set, 0, nil
	case c == '[' && (strings.HasPrefix(t.rest(), ".") || strings.HasPrefix(t.rest(), "=")) &&
		strings.Contains(t.rest(), t.rest()[:1]+"]"):
		return nil, 0, fmt.Errorf("collating elements are not supported")
	}
	return nil, c, nil
}
