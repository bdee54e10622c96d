package ocibridge

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// putter is the part of LayerWriter that decoding needs.
type putter interface {
	Put(path string, meta *fstree.Inode, r io.Reader) (fstree.Digest, error)
}

// layerDecoder reads a layer's tar. Everything in it is hostile: names are
// cleaned (cleanPath) before anything looks at them, counts and lengths are
// taken from a budget before anything is allocated for them, and file contents
// only ever pass through to the store.
type layerDecoder struct {
	ctx    context.Context
	store  putter
	budget *budget

	tree    *fstree.Tree // interns xattrs
	entries fstree.LayerBuilder
	links   []hardlink // in order
}

// hardlink is an entry that is a hard link.
type hardlink struct {
	at       int // among the entries
	path, to string
}

// decodeLayer reads a layer's tar from r up to its end mark and puts the
// contents into the store. What follows the end mark is left unread.
func decodeLayer(ctx context.Context, r io.Reader, store putter, b *budget) (*fstree.Layer, error) {
	d := &layerDecoder{ctx: ctx, store: store, budget: b, tree: fstree.New()}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return d.ordered(), nil
		}
		if err != nil {
			return nil, tarError(d.entries.Last(), err)
		}
		if err := d.entry(h, tr); err != nil {
			return nil, err
		}
	}
}

// tarError is what to say of an error that came out of the tar reader: an
// error of the stream below it is passed on.
func tarError(after string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("the layer's tar ends early, after entry %.256q", after)
	}
	return damaged("the layer's tar cannot be read after entry %.256q: %w", after, err)
}

func (d *layerDecoder) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // git and others leave a comment there
	}
	if err := d.budget.entry(h.Name); err != nil {
		return err
	}
	path, why := cleanPath(h.Name)
	if why != "" {
		return corrupt(h.Name, "%s", why)
	}
	m, of, why := parseMark(path)
	if why != "" {
		return corrupt(h.Name, "%s", why)
	}
	switch m {
	case ignored:
		return nil
	case opaque:
		d.entries.Add(fstree.Entry{Kind: fstree.Opaque, Path: of})
		return nil
	case whiteout:
		d.entries.Add(fstree.Entry{Kind: fstree.Whiteout, Path: of})
		return nil
	}
	if h.Typeflag == tar.TypeLink {
		return d.hardlink(path, h)
	}
	n, err := d.inode(h)
	if err != nil {
		return err
	}
	if path == "" && !n.IsDir() {
		return corrupt(h.Name, "the root must be a directory")
	}
	if n.IsRegular() {
		if n.Content, err = d.content(path, n, content); err != nil {
			return err
		}
	}
	d.entries.Add(fstree.Entry{Kind: fstree.Add, Path: path, Inode: n})
	return nil
}

func (d *layerDecoder) hardlink(path string, h *tar.Header) error {
	target, why := cleanLink(h.Linkname)
	switch {
	case why != "":
		return corrupt(h.Name, "hard link to %q: %s", h.Linkname, why)
	case target == "":
		return corrupt(h.Name, "hard link to nothing")
	case path == "":
		return corrupt(h.Name, "the root must be a directory")
	}
	d.links = append(d.links, hardlink{d.entries.Len(), path, target})
	d.entries.Add(fstree.Entry{Kind: fstree.Hardlink, Path: path, LinkTo: target})
	return nil
}

// ordered returns the layer with each hard link behind its target where both are
// in this layer. Some builders list a file's names in the order of a directory
// walk, whichever carries the content.
func (d *layerDecoder) ordered() *fstree.Layer {
	layer := d.entries.Layer()
	at := d.linked(layer)
	moved := make(map[int]bool)
	var late []fstree.Entry
	for _, l := range d.links {
		to := d.target(at, l.to)
		if t := at[to]; t.last < 0 || t.first < l.at && at[l.to].first < l.at {
			continue // in order, or a file of a lower layer, or none: Apply tells
		}
		moved[l.at] = true
		if at[l.path].last == l.at {
			late = append(late, fstree.Entry{Kind: fstree.Hardlink, Path: l.path, LinkTo: to})
		}
	}
	if len(moved) == 0 {
		return layer
	}
	var out fstree.LayerBuilder
	i := 0
	for e := range layer.All() {
		if !moved[i] {
			out.Add(e)
		}
		i++
	}
	for _, e := range late {
		out.Add(e)
	}
	return out.Layer()
}

// span is the first and last entry of a path; -1: none. link is which of the
// hard links the last one is, or -1.
type span struct{ first, last, link int }

