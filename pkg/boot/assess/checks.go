package assess

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Check is an executable that judges a boot: it exits with 0 where all is well.
type Check struct {
	// Path is where the check is beneath the root, with a leading slash.
	Path     string
	Required bool
	// Shell runs it by bash whatever its mode, as greenboot does with *.sh.
	Shell    bool
	Disabled bool
	Timeout  time.Duration
}

// Where checks are. A file of kedge's in /etc takes the place of one of the
// same name in /usr/lib; a link to /dev/null switches that off. greenboot runs
// those of both directories.
const (
	imageDir = "/usr/lib/kedge/health.d"
	localDir = "/etc/kedge/health.d"
)

var greenbootDirs = []string{"/usr/lib/greenboot/check", "/etc/greenboot/check"}

// Find returns the checks beneath a root in the order in which they run: those
// that are required, kedge's first, then the wanted ones; each directory in the
// order of names. What cannot be read is in problems, the rest is found.
func Find(root string) (checks []Check, problems []error) {
	cfg, problems := loadConfig(root)
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	own := map[string]Check{}
	for _, dir := range []string{imageDir, localDir} {
		list, err := readDir(root, dir)
		note(err)
		for _, c := range list {
			c.Required = true
			own[path.Base(c.Path)] = c
		}
	}
	for _, c := range own {
		if target, err := os.Readlink(filepath.Join(root, c.Path)); err == nil && target == os.DevNull {
			c.Disabled = true
		}
		checks = append(checks, c)
	}
	slices.SortFunc(checks, func(a, b Check) int { return strings.Compare(path.Base(a.Path), path.Base(b.Path)) })
	for _, kind := range []string{"required.d", "wanted.d"} {
		for _, dir := range greenbootDirs {
			list, err := readDir(root, path.Join(dir, kind))
			note(err)
			for _, c := range list {
				c.Required, c.Shell = kind == "required.d", strings.HasSuffix(c.Path, ".sh")
				// greenboot passes over what is neither a script nor a program.
				if c.Shell || executable(filepath.Join(root, c.Path)) {
					checks = append(checks, c)
				}
			}
		}
	}
	for i := range checks {
		c := &checks[i]
		name := path.Base(c.Path)
		c.Timeout = cfg.timeout(name)
		c.Disabled = c.Disabled || slices.Contains(cfg.Disabled, name)
	}
	return checks, problems
}

// readDir lists a directory of checks in the order of their names, without
// hidden files and directories; none is fine.
func readDir(root, dir string) ([]Check, error) {
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the checks in %s: %w", dir, err)
	}
	var list []Check
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			list = append(list, Check{Path: path.Join(dir, e.Name())})
		}
	}
	return list, nil
}

func executable(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}
