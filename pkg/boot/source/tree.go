package source

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Opener opens a regular file of a tree.
type Opener func(ctx context.Context, n *fstree.Inode) (io.ReadCloser, error)

// Image is the tree of an image with what opens its files. It is an fs.FS and
// has the ReadFile of an os.Root: symlinks are followed within the tree.
type Image struct {
	ctx  context.Context
	tree *fstree.Tree
	open Opener
}

// NewImage returns the image of a tree. Reading its files ends with ctx.
func NewImage(ctx context.Context, tree *fstree.Tree, open Opener) *Image {
	return &Image{ctx: ctx, tree: tree, open: open}
}

// Lookup returns the inode at a path with every symlink followed, or nil.
func (i *Image) Lookup(name string) *fstree.Inode { return i.tree.Resolve(name) }

// Dir opens the directory at a path.
func (i *Image) Dir(name string) (Dir, error) {
	n := i.tree.Resolve(name)
	if n == nil {
		return nil, &fs.PathError{Op: "open directory", Path: name, Err: fs.ErrNotExist}
	}
	if !n.IsDir() {
		return nil, &fs.PathError{Op: "open directory", Path: name, Err: unix.ENOTDIR}
	}
	return &treeDir{image: i, node: n, path: name}, nil
}

// OpenInode opens a regular file of the tree.
func (i *Image) OpenInode(n *fstree.Inode) (io.ReadCloser, error) { return i.open(i.ctx, n) }

// maxRead bounds what ReadFile takes into memory.
const maxRead = 64 << 20

// ReadFile returns the bytes of a file of at most 64 MiB.
func (i *Image) ReadFile(name string) ([]byte, error) {
	n, err := i.find(name)
	if err != nil {
		return nil, err
	}
	if !n.IsRegular() || n.Size > maxRead {
		return nil, fault.New(fault.Corrupt, "the image has to be repaired", "%s is not a regular file of at most %d bytes", name, maxRead)
	}
	r, err := i.OpenInode(n)
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, n.Size+1))
	if err == nil && int64(len(data)) != n.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	return data, nil
}

// find returns the inode at a path as fs.FS spells them.
func (i *Image) find(name string) (*fstree.Inode, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	n := i.tree.Resolve(name)
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return n, nil
}

// Open implements fs.FS. What is opened is an io.ReaderAt where the store's file
// is one.
func (i *Image) Open(name string) (fs.File, error) {
	n, err := i.find(name)
	if err != nil {
		return nil, err
	}
	f := &file{info: info{path.Base(name), n}}
	if !n.IsRegular() {
		return f, nil
	}
	if f.ReadCloser, err = i.OpenInode(n); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if at, ok := f.ReadCloser.(io.ReaderAt); ok {
		return struct {
			*file
			io.ReaderAt
		}{f, at}, nil
	}
	return f, nil
}

// file is an open file or directory of an image.
type file struct {
	io.ReadCloser // nil for what is no regular file
	info          info
	read          int // directories: entries returned
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }

func (f *file) Read(p []byte) (int, error) {
	if f.ReadCloser == nil {
		return 0, &fs.PathError{Op: "read", Path: f.info.name, Err: unix.EISDIR}
	}
	return f.ReadCloser.Read(p)
}

func (f *file) Close() error {
	if f.ReadCloser == nil {
		return nil
	}
	return f.ReadCloser.Close()
}

// ReadDir implements fs.ReadDirFile.
func (f *file) ReadDir(n int) ([]fs.DirEntry, error) {
	entries := f.info.node.Entries()[f.read:]
	if n > 0 {
		if len(entries) == 0 {
			return nil, io.EOF
		}
		entries = entries[:min(n, len(entries))]
	}
	f.read += len(entries)
	list := make([]fs.DirEntry, len(entries))
	for i, e := range entries {
		list[i] = fs.FileInfoToDirEntry(info{e.Name, e.Inode})
	}
	return list, nil
}

// info is an inode as fs sees it.
type info struct {
	name string
	node *fstree.Inode
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.node.Size }
func (i info) ModTime() time.Time { return time.Unix(i.node.MtimeSec, int64(i.node.MtimeNsec)) }
func (i info) IsDir() bool        { return i.node.IsDir() }
func (i info) Sys() any           { return i.node }

func (i info) Mode() fs.FileMode {
	mode := fs.FileMode(i.node.Mode & 0o777)
	switch i.node.Type() {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	default:
		mode |= fs.ModeIrregular
	}
	return mode
}

// treeDir is a directory of an image.
type treeDir struct {
	image *Image
	node  *fstree.Inode
	path  string // for messages only
}

func (d *treeDir) Close() error { return nil }

func (d *treeDir) Names() ([]string, error) {
	entries := d.node.Entries()
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	return names, nil
}

func (d *treeDir) child(op, name string) (*fstree.Inode, error) {
	n := d.node
	if name != "." {
		n = d.node.Lookup(name)
	}
	if n == nil {
		return nil, &fs.PathError{Op: op, Path: path.Join(d.path, name), Err: fs.ErrNotExist}
	}
	return n, nil
}

func (d *treeDir) Lstat(name string) (*unix.Stat_t, error) {
	n, err := d.child("stat", name)
	if err != nil {
		return nil, err
	}
	size := n.Size
	if n.IsSymlink() {
		size = int64(len(n.Target))
	}
	return &unix.Stat_t{
		Mode: n.Mode, Uid: n.UID, Gid: n.GID, Size: size, Rdev: n.Rdev,
		Mtim: unix.Timespec{Sec: n.MtimeSec, Nsec: int64(n.MtimeNsec)},
	}, nil
}

func (d *treeDir) Sub(name string) (Dir, error) {
	n, err := d.child("open directory", name)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, &fs.PathError{Op: "open directory", Path: path.Join(d.path, name), Err: unix.ENOTDIR}
	}
	return &treeDir{image: d.image, node: n, path: path.Join(d.path, name)}, nil
}

func (d *treeDir) Open(name string) (io.ReadCloser, error) {
	n, err := d.child("open", name)
	if err != nil {
		return nil, err
	}
	if !n.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path.Join(d.path, name), Err: unix.EINVAL}
	}
	r, err := d.image.OpenInode(n)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(d.path, name), Err: err}
	}
	return r, nil
}

func (d *treeDir) Readlink(name string) (string, error) {
	n, err := d.child("read link", name)
	if err != nil {
		return "", err
	}
	if !n.IsSymlink() {
		return "", &fs.PathError{Op: "read link", Path: path.Join(d.path, name), Err: unix.EINVAL}
	}
	return n.Target, nil
}

// Xattrs leaves out those that only an overlay of the image reads. An image has
// labels without the final NUL with which the kernel shows and keeps them.
func (d *treeDir) Xattrs(name string) ([]dirfd.Xattr, error) {
	n, err := d.child("list extended attributes of", name)
	if err != nil {
		return nil, err
	}
	var list []dirfd.Xattr
	for _, x := range n.Xattrs.All() {
		if strings.HasPrefix(x.Name, overlayPrefix) {
			continue
		}
		value := x.Value
		if x.Name == dirfd.SELinux && !strings.HasSuffix(value, "\x00") {
			value += "\x00"
		}
		list = append(list, dirfd.Xattr{Name: x.Name, Value: value})
	}
	return list, nil
}
