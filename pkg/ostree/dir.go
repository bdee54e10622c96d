package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// Owner is the owner that a directory's files are committed with.
type Owner struct{ UID, GID uint32 }

// DirOptions change what is read of a directory, as the options of ostree
// commit do.
type DirOptions struct {
	Owner                *Owner // --owner-uid, --owner-gid
	CanonicalPermissions bool   // --canonical-permissions: 0755, root, no xattrs
	SkipXattrs           bool   // --no-xattrs
}

// WriteDir stages the content of a directory on disk, as ostree commit
// --tree=dir does, and returns the root's dirtree and dirmeta. Devices, fifos
// and sockets are an error (ErrFileType).
func (t *Txn) WriteDir(dir *os.File, opts DirOptions) (dirtree, dirmeta Checksum, err error) {
	s := &dirScanner{opts: opts, tree: fstree.New(), paths: make(map[*fstree.Inode]string)}
	if s.tree.Root, err = s.scan(dir, ".", 0); err != nil {
		return dirtree, dirmeta, fmt.Errorf("read the directory %s: %w", dir.Name(), err)
	}
	s.tree.Freeze()
	return t.WriteTreeFunc(s.tree, func(n *fstree.Inode) (Checksum, error) {
		if !n.IsRegular() {
			return t.PutFile(n, nil)
		}
		f, _, err := openFileAt(dir, s.paths[n])
		if err != nil {
			return Checksum{}, err
		}
		defer f.Close()
		return t.PutFile(n, f)
	})
}

type dirScanner struct {
	opts  DirOptions
	tree  *fstree.Tree
	paths map[*fstree.Inode]string
}

func (s *dirScanner) scan(dir *os.File, path string, depth int) (*fstree.Inode, error) {
	if depth > maxDirDepth {
		return nil, errTooDeep
	}
	d, err := openDirAt(dir, path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return nil, err
	}
	n := fstree.NewDir(0)
	xattrs, err := fdXattrs(int(d.Fd()))
	if err != nil {
		return nil, err
	}
	s.meta(n, &st, xattrs)
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		p := path + "/" + name
		if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: p, Err: err}
		}
		var child *fstree.Inode
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			child, err = s.scan(dir, p, depth+1)
		} else {
			child, err = s.file(d, name, p, &st)
		}
		if err != nil {
			return nil, err
		}
		n.Set(name, child)
	}
	return n, nil
}

func (s *dirScanner) file(d *os.File, name, path string, st *unix.Stat_t) (*fstree.Inode, error) {
	xattrs, err := linkXattrs(d, name)
	if err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	n := &fstree.Inode{}
	s.meta(n, st, xattrs)
	switch {
	case n.IsSymlink():
		n.Target, err = readLinkAt(d, name)
	case n.IsRegular():
		n.Size = st.Size
		s.paths[n] = path
	default:
		err = fmt.Errorf("%s: %w", path, ErrFileType)
	}
	return n, err
}

func (s *dirScanner) meta(n *fstree.Inode, st *unix.Stat_t, xattrs []fstree.Xattr) {
	n.UID, n.GID, n.Mode = st.Uid, st.Gid, st.Mode
	if !s.opts.SkipXattrs && !s.opts.CanonicalPermissions {
		n.Xattrs = s.tree.Intern(xattrs)
	}
	if s.opts.CanonicalPermissions {
		n.UID, n.GID = 0, 0
		switch {
		case n.IsDir():
			n.Mode = unix.S_IFDIR | 0o755
		case n.IsRegular():
			n.Mode &= unix.S_IFREG | 0o755
		}
	}
	if o := s.opts.Owner; o != nil {
		n.UID, n.GID = o.UID, o.GID
	}
}
