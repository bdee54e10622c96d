package bootdir

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// ReplaceOnFAT gives a file its new content at one instant: the new one is written
// beside it and flushed, and takes over the name.
//
// On FAT a rename over a file changes the one directory slot that says where the
// content is: one sector. The old content's clusters are given free when nobody
// has the file open any more; it is held open here until the slot is on the
// disk, or a power cut could leave a name that leads to free clusters. The
// temporary name's slot is in the same sector, since these directories hold a
// handful of short names: it goes with the same write.
func ReplaceOnFAT(root *os.Root, name string, data []byte, noSync bool) error {
	dir := path.Dir(name)
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp := path.Join(dir, "KEDGE.TMP")
	if err := root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, bytes.NewReader(data)); err == nil && !noSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = root.Remove(tmp)
		if errors.Is(err, unix.ENOSPC) {
			err = fault.New(fault.NoSpace, "free space on the EFI system partition", "%w", err)
		}
		return err
	}
	if old, err := root.Open(name); err == nil {
		defer old.Close()
	}
	if err := root.Rename(tmp, name); err != nil {
		return err
	}
	if noSync {
		return nil
	}
	// Where the content is stands in the file's inode until that is written back:
	// an fsync of the directory does not do it.
	return Syncfs(root)
}
