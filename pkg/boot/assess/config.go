package assess

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/kedge-os/kedge/pkg/fault"
)

// DefaultTimeout is what a check may take where nothing else is said: long
// enough for a network to come up, short enough to wait for it.
const DefaultTimeout = time.Minute

// DefaultTries is how often a boot loader that counts tries a new root, and
// maxTries the most, as with libostree.
const (
	DefaultTries = 3
	maxTries     = 5
)

// maxConfig bounds a configuration file.
const maxConfig = 64 << 10

// configFiles are read in this order; what a later one says counts.
var configFiles = []string{"/usr/lib/kedge/health.toml", "/etc/kedge/health.toml"}

// greenbootConfig is where greenboot's list of disabled checks is: a bash
// array, DISABLED_HEALTHCHECKS=(A.sh B.sh).
const greenbootConfig = "/etc/greenboot/greenboot.conf"

// config is health.toml.
type config struct {
	// Timeout is of every check, as "90s"; Timeouts of those with that name.
	Timeout  string            `toml:"timeout"`
	Timeouts map[string]string `toml:"timeouts"`
	// Tries is how often a new root is tried; 0: until it is given up by hand.
	Tries *uint64 `toml:"tries"`
	// Disabled are names of checks that do not run, greenboot's too.
	Disabled []string `toml:"disabled"`
}

// loadConfig reads the configuration beneath a root. A file that is wrong is a
// problem and counts as absent: a misspelt line must not fail a boot.
func loadConfig(root string) (cfg config, problems []error) {
	cfg.Timeouts = map[string]string{}
	for _, name := range configFiles {
		text, err := readSmall(root, name)
		if err == nil && text != "" {
			err = cfg.merge(text)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
	text, err := readSmall(root, greenbootConfig)
	if err != nil {
		problems = append(problems, fmt.Errorf("%s: %w", greenbootConfig, err))
	}
	cfg.Disabled = append(cfg.Disabled, greenbootDisabled(text)...)
	return cfg, problems
}

// merge takes over what a file says, all of it or nothing.
func (c *config) merge(text string) error {
	var f config
	meta, err := toml.Decode(text, &f)
	if err != nil {
		return fault.New(fault.Corrupt, "", "not valid TOML: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fault.New(fault.Corrupt, "", "unknown key %q", unknown[0].String())
	}
	all := []string{f.Timeout}
	for _, v := range f.Timeouts {
		all = append(all, v)
	}
	for _, v := range all {
		if d, err := time.ParseDuration(v); v != "" && (err != nil || d <= 0) {
			return fault.New(fault.Corrupt, "", "%q is no time such as 90s or 5m", v)
		}
	}
	if f.Tries != nil {
		if *f.Tries > maxTries {
			return fault.New(fault.Corrupt, "", "tries = %d: it must be a number from 0 to %d", *f.Tries, maxTries)
		}
		c.Tries = f.Tries
	}
	if f.Timeout != "" {
		c.Timeout = f.Timeout
	}
	for name, v := range f.Timeouts {
		c.Timeouts[name] = v
	}
	c.Disabled = append(c.Disabled, f.Disabled...)
	return nil
}

func (c *config) timeout(name string) time.Duration {
	for _, v := range []string{c.Timeouts[name], c.Timeout} {
		if d, err := time.ParseDuration(v); err == nil {
			return d
		}
	}
	return DefaultTimeout
}

// Tries returns how often the machine whose root is the directory root has a boot
// loader try a new root.
func Tries(root string) uint64 {
	if cfg, _ := loadConfig(root); cfg.Tries != nil {
		return *cfg.Tries
	}
	return DefaultTries
}

var disabledForm = regexp.MustCompile(`(?m)^[ \t]*DISABLED_HEALTHCHECKS=\(([^)]*)\)`)

// greenbootDisabled returns the names in greenboot's list.
func greenbootDisabled(text string) (names []string) {
	m := disabledForm.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	for _, name := range strings.Fields(m[1]) {
		names = append(names, strings.Trim(name, `"',`))
	}
	return names
}

// readSmall reads a file beneath a root; "" where there is none.
func readSmall(root, name string) (string, error) {
	file := filepath.Join(root, name)
	st, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConfig {
		return "", fault.New(fault.Corrupt, "", "not a file of at most %d bytes", maxConfig)
	}
	text, err := os.ReadFile(file)
	return string(text), err
}
