// Package karg edits kernel command lines: a list of arguments in which order
// and repetition mean something and quotes keep spaces together. It does no
// I/O but for LoadDir, which reads an image's own arguments.
package karg

import (
	"slices"
	"strings"
	"unicode"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Args is a kernel command line, an argument an element: "quiet", "root=…".
// The functions below never change an Args in place.
type Args []string

// Parse splits a command line at white space outside double quotes; the quotes
// stay. An unterminated quote reaches to the end, as in the kernel.
func Parse(line string) Args {
	var args Args
	start, quoted := -1, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
			if start < 0 {
				start = i
			}
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if start >= 0 {
				args = append(args, line[start:i])
			}
			start = -1
		case start < 0:
			start = i
		}
	}
	if start >= 0 {
		args = append(args, line[start:])
	}
	return args
}

// Whole reports whether arg is one argument wherever it stands on a command line:
// no white space outside quotes, no quote left open, which would swallow what
// follows, and no control character.
func Whole(arg string) bool {
	p := Parse(arg)
	return len(p) == 1 && p[0] == arg && strings.Count(arg, `"`)%2 == 0 && !strings.ContainsFunc(arg, unicode.IsControl)
}

// Root are the names of the arguments that lead to the root. Each boot entry has
// its own.
var Root = []string{"ostree", "composefs", "composefs.digest"}

// String returns the command line.
func (a Args) String() string { return strings.Join(a, " ") }

// Key returns an argument's name: what stands before the first "=".
func Key(arg string) string {
	k, _, _ := strings.Cut(arg, "=")
	return k
}

// Values returns the values of every argument with that name, in order. An
// argument without "=" has the value "".
func (a Args) Values(key string) []string {
	var values []string
	for _, arg := range a {
		if k, v, _ := strings.Cut(arg, "="); k == key {
			values = append(values, v)
		}
	}
	return values
}

// Contains reports whether the argument stands there, value and all.
func (a Args) Contains(arg string) bool { return slices.Contains(a, arg) }

// Append adds arguments at the end.
func (a Args) Append(args ...string) Args { return append(slices.Clip(a), args...) }

// AppendMissing adds those arguments that do not stand there yet.
func (a Args) AppendMissing(args ...string) Args {
	out := slices.Clone(a)
	for _, arg := range args {
		if !out.Contains(arg) {
			out = append(out, arg)
		}
	}
	return out
}

// Set gives the argument's name this value at the place where the name first
// stands, and takes its other values away; a new name goes to the end.
func (a Args) Set(arg string) Args {
	key, done := Key(arg), false
	var out Args
	for _, x := range a {
		switch {
		case Key(x) != key:
			out = append(out, x)
		case !done:
			out, done = append(out, arg), true
		}
	}
	if !done {
		out = append(out, arg)
	}
	return out
}

// Without takes away every argument with that name.
func (a Args) Without(key string) Args {
	return slices.DeleteFunc(slices.Clone(a), func(x string) bool { return Key(x) == key })
}

// Delete takes one argument away. "key=value" is that very argument; "key" is
// the one argument of that name, and where several values stand it is a
// conflict, so that none goes by mistake. What is not there is NotFound.
func (a Args) Delete(arg string) (Args, error) {
	i, err := a.locate(arg)
	if err != nil {
		return nil, err
	}
	return slices.Delete(slices.Clone(a), i, i+1), nil
}

// DeletePresent is Delete without an error for what is not there.
func (a Args) DeletePresent(arg string) (Args, error) {
	out, err := a.Delete(arg)
	if fault.KindOf(err) == fault.NotFound {
		return a, nil
	}
	return out, err
}

// Replace changes one value in place: "key=new" where the name stands once,
// "key=old=new" where it stands more than once.
func (a Args) Replace(spec string) (Args, error) {
	key, rest, ok := strings.Cut(spec, "=")
	if !ok {
		return nil, fault.New(fault.Usage, "write it as KEY=NEW or KEY=OLD=NEW", "replace kernel argument %q: no new value", spec)
	}
	out := slices.Clone(a)
	// A value may hold "=": the old value is the longest that really stands there.
	for i := len(rest) - 1; i >= 0; i-- {
		if rest[i] != '=' {
			continue
		}
		if j := slices.Index(out, key+"="+rest[:i]); j >= 0 {
			out[j] = key + "=" + rest[i+1:]
			return out, nil
		}
	}
	i, err := a.locate(key)
	if err != nil {
		return nil, err
	}
	out[i] = key + "=" + rest
	return out, nil
}

// locate finds the argument that "key" or "key=value" means.
func (a Args) locate(arg string) (int, error) {
	if i := slices.Index(a, arg); i >= 0 && strings.Contains(arg, "=") {
		return i, nil
	}
	found := -1
	if !strings.Contains(arg, "=") {
		for i, x := range a {
			if Key(x) != arg {
				continue
			}
			if found >= 0 && a[found] != x {
				return -1, fault.New(fault.Conflict, "name the value too: "+x,
					"kernel argument %q stands more than once with different values", arg)
			}
			found = i
		}
	}
	if found < 0 {
		return -1, fault.New(fault.NotFound, "kedge status shows the kernel arguments", "no kernel argument %q", arg)
	}
	return found, nil
}

// Rebase carries a machine's arguments from one image to the next: what the
// old image brought and the new one does not goes away, what is new in the new
// image is added at the end, and everything else, the machine's own, stays.
func (a Args) Rebase(oldImage, newImage Args) Args {
	out := slices.Clone(a)
	for _, arg := range oldImage {
		if newImage.Contains(arg) {
			continue
		}
		if i := slices.Index(out, arg); i >= 0 {
			out = slices.Delete(out, i, i+1)
		}
	}
	for _, arg := range newImage {
		if !oldImage.Contains(arg) {
			out = append(out, arg)
		}
	}
	return out
}