// linked finds the entries of the paths that hard links have to do with.
func (d *layerDecoder) linked(layer *fstree.Layer) map[string]span {
	at := make(map[string]span, 2*len(d.links))
	for _, l := range d.links {
		at[l.path] = span{-1, -1, -1}
		at[l.to] = span{-1, -1, -1}
	}
	if len(at) == 0 {
		return at
	}
	i, link := 0, -1
	for e := range layer.All() {
		if e.Kind == fstree.Hardlink {
			link++
		}
		if s, ok := at[e.Path]; ok && (e.Kind == fstree.Add || e.Kind == fstree.Hardlink) {
			if s.first < 0 {
				s.first = i
			}
			if s.last, s.link = i, -1; e.Kind == fstree.Hardlink {
				s.link = link
			}
			at[e.Path] = s
		}
		i++
	}
	return at
}

// target follows a chain of hard links to the entry with the content.
func (d *layerDecoder) target(at map[string]span, path string) string {
	const maxChain = 100
	for range maxChain {
		s := at[path]
		if s.last < 0 || s.link < 0 {
			break
		}
		path = d.links[s.link].to
	}
	return path
}

func (d *layerDecoder) content(path string, n *fstree.Inode, r io.Reader) (fstree.Digest, error) {
	if err := d.budget.file(path, n.Size); err != nil {
		return fstree.Digest{}, err
	}
	return putContent(d.store, path, n, &contentReader{ctx: d.ctx, r: r})
}

// putContent stores a file's bytes, and tells a stream that cannot be read from
// a store that cannot write.
func putContent(store putter, path string, n *fstree.Inode, c *contentReader) (fstree.Digest, error) {
	sum, err := store.Put(path, n, c)
	switch {
	case c.err != nil && !errors.Is(c.err, io.EOF):
		return sum, tarError(path, c.err)
	case err != nil:
		return sum, fmt.Errorf("storing %q: %w", path, err)
	case c.n != n.Size:
		return sum, fault.New(fault.Internal, "", "the store read %d of the %d bytes of %q", c.n, n.Size, path)
	}
	return sum, nil
}

// contentReader remembers how reading ended, to tell a bad stream from a store
// that cannot write.
type contentReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error
}

func (c *contentReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		c.err = err
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

var fileTypes = map[byte]uint32{
	tar.TypeReg:       unix.S_IFREG,
	tar.TypeCont:      unix.S_IFREG,
	tar.TypeGNUSparse: unix.S_IFREG,
	tar.TypeDir:       unix.S_IFDIR,
	tar.TypeSymlink:   unix.S_IFLNK,
	tar.TypeChar:      unix.S_IFCHR,
	tar.TypeBlock:     unix.S_IFBLK,
	tar.TypeFifo:      unix.S_IFIFO,
}

// inode makes the inode of a tar header, without content.
func (d *layerDecoder) inode(h *tar.Header) (*fstree.Inode, error) {
	typ, ok := fileTypes[h.Typeflag]
	if !ok {
		return nil, corrupt(h.Name, "unknown tar entry type %q", h.Typeflag)
	}
	uid, err := id32(h, "user", h.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := id32(h, "group", h.Gid)
	if err != nil {
		return nil, err
	}
	n := &fstree.Inode{}
	if typ == unix.S_IFDIR {
		n = fstree.NewDir(0)
	}
	n.Mode = typ | uint32(h.Mode)&0o7777
	n.UID, n.GID = uid, gid
	n.MtimeSec, n.MtimeNsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	switch typ {
	case unix.S_IFREG:
		if h.Size < 0 {
			return nil, corrupt(h.Name, "its size is negative")
		}
		n.Size = h.Size
	case unix.S_IFLNK:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, corrupt(h.Name, "a symbolic link's target must have 1 to %d bytes and no NUL", maxPath)
		}
		n.Target = h.Linkname
	case unix.S_IFCHR, unix.S_IFBLK:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return nil, corrupt(h.Name, "device number %d:%d", h.Devmajor, h.Devminor)
		}
		n.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	n.Xattrs, err = d.xattrs(h)
	return n, err
}

// id32 narrows a user or group id. 2³²-1 is chown's "leave it" and no owner.
func id32(h *tar.Header, what string, id int) (uint32, error) {
	if id < 0 || id >= math.MaxUint32 {
		return 0, corrupt(h.Name, "%s id %d", what, id)
	}
	return uint32(id), nil
}

// paxXattr is star's and GNU tar's prefix for extended attributes in PAX
// records, and the one that image-spec names.
const paxXattr = "SCHILY.xattr."

func (d *layerDecoder) xattrs(h *tar.Header) (*fstree.Xattrs, error) {
	var list []fstree.Xattr
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if name == "" || len(name) > maxXattrName || len(value) > maxXattrValue {
			return nil, corrupt(h.Name, "extended attribute %.64q of %d bytes: Linux allows names of 1 to 255 and values of up to 65536 bytes", name, len(value))
		}
		if total += len(name) + 1; total > maxXattrList {
			return nil, corrupt(h.Name, "its extended attributes' names have more than %d bytes", maxXattrList)
		}
		list = append(list, fstree.Xattr{Name: name, Value: value})
	}
	return d.tree.Intern(list), nil
}
