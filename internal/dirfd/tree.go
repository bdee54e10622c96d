package dirfd

import "golang.org/x/sys/unix"

// CopyTree copies a directory of another one with everything in it, as CopyAny does.
func (d *Dir) CopyTree(from *Dir, name string) error {
	if err := d.Mkdir(name); err != nil {
		return err
	}
	src, err := from.Sub(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := d.Sub(name)
	if err != nil {
		return err
	}
	defer dst.Close()
	names, err := src.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := dst.CopyAny(src, n); err != nil {
			return err
		}
	}
	st, err := src.Lstat(".")
	if err != nil {
		return err
	}
	return dst.SetMeta(".", st.Uid, st.Gid, st.Mode, nil)
}

// CopyAny copies an entry, a directory with everything in it, synced and without
// extended attributes; sockets, fifos and devices are left out.
func (d *Dir) CopyAny(from *Dir, name string) error {
	st, err := from.Lstat(name)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return d.CopyTree(from, name)
	case unix.S_IFREG:
		return d.CopyFile(from, name, name, Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Mtime: st.Mtim, Sync: true})
	case unix.S_IFLNK:
		return d.copySymlink(from, name)
	}
	return nil
}

func (d *Dir) copySymlink(from *Dir, name string) error {
	target, err := from.Readlink(name)
	if err != nil {
		return err
	}
	if err := d.Remove(name); err != nil {
		return err
	}
	return d.Symlink(target, name)
}
