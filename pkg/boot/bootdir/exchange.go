package bootdir

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Exchange puts the entry next of the directory dir beneath boot in the place of
// name and leaves the old one as next, in one change of the directory: nothing is
// freed by it, so that a reader who does not replay the journal finds the old
// entry or the new one whatever of the change has reached its place. Where there
// is no name yet, or the file system knows no exchange, it is a rename. It is not
// durable: see Sync.
func Exchange(boot *os.Root, dir, next, name string) error {
	d, err := boot.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	fd := int(d.Fd())
	err = unix.Renameat2(fd, next, fd, name, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = unix.Renameat(fd, next, fd, name)
	}
	if err != nil {
		return &fs.PathError{Op: "exchange", Path: dir + "/" + next, Err: err}
	}
	return nil
}
