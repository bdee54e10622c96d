package host

import (
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// treeFS is a tree as an fs.FS, contents and all. Symlinks are followed inside
// of it. What is no file and no directory is not there.
type treeFS struct {
	tree *fstree.Tree
	open func(*fstree.Inode) (io.ReadCloser, error)
}

// Open implements fs.FS.
func (t treeFS) Open(name string) (fs.File, error) {
	n, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	f := &treeFile{ReadCloser: io.NopCloser(strings.NewReader("")), info: treeInfo{path.Base(name), n}}
	if n.IsRegular() && n.Size > 0 {
		if f.ReadCloser, err = t.open(n); err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
	if r, ok := f.ReadCloser.(io.ReaderAt); ok {
		return struct {
			*treeFile
			io.ReaderAt
		}{f, r}, nil
	}
	return f, nil
}

// ReadDir implements fs.ReadDirFS.
func (t treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name)
	if err != nil {
		return nil, err
	}
	var out []fs.DirEntry
	for _, e := range n.Entries() {
		out = append(out, fs.FileInfoToDirEntry(treeInfo{e.Name, e.Inode}))
	}
	return out, nil
}

func (t treeFS) find(op, name string) (*fstree.Inode, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	n := t.tree.Resolve(name)
	if n == nil || !n.IsRegular() && !n.IsDir() {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return n, nil
}

type treeFile struct {
	io.ReadCloser
	info treeInfo
}

// Stat implements fs.File.
func (f *treeFile) Stat() (fs.FileInfo, error) { return f.info, nil }

type treeInfo struct {
	name string
	n    *fstree.Inode
}

func (i treeInfo) Name() string       { return i.name }
func (i treeInfo) Size() int64        { return i.n.Size }
func (i treeInfo) IsDir() bool        { return i.n.IsDir() }
func (i treeInfo) ModTime() time.Time { return time.Unix(i.n.MtimeSec, int64(i.n.MtimeNsec)) }
func (i treeInfo) Sys() any           { return i.n }

func (i treeInfo) Mode() fs.FileMode {
	mode := fs.FileMode(i.n.Mode & 0o777)
	switch {
	case i.n.IsDir():
		mode |= fs.ModeDir
	case !i.n.IsRegular():
		mode |= fs.ModeIrregular
	}
	return mode
}
