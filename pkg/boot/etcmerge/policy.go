package etcmerge

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Where the rules are: an image's own beneath its root, and a machine's beneath
// its /etc. A file of the machine replaces one of the image that has its name;
// otherwise the machine's come later.
const (
	ImageRules   = "usr/lib/kedge/etc.d"
	MachineRules = "kedge/etc.d"
)

// Action is what is done about a path of which the machine's version differs
// from the image's defaults.
type Action uint8

// The actions. MergeLines is what happens where no rule says otherwise.
const (
	// MergeLines merges files whose lines are understood (package lines), and keeps
	// the machine's version of others.
	MergeLines Action = iota
	// KeepLocal keeps the machine's version, type and attributes and all.
	KeepLocal
	// TakeImage takes the image's version. What only the machine has stays.
	TakeImage
	// Fail merges nothing while both sides changed the path.
	Fail
)

var actionNames = [...]string{"merge", "keep-local", "take-image", "fail"}

// String returns the action as a rule spells it.
func (a Action) String() string { return actionNames[a] }

// UnmarshalText reads an action as a rule spells it.
func (a *Action) UnmarshalText(text []byte) error {
	i := slices.Index(actionNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("%q is no policy: want %s", text, strings.Join(actionNames[:], ", "))
	}
	*a = Action(i)
	return nil
}

// Pattern names paths below /etc. "*", "?" and "[a-z]" match within a name,
// "**" matches any number of names. What matches a directory matches what is in
// it.
type Pattern []string

// UnmarshalText reads a pattern, with or without "/etc/" before it.
func (p *Pattern) UnmarshalText(text []byte) error {
	s := strings.TrimPrefix(strings.TrimPrefix(string(text), "/etc/"), "./")
	*p = strings.Split(strings.TrimSuffix(s, "/"), "/")
	deep := 0
	for _, name := range *p {
		if name == "**" {
			deep++
		}
		if _, err := path.Match(name, ""); err != nil || name == "" || name == "." || name == ".." {
			return fmt.Errorf("%q is no pattern of paths in /etc", text)
		}
	}
	if deep > maxDeep || len(*p) > maxNames {
		return fmt.Errorf("%q has more than %d names or %d \"**\"", text, maxNames, maxDeep)
	}
	return nil
}

// match reports whether the pattern names a path or a directory above it.
func (p Pattern) match(names []string) bool {
	switch {
	case len(p) == 0:
		return true
	case p[0] == "**":
		return p[1:].match(names) || len(names) > 0 && p.match(names[1:])
	case len(names) == 0:
		return false
	}
	ok, err := path.Match(p[0], names[0])
	return err == nil && ok && p[1:].match(names[1:])
}

type rule struct {
	Match  []Pattern `toml:"match"`
	Policy *Action   `toml:"policy"`
}

// Policy says what is done about which path. The last rule that matches counts;
// the zero value has none.
type Policy struct{ rules []rule }

// For returns what is done about a path below /etc, and whether a rule says so.
func (p Policy) For(name string) (a Action, ruled bool) {
	names := strings.Split(name, "/")
	for _, r := range slices.Backward(p.rules) {
		if slices.ContainsFunc(r.Match, func(m Pattern) bool { return m.match(names) }) {
			return *r.Policy, true
		}
	}
	return MergeLines, false
}

// Bounds of what rules are read.
const (
	maxRuleFile  = 64 << 10
	maxRuleFiles = 256
	maxRules     = 1024
	maxNames     = 32 // of a pattern
	maxDeep      = 2  // "**" of a pattern: each multiplies what a match takes
)

// ReadPolicy reads the rules of an image, whose root is image, and those of a
// machine, whose /etc is etc (may be nil). A file that is not understood is an
// error of kind Corrupt, in the machine's /etc Conflict, with its path and line.
func ReadPolicy(image, etc source.Dir) (Policy, error) {
	files := map[string]ruleFile{}
	if err := listRules(files, image, ImageRules, "/", fault.Corrupt, "the image has to be repaired"); err != nil {
		return Policy{}, err
	}
	if etc != nil {
		if err := listRules(files, etc, MachineRules, "/etc/", fault.Conflict, "correct the file, or remove it"); err != nil {
			return Policy{}, err
		}
	}
	list := make([]ruleFile, 0, len(files))
	for _, f := range files {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b ruleFile) int {
		if a.kind != b.kind {
			return int(b.kind) - int(a.kind) // Corrupt, the image's, come first
		}
		return strings.Compare(a.path, b.path)
	})
	var p Policy
	for _, f := range list {
		rules, err := parseRules(f.text)
		if err != nil {
			return Policy{}, fault.New(f.kind, f.hint, "the rules for /etc in %s: %w", f.path, err)
		}
		if p.rules = append(p.rules, rules...); len(p.rules) > maxRules {
			return Policy{}, fault.New(f.kind, f.hint, "the rules for /etc in %s: more than %d", f.path, maxRules)
		}
	}
	return p, nil
}

