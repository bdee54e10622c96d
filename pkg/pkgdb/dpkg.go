package pkgdb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// readDpkg reads dpkg's status file, and the files of a directory status.d,
// which images without dpkg have (one for each package, all of them installed).
func readDpkg(root fs.FS) (*Database, error) {
	for _, dir := range dpkgDirs {
		db := &Database{Kind: Dpkg}
		found := false
		f, err := root.Open(path.Join(dir, "status"))
		if err == nil {
			found = true
			defer f.Close()
			db.Packages, err = ReadStatus(f)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Corrupt, "", "read dpkg's database /%s: %w", dir, err)
		}
		each, err := readStatusDir(root, path.Join(dir, "status.d"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Corrupt, "", "read dpkg's database /%s: %w", dir, err)
		}
		if found || err == nil {
			db.Packages = append(db.Packages, each...)
			return db, nil
		}
	}
	return nil, fs.ErrNotExist
}

func readStatusDir(root fs.FS, dir string) ([]Package, error) {
	entries, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil, err
	}
	var list []Package
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".md5sums") || e.IsDir() {
			continue
		}
		f, err := root.Open(path.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := stanzas(f, func(s stanza) { list = append(list, s.Package) }); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ReadStatus reads dpkg's status file (deb822(5), dpkg-query(1)): the packages
// of which more than configuration files is there, in the file's order.
func ReadStatus(r io.Reader) ([]Package, error) {
	var list []Package
	err := stanzas(r, func(s stanza) {
		switch s.state {
		case "", "not-installed", "config-files":
			return
		case "installed":
		default:
			s.State = s.state
		}
		list = append(list, s.Package)
	})
	return list, err
}

// stanza is a paragraph of a status file.
type stanza struct {
	Package
	state string // the last word of Status
}

// maxField is the longest line that is read: a list of dependencies may be long.
const maxField = 4 << 20

func stanzas(r io.Reader, fn func(stanza)) error {
	var s stanza
	n := 0
	flush := func() error {
		if s.Name != "" {
			fn(s)
			n++
		}
		s = stanza{}
		if n > maxPackages {
			return errTooMany
		}
		return nil
	}
	in := bufio.NewScanner(io.LimitReader(r, maxDatabase))
	in.Buffer(make([]byte, 64<<10), maxField)
	for in.Scan() {
		if strings.TrimSpace(in.Text()) == "" {
			if err := flush(); err != nil {
				return err
			}
			continue
		}
		key, value, _ := strings.Cut(in.Text(), ":")
		value = strings.TrimSpace(value)
		if slices.Contains([]string{"Package", "Version", "Architecture", "Status"}, key) && len(value) > maxText {
			return fmt.Errorf("a %s of %d bytes", key, len(value))
		}
		switch key {
		case "Package":
			s.Name = value
		case "Version":
			s.Version = value
		case "Architecture":
			s.Arch = value
		case "Status":
			s.state = value[strings.LastIndexByte(value, ' ')+1:]
		}
	}
	return errors.Join(in.Err(), flush())
}
