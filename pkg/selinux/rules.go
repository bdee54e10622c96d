package selinux

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxEntry bounds an entry of a rule, as libselinux does.
const maxEntry = 1<<16 - 1

// none is the label of rules that say "leave this path alone".
const none = "<<none>>"

// rule is one line of a file_contexts file.
type rule struct {
	fileType uint32 // S_IFMT bits; 0 is any type
	context  string
	literal  string // the one path that the rule is for, where it is no pattern
	matcher
}

func (r *rule) forType(t uint32) bool { return t == 0 || r.fileType == 0 || r.fileType == t }

func (r *rule) label() (string, bool) {
	if r.context == none {
		return "", false
	}
	return r.context, true
}

var fileTypes = map[string]uint32{
	"--": unix.S_IFREG, "-d": unix.S_IFDIR, "-l": unix.S_IFLNK, "-c": unix.S_IFCHR,
	"-b": unix.S_IFBLK, "-s": unix.S_IFSOCK, "-p": unix.S_IFIFO,
}

// parseRules reads a file_contexts file: lines of a path pattern, an optional
// file type and a label, separated by white space; "#" starts a comment line.
func parseRules(file string, data []byte) ([]rule, error) {
	var rules []rule
	contexts := map[string]string{}
	compiled := map[string]matcher{}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		fields := strings.FieldsFunc(string(line), isSpace)
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		r, pattern, err := parseRule(fields)
		if err == nil && r.literal == "" {
			m, ok := compiled[pattern]
			if !ok {
				m, err = compile(pattern)
				compiled[pattern] = m
			}
			r.matcher = m
		}
		if err != nil {
			return nil, corrupt("%s: line %d: %w", file, n, err)
		}
		if c, ok := contexts[r.context]; ok {
			r.context = c
		} else {
			contexts[r.context] = r.context
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// isSpace is the C locale's isspace(3): a NUL or a non-ASCII blank separates
// nothing.
func isSpace(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' }

func parseRule(fields []string) (r rule, pattern string, err error) {
	if len(fields) < 2 {
		return r, "", fmt.Errorf("a rule needs a path and a label, this has only %q", fields[0])
	}
	for _, f := range fields[:min(3, len(fields))] {
		if len(f) >= maxEntry {
			return r, "", fmt.Errorf("an entry of %d bytes is longer than %d", len(f), maxEntry-1)
		}
		for i := range len(f) {
			if f[i] >= 0x80 || f[i] == 0 {
				return r, "", fmt.Errorf("%q has a byte that is not ASCII", f)
			}
		}
	}
	pattern, r.context = fields[0], fields[1]
	if len(fields) > 2 {
		t, ok := fileTypes[fields[1]]
		if !ok {
			return r, "", fmt.Errorf("%q is not a file type (--, -d, -l, -c, -b, -s, -p)", fields[1])
		}
		r.fileType, r.context = t, fields[2]
	}
	r.literal = literalPath(pattern)
	return r, pattern, nil
}

// literalPath returns the only path that a pattern without metacharacters
// matches, or "".
func literalPath(pattern string) string {
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		c := pattern[i]
		if c == '\\' {
			if i++; i == len(pattern) || isAlnum(pattern[i]) {
				return ""
			}
			c = pattern[i]
		} else if strings.IndexByte(".^$?*+|[(){", c) >= 0 {
			return ""
		}
		b.WriteByte(c)
	}
	return b.String()
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// substitution maps a path and what is below it to where the rules know it.
type substitution struct{ from, to string }

// parseSubstitutions reads a .subs or .subs_dist file: lines "ALIAS ORIGINAL".
// The last line goes first, as in libselinux; what is no such line is ignored
// there and here.
func parseSubstitutions(data []byte) []substitution {
	var subs []substitution
	for line := range bytes.Lines(data) {
		f := strings.FieldsFunc(string(line), isSpace)
		if len(f) < 2 || f[0][0] == '#' {
			continue
		}
		subs = append(subs, substitution{f[0], f[1]})
	}
	for i, j := 0, len(subs)-1; i < j; i, j = i+1, j-1 {
		subs[i], subs[j] = subs[j], subs[i]
	}
	return subs
}

// substitute applies the first substitution that is for path.
func substitute(subs []substitution, path string) string {
	for _, s := range subs {
		rest, ok := strings.CutPrefix(path, s.from)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if rest != "" && s.to == "/" {
			rest = rest[1:]
		}
		return s.to + rest
	}
	return path
}
