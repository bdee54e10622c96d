package source

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
)

// Over shows two directories as overlayfs does: what upper has hides what lower
// has, directories are united unless upper's is opaque, and a character device
// 0:0 in upper says that there is nothing. Closing the result closes both.
//
// Source: Documentation/filesystems/overlayfs.rst of Linux.
func Over(upper, lower Dir) Dir { return over{upper, lower} }

type over struct{ upper, lower Dir }

const (
	overlayPrefix = "trusted.overlay."
	// opaque is the attribute of a directory of which only the upper layer counts.
	opaque = overlayPrefix + "opaque"
)

// IsWhiteout reports whether an inode says that there is nothing.
func IsWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (o over) Close() error { return errors.Join(o.upper.Close(), o.lower.Close()) }

// of returns the layer that has an entry.
func (o over) of(name string) (Dir, error) {
	st, err := o.upper.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return o.lower, nil
	case err != nil:
		return nil, err
	case IsWhiteout(st):
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return o.upper, nil
}

func (o over) Names() ([]string, error) {
	upper, err := o.upper.Names()
	if err != nil {
		return nil, err
	}
	lower, err := o.lower.Names()
	if err != nil {
		return nil, err
	}
	names := append(upper, lower...)
	slices.Sort(names)
	var gone error
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		if _, found := slices.BinarySearch(upper, name); !found {
			return false
		}
		st, err := o.upper.Lstat(name)
		gone = errors.Join(gone, err)
		return err == nil && IsWhiteout(st)
	})
	return names, gone
}

func (o over) Lstat(name string) (*unix.Stat_t, error) {
	d, err := o.of(name)
	if err != nil {
		return nil, err
	}
	return d.Lstat(name)
}

func (o over) Sub(name string) (Dir, error) {
	d, err := o.of(name)
	if err != nil {
		return nil, err
	}
	sub, err := d.Sub(name)
	if err != nil || d == o.lower {
		return sub, err
	}
	xattrs, err := o.upper.Xattrs(name)
	if err != nil {
		_ = sub.Close()
		return nil, err
	}
	if slices.ContainsFunc(xattrs, func(x dirfd.Xattr) bool { return x.Name == opaque && x.Value == "y" }) {
		return over{sub, Empty}, nil
	}
	st, err := o.lower.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return over{sub, Empty}, nil
	case err != nil:
		_ = sub.Close()
		return nil, err
	}
	lower, err := o.lower.Sub(name)
	if err != nil {
		_ = sub.Close()
		return nil, err
	}
	return over{sub, lower}, nil
}

func (o over) Open(name string) (io.ReadCloser, error) {
	d, err := o.of(name)
	if err != nil {
		return nil, err
	}
	return d.Open(name)
}

func (o over) Readlink(name string) (string, error) {
	d, err := o.of(name)
	if err != nil {
		return "", err
	}
	return d.Readlink(name)
}

func (o over) Xattrs(name string) ([]dirfd.Xattr, error) {
	d, err := o.of(name)
	if err != nil {
		return nil, err
	}
	list, err := d.Xattrs(name)
	return slices.DeleteFunc(list, func(x dirfd.Xattr) bool { return strings.HasPrefix(x.Name, overlayPrefix) }), err
}

// Empty is a directory with nothing in it, which has no inode of its own.
var Empty Dir = empty{}

type empty struct{}

func (empty) none(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}
func (empty) Close() error                              { return nil }
func (empty) Names() ([]string, error)                  { return nil, nil }
func (e empty) Lstat(name string) (*unix.Stat_t, error) { return nil, e.none("stat", name) }
func (e empty) Sub(name string) (Dir, error)            { return nil, e.none("open directory", name) }
func (e empty) Open(name string) (io.ReadCloser, error) { return nil, e.none("open", name) }
func (e empty) Readlink(name string) (string, error)    { return "", e.none("read link", name) }
func (e empty) Xattrs(name string) ([]dirfd.Xattr, error) {
	return nil, e.none("list extended attributes of", name)
}

// IsOverlay reports whether a directory is one that Over shows.
func IsOverlay(d Dir) bool { _, ok := d.(over); return ok }
