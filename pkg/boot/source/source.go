// Package source reads file trees that are copied from: directories of a file
// system, and those of an image that exists only as metadata and objects. No
// symlink is ever followed out of the directory that was opened first.
package source

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
)

// Dir is a directory to read from. Names are single path components. What is
// missing is fs.ErrNotExist.
type Dir interface {
	// Names returns the names in the directory in bytewise order.
	Names() ([]string, error)
	// Lstat returns an entry's inode; "." is the directory itself. An inode
	// number of 0 says nothing of whether two entries are one file.
	Lstat(name string) (*unix.Stat_t, error)
	// Sub opens a subdirectory; an error where it is none.
	Sub(name string) (Dir, error)
	// Open opens a regular file.
	Open(name string) (io.ReadCloser, error)
	// Readlink returns a symlink's target.
	Readlink(name string) (string, error)
	// Xattrs returns an entry's extended attributes in the order of their names;
	// "." is the directory itself.
	Xattrs(name string) ([]dirfd.Xattr, error)
	Close() error
}

// Disk reads a directory of a file system. Closing the result closes d.
func Disk(d *dirfd.Dir) Dir { return disk{d} }

type disk struct{ *dirfd.Dir }

func (d disk) Sub(name string) (Dir, error) {
	sub, err := d.Dir.Sub(name)
	if err != nil {
		return nil, err
	}
	return disk{sub}, nil
}

func (d disk) Open(name string) (io.ReadCloser, error) {
	f, err := d.OpenFile(name)
	if err != nil {
		return nil, err
	}
	return f, nil
}