type ruleFile struct {
	path, text string
	kind       fault.Kind
	hint       string
}

// listRules reads the *.toml files of a directory; none where it is missing. A
// symlink to /dev/null stands for an empty file.
func listRules(files map[string]ruleFile, top source.Dir, dir, prefix string, kind fault.Kind, hint string) error {
	fail := func(name string, err error) error {
		return fault.New(kind, hint, "the rules for /etc in %s: %w", prefix+path.Join(dir, name), err)
	}
	d, err := subOf(top, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail("", err)
	}
	defer d.Close()
	names, err := d.Names()
	if err != nil {
		return fail("", err)
	}
	if len(names) > maxRuleFiles {
		return fail("", fmt.Errorf("more than %d files", maxRuleFiles))
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".toml") {
			continue
		}
		text, err := readRules(d, name)
		if err != nil {
			return fail(name, err)
		}
		files[name] = ruleFile{prefix + path.Join(dir, name), text, kind, hint}
	}
	return nil
}

func readRules(d source.Dir, name string) (string, error) {
	if target, err := d.Readlink(name); err == nil {
		if target == "/dev/null" {
			return "", nil
		}
		return "", errors.New("a symlink; only /dev/null may be linked to")
	}
	text, err := readFile(d, name, maxRuleFile)
	return string(text), err
}

// parseRules reads one file. An unknown key is an error: a misspelt one must not
// be taken for the default.
func parseRules(text string) ([]rule, error) {
	var f struct {
		Path []rule `toml:"path"`
	}
	meta, err := toml.Decode(text, &f)
	if err != nil {
		var at toml.ParseError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("line %d: %s", at.Position.Line, at.Message)
		}
		return nil, errors.New(strings.TrimPrefix(err.Error(), "toml: "))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0][len(unknown[0])-1]
		return nil, fmt.Errorf("line %d: unknown key %q", lineOf(text, key), unknown[0].String())
	}
	for n, r := range f.Path {
		switch {
		case len(r.Match) == 0:
			return nil, fmt.Errorf("line %d: rule %d has no match", lineOfRule(text, n), n+1)
		case r.Policy == nil:
			return nil, fmt.Errorf("line %d: rule %d has no policy", lineOfRule(text, n), n+1)
		}
	}
	return f.Path, nil
}

// lineOf returns the first line that has a key.
func lineOf(text, key string) int {
	number := 0
	for line := range strings.Lines(text) {
		number++
		if name := strings.Trim(line, " \t\r\n[]\"'"); strings.HasPrefix(name, key) {
			return number
		}
	}
	return 1
}

// lineOfRule returns the line on which the nth rule begins.
func lineOfRule(text string, n int) int {
	number := 0
	for line := range strings.Lines(text) {
		number++
		if strings.HasPrefix(strings.TrimSpace(line), "[[") {
			if n--; n < 0 {
				return number
			}
		}
	}
	return 1
}

// subOf opens a directory several names down.
func subOf(d source.Dir, name string) (source.Dir, error) {
	var opened source.Dir
	for part := range strings.SplitSeq(name, "/") {
		sub, err := d.Sub(part)
		if opened != nil {
			_ = opened.Close()
		}
		if err != nil {
			return nil, err
		}
		d, opened = sub, sub
	}
	return opened, nil
}

var errTooLarge = errors.New("larger than")

// readFile returns the bytes of a regular file of at most limit bytes.
func readFile(d source.Dir, name string, limit int64) ([]byte, error) {
	st, err := d.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !isRegular(st) {
		return nil, errors.New("not a regular file")
	}
	if st.Size > limit {
		return nil, fmt.Errorf("%w %d bytes", errTooLarge, limit)
	}
	r, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%w %d bytes", errTooLarge, limit)
	}
	return data, err
}
