package lines

import (
	"fmt"
	"strconv"
	"strings"
)

// entry is a line; what is blank or a comment has no key.
type entry struct {
	line   string
	key    string
	fields []string
}

// file is a parsed file.
type file struct {
	entries []entry
	index   map[string]int
}

func (f *file) find(key string) *entry {
	if n, ok := f.index[key]; ok {
		return &f.entries[n]
	}
	return nil
}

func (f *Format) parse(text []byte) (*file, error) {
	out := &file{index: map[string]int{}}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("larger than %d MB", MaxSize>>20)
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSuffix(line, "\n")
		e := entry{line: line}
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || f.comments && trimmed[0] == '#' {
			out.entries = append(out.entries, e)
			continue
		}
		var err error
		if e.fields, err = f.fieldsOf(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if e.key = f.key(e.fields); e.key == "" {
			return nil, fmt.Errorf("line %d: no name", number)
		}
		if _, twice := out.index[e.key]; twice {
			return nil, fmt.Errorf("line %d: a second entry for %s", number, e.key)
		}
		out.index[e.key] = len(out.entries)
		out.entries = append(out.entries, e)
	}
	return out, nil
}

// fieldsOf returns the fields of a line that is an entry.
func (f *Format) fieldsOf(line string) ([]string, error) {
	if strings.IndexByte(line, 0) >= 0 {
		return nil, fmt.Errorf("a NUL byte")
	}
	if line[0] == '+' || line[0] == '-' {
		return nil, fmt.Errorf("an entry of NIS")
	}
	fields := f.split(line)
	if f.comments && len(fields) < f.fields && len(fields) >= 3 {
		// fstab(5): options and the two numbers may be left out.
		fields = append(fields, []string{"defaults", "0", "0"}[len(fields)-3:]...)
	}
	if len(fields) != f.fields {
		return nil, fmt.Errorf("%d fields, not %d", len(fields), f.fields)
	}
	if f.check != nil {
		if err := f.check(fields); err != nil {
			return nil, err
		}
	}
	return fields, nil
}

func colons(line string) []string { return strings.Split(line, ":") }

func first(f []string) string { return f[0] }

func whole(f []string) string { return strings.Join(f, ":") }

// mountPoint is the key of fstab; swap has none, and is known by its device.
func mountPoint(f []string) string {
	if f[1] == "none" || f[1] == "swap" {
		return f[0] + " " + f[1]
	}
	return f[1]
}

// numbers checks that fields are numbers as a uid is.
func numbers(at ...int) func([]string) error {
	return func(f []string) error {
		for _, n := range at {
			if _, err := strconv.ParseUint(f[n], 10, 32); err != nil {
				return fmt.Errorf("%q is not a number", f[n])
			}
		}
		return nil
	}
}

// sameNumber: two names of one id would share what belongs to either.
func sameNumber(at int, what string) func(ours, theirs []string) string {
	return func(ours, theirs []string) string {
		if number(ours[at]) != number(theirs[at]) {
			return ""
		}
		return fmt.Sprintf("%s %s is the machine's %s", what, theirs[at], ours[0])
	}
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 32) // it was checked
	return n
}

// overlap: ids that two users may both take are no ranges of either.
func overlap(ours, theirs []string) string {
	a, n, b, m := number(ours[1]), number(ours[2]), number(theirs[1]), number(theirs[2])
	if a >= b+m || b >= a+n || ours[0] == theirs[0] {
		return ""
	}
	return fmt.Sprintf("its ids are those of the machine's %s", strings.Join(ours, ":"))
}
