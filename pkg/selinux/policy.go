// Package selinux looks up the SELinux label of a path in an image's own
// policy, as libselinux's selabel_lookup(3) does with its file backend.
//
// It reads etc/selinux/config and, of the policy named there,
// contexts/files/file_contexts with its .homedirs, .local, .subs and
// .subs_dist companions (selabel_file(5), file_contexts(5)). It never asks the
// running kernel, never writes, and never skips a rule it does not understand:
// a root with a wrong label may not boot.
//
// The compiled file_contexts.bin is not read: it holds the same rules.
//
// Versions of libselinux disagree in two corners. Of two literal rules for one
// path in one file the last counts here, as before libselinux 3.8; from then on
// it is the first. Of two substitutions for one path the last counts, as in all
// versions but those around 3.8.
package selinux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// FileReader reads whole files of a root. Names are slash-separated and
// relative to the root; a missing file is an error that matches
// fs.ErrNotExist.
type FileReader interface {
	ReadFile(name string) ([]byte, error)
}

// Policy is the file labelling part of a SELinux policy. It is safe for
// concurrent use.
type Policy struct {
	name     string
	subs     []substitution // .subs, applied first
	distSubs []substitution // .subs_dist, applied to what the first gave
	literals map[string][]rule
	patterns index
	err      atomic.Pointer[error]
}

// Load reads the policy of a root. It returns nil, nil where files are not to
// be labelled: the root has no etc/selinux/config (nor usr/etc/selinux/config),
// or the config says neither SELINUX=enforcing nor SELINUX=permissive, which is
// libostree's condition. A policy that is there but cannot be read or parsed is
// an error of kind fault.Corrupt.
func Load(root FileReader) (*Policy, error) {
	for _, dir := range []string{"etc/selinux", "usr/etc/selinux"} {
		config, err := root.ReadFile(dir + "/config")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the SELinux configuration: %w", err)
		}
		name, enabled := parseConfig(config)
		if !enabled {
			return nil, nil
		}
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return nil, corrupt("%s/config: SELINUXTYPE=%q does not name a policy", dir, name)
		}
		return loadPolicy(root, name, path.Join(dir, name, "contexts/files/file_contexts"))
	}
	return nil, nil
}

func loadPolicy(root FileReader, name, contexts string) (*Policy, error) {
	p := &Policy{name: name, literals: map[string][]rule{}}
	for _, f := range []struct {
		suffix string
		subs   *[]substitution
	}{{".subs", &p.subs}, {".subs_dist", &p.distSubs}} {
		data, err := readOptional(root, contexts+f.suffix)
		if err != nil {
			return nil, err
		}
		*f.subs = parseSubstitutions(data)
	}
	var patterns []rule
	for _, suffix := range []string{"", ".homedirs", ".local"} {
		file := contexts + suffix
		data, err := readOptional(root, file)
		if err != nil {
			return nil, err
		}
		if data == nil && suffix == "" {
			return nil, corrupt("the SELinux policy %q has no %s", name, file)
		}
		rules, err := parseRules(file, data)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.literal != "" {
				p.literals[r.literal] = append(p.literals[r.literal], r)
			} else {
				patterns = append(patterns, r)
			}
		}
	}
	p.patterns = newIndex(patterns)
	if _, ok := p.Label("/", unix.S_IFDIR|0o755); !ok {
		return nil, corrupt("the SELinux policy %q has no label for /", name)
	}
	return p, nil
}

func readOptional(root FileReader, name string) ([]byte, error) {
	data, err := root.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the SELinux policy: %w", err)
	case data == nil:
		data = []byte{}
	}
	return data, nil
}

// parseConfig returns the policy type and whether the configuration enables
// SELinux, as libostree reads it: keys start a line, the last one counts, and
// once enabled stays enabled.
func parseConfig(config []byte) (policyType string, enabled bool) {
	for sc := bufio.NewScanner(bytes.NewReader(config)); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "SELINUXTYPE="); ok {
			policyType = strings.TrimSpace(v)
		} else if v, ok := strings.CutPrefix(sc.Text(), "SELINUX="); ok {
			v = strings.ToLower(v)
			if strings.HasPrefix(v, "enforcing") || strings.HasPrefix(v, "permissive") {
				enabled = true
			}
		}
	}
	return policyType, enabled
}

// Name returns the policy's type, such as "targeted".
func (p *Policy) Name() string { return p.name }

// Label returns the label of an absolute path, without a trailing NUL. mode is
// a st_mode of which the file type counts; a type of 0 matches rules of every
// type. ok is false where the policy leaves the path alone ("<<none>>", or no
// rule) and after a failure, which Err reports.
//
// A literal rule goes before every pattern; of patterns, the last that matches
// wins, in the order file_contexts, .homedirs, .local.
func (p *Policy) Label(path string, mode uint32) (label string, ok bool) {
	if p.err.Load() != nil {
		return "", false
	}
	path = p.canonical(path)
	mode &= unix.S_IFMT
	rules := p.literals[path]
	for i := len(rules) - 1; i >= 0; i-- {
		if rules[i].forType(mode) {
			return rules[i].label()
		}
	}
	r, err := p.patterns.last(path, mode)
	if err != nil {
		err = corrupt("look up the SELinux label of %q: %w", path, err)
		p.err.CompareAndSwap(nil, &err)
		return "", false
	}
	if r == nil {
		return "", false
	}
	return r.label()
}

// Err returns the first failure of Label: a rule whose pattern took too long
// to decide. Whoever labels a tree asks when it is done; labels returned before
// the failure are right.
func (p *Policy) Err() error {
	if e := p.err.Load(); e != nil {
		return *e
	}
	return nil
}

// canonical drops doubled and trailing slashes and applies the substitutions.
func (p *Policy) canonical(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	return substitute(p.distSubs, substitute(p.subs, path))
}

func corrupt(format string, args ...any) error {
	return fault.New(fault.Corrupt, "the image's SELinux policy is damaged or uses what kedge does not know; rebuild the image or report the rule", format, args...)
}
