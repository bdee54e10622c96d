// Package atomicfile replaces small files so that a reader, or a machine that
// loses power, sees either the old content or the new one, whole.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/internal/dirfd"
)

// What the names of temporary files begin and end with.
const (
	prefix = ".kedge-"
	suffix = ".tmp"
)

// Write replaces the file name beneath root with data and the permissions
// perm. Order: write a temporary file beside it, fsync it, rename it over the
// name (the commit point), fsync the directory.
func Write(root *os.Root, name string, data []byte, perm os.FileMode) error {
	tmp := path.Join(path.Dir(name), prefix+rand.Text()[:12]+suffix)
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err = f.Write(data); err == nil {
		if err = f.Chmod(perm); err == nil {
			err = f.Sync()
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		_ = root.Remove(tmp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	return SyncDir(root, path.Dir(name))
}

// Sweep removes what writers of files in the directory dir left that died. No
// other may be at work there.
func Sweep(root *os.Root, dir string) error {
	names, err := dirfd.ReadNames(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
			err = errors.Join(err, root.Remove(path.Join(dir, name)))
		}
	}
	return err
}

// SyncDir makes renames and removals in directory dir beneath root durable.
func SyncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
