// Package pkgdb reads the package databases of images, RPM's and dpkg's, and
// says in which packages two of them differ. It runs no program and writes
// nothing: what it reads comes from images that nobody vouches for, so that
// every length is held against the file that it stands in, and no byte is
// looked at twice.
package pkgdb

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Kind is a family of package managers.
type Kind string

// The kinds of databases.
const (
	RPM  Kind = "rpm"
	Dpkg Kind = "dpkg"
)

// Package is an installed package.
type Package struct {
	Name string
	// Version is [EPOCH:]VERSION-RELEASE of an RPM, without an epoch of 0, and
	// what dpkg calls the version.
	Version string
	Arch    string
	// State is dpkg's word for a package that is not fully installed
	// ("half-configured"); "" for all others.
	State string
}

// Database is what a root has installed.
type Database struct {
	Kind     Kind
	Packages []Package // ordered by name, architecture and version
}

// maxDatabase is the most that a file of a database may have, in bytes. The RPM
// database of a desktop with 3,000 packages has 200 MB.
const maxDatabase = 1 << 30

// maxPackages is more than any distribution has.
const maxPackages = 200_000

var errTooMany = errors.New("it has more packages than any distribution")

// dpkgDirs are where images have dpkg's database.
var dpkgDirs = []string{"usr/lib/sysimage/dpkg", "var/lib/dpkg"}

// rpmDirs are where images have RPM's.
var rpmDirs = []string{"usr/lib/sysimage/rpm", "usr/share/rpm", "var/lib/rpm"}

// rpmFiles are RPM's database in its three formats, by the name it has there.
var rpmFiles = []struct {
	name string
	read func(f, wal *source, fn func(header []byte) error) error
}{
	{"rpmdb.sqlite", readSQLite},
	{"Packages.db", readNDB},
	{"Packages", readBDB},
}

// Read finds the database of a root and reads it. A root that has one of each
// kind (a Debian with rpm as a tool) is of the kind that has packages in it.
//
// Errors: NotFound where there is none, Corrupt where it is damaged.
func Read(root fs.FS) (*Database, error) {
	var empty *Database
	for _, read := range []func(fs.FS) (*Database, error){readDpkg, readRPM} {
		db, err := read(root)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case len(db.Packages) > 0:
			slices.SortFunc(db.Packages, comparePackages)
			return db, nil
		case empty == nil:
			empty = db
		}
	}
	if empty != nil {
		return empty, nil
	}
	return nil, fault.New(fault.NotFound, "images of distributions with rpm or dpkg have one",
		"there is no package database (looked in %s)", strings.Join(slices.Concat(rpmDirs, dpkgDirs), ", "))
}

func comparePackages(a, b Package) int {
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	if c := strings.Compare(a.Arch, b.Arch); c != 0 {
		return c
	}
	return strings.Compare(a.Version, b.Version)
}

func readRPM(root fs.FS) (*Database, error) {
	for _, dir := range rpmDirs {
		for _, format := range rpmFiles {
			name := path.Join(dir, format.name)
			f, err := open(root, name)
			if errors.Is(err, fs.ErrNotExist) || err == nil && f.size == 0 {
				continue
			}
			if err != nil {
				return nil, err
			}
			defer f.close()
			wal, err := open(root, name+"-wal")
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			if wal != nil {
				defer wal.close()
			}
			db := &Database{Kind: RPM}
			err = format.read(f, wal, func(header []byte) error {
				p, err := parseHeader(header)
				if err == nil && len(db.Packages) >= maxPackages {
					err = errTooMany
				}
				if err == nil && p.Name != "gpg-pubkey" { // keys that were imported, kept as packages
					db.Packages = append(db.Packages, p)
				}
				return err
			})
			if err != nil {
				return nil, fault.New(fault.Corrupt, "rpm --rebuilddb in the image's build makes it anew", "read the RPM database /%s: %w", name, err)
			}
			return db, nil
		}
	}
	return nil, fs.ErrNotExist
}

// source is a file of a database.
type source struct {
	io.ReaderAt
	size  int64
	close func()
}

// open opens a file of a root for reading here and there. One that can only be
// read from its beginning is copied to a file without a name.
func open(root fs.FS, name string) (*source, error) {
	opened, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	var f io.ReadCloser = opened
	done := func() { f.Close() }
	st, err := opened.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fault.New(fault.Corrupt, "", "/%s is no file", name)
	case st.Size() > maxDatabase:
		err = fault.New(fault.Corrupt, "", "/%s has %d bytes: more than any package database", name, st.Size())
	}
	if err != nil {
		done()
		return nil, err
	}
	if r, ok := opened.(io.ReaderAt); ok {
		return &source{r, st.Size(), done}, nil
	}
	defer done()
	tmp, err := os.CreateTemp("", "kedge-pkgdb-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(tmp.Name()); err != nil {
		tmp.Close()
		return nil, err
	}
	size, err := io.Copy(tmp, io.LimitReader(f, maxDatabase))
	if err != nil {
		tmp.Close()
		return nil, err
	}
	return &source{tmp, size, func() { tmp.Close() }}, nil
}

// read returns n bytes at off; asking for what the file does not have is an
// error before anything is allocated.
func (s *source) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > s.size || n > s.size-off {
		return nil, io.ErrUnexpectedEOF
	}
	b := make([]byte, n)
	_, err := s.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil // the last bytes
	}
	return b, err
}
