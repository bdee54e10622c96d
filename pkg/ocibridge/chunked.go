package ocibridge

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// The layers of an ostree-chunked image are tars of a bare-split-xattrs
// repository below repoPrefix. A content object is a .file that follows the
// entry with its xattrs, of which there are three generations:
//
//	objects/…/C.file-xattrs-link   a regular file with the xattrs (since 2025-09)
//	objects/…/C.file-xattrs-link   a hard link to objects/…/X.file-xattrs
//	objects/…/C.file.xattrs        a hard link to xattrs/X
//
// where C is the content's checksum and X the sha256 of the xattrs, which a
// regular file of that name brought before. Everything outside the repository
// (directories, and a hard link for each path) repeats what the dirtrees say
// and is skipped.
const repoPrefix = "sysroot/ostree/repo/"

// The bounds of ostree-ext on what is read into memory, in bytes.
const (
	maxMetaObject  = 10 << 20
	maxXattrObject = 1 << 20
)

// objectDecoder reads a layer of an ostree-chunked image. Every object is
// checked against the checksum that names it.
type objectDecoder struct {
	ctx    context.Context
	store  putter
	budget *budget
	role   Role

	tree   *fstree.Tree // interns xattrs
	xattrs map[object.Checksum]splitXattrs
	next   *xattrRef
	out    *ObjectLayer
}

// splitXattrs are the xattrs of a content object as the layer has them.
type splitXattrs struct {
	x   *fstree.Xattrs
	raw []byte // a(ayay), where its order is not that of x; else nil
}

// xattrRef is the xattrs entry that the next content object must follow.
type xattrRef struct {
	of object.Checksum
	splitXattrs
}

// decodeObjects reads the tar of an OSTreeCommit or OSTreeChunk layer.
func decodeObjects(ctx context.Context, r io.Reader, store putter, b *budget, role Role) (*ObjectLayer, error) {
	d := &objectDecoder{
		ctx: ctx, store: store, budget: b, role: role,
		tree: fstree.New(), xattrs: make(map[object.Checksum]splitXattrs), out: &ObjectLayer{},
	}
	tr := tar.NewReader(r)
	last := ""
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return d.finish()
		}
		if err != nil {
			return nil, tarError(last, err)
		}
		last = h.Name
		if err := d.entry(h, tr); err != nil {
			return nil, err
		}
	}
}

func (d *objectDecoder) finish() (*ObjectLayer, error) {
	if d.next != nil {
		return nil, fault.New(fault.Corrupt, rebuildHint, "the content object %s is missing after its xattrs", d.next.of)
	}
	if d.role == OSTreeCommit && d.out.CommitData == nil {
		return nil, fault.New(fault.Corrupt, rebuildHint, "the layer has no commit")
	}
	return d.out, nil
}

func (d *objectDecoder) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, why := cleanPath(h.Name)
	if why != "" {
		return corrupt(h.Name, "%s", why)
	}
	path, inside := strings.CutPrefix(path, repoPrefix)
	if !inside || h.Typeflag == tar.TypeDir {
		return nil
	}
	if name, ok := strings.CutPrefix(path, "xattrs/"); ok {
		sum, err := object.ParseChecksum(name)
		if err != nil {
			return corrupt(h.Name, "%w", err)
		}
		if err := d.budget.entry(h.Name); err != nil {
			return err
		}
		return d.xattrObject(sum, h, r)
	}
	path, ok := strings.CutPrefix(path, "objects/")
	if !ok {
		return nil // config, refs
	}
	sum, kind, ok := parseObjectPath(path)
	if !ok {
		return corrupt(h.Name, "not the name of an ostree object")
	}
	if d.role == OSTreeCommit && d.out.CommitData == nil && kind != "commit" {
		return corrupt(h.Name, "the commit must come first")
	}
	if kind == "file-xattrs-link" || kind == "file.xattrs" {
		return d.xattrLink(sum, h, r)
	}
	if err := d.budget.entry(h.Name); err != nil {
		return err
	}
	switch kind {
	case "file":
		return d.file(sum, repoPrefix+"objects/"+path, h, r)
	case "file-xattrs":
		return d.xattrObject(sum, h, r)
	}
	return d.metadata(sum, kind, h, r)
}

// parseObjectPath splits "xx/62-hex.kind".
func parseObjectPath(path string) (sum object.Checksum, kind string, ok bool) {
	dir, name, ok := strings.Cut(path, "/")
	if !ok || len(dir) != 2 {
		return sum, "", false
	}
	rest, kind, ok := strings.Cut(name, ".")
	if !ok {
		return sum, "", false
	}
	sum, err := object.ParseChecksum(dir + rest)
	return sum, kind, err == nil
}

func (d *objectDecoder) metadata(sum object.Checksum, kind string, h *tar.Header, r io.Reader) error {
	if d.role == OSTreeChunk {
		return corrupt(h.Name, "a metadata object in a layer of content")
	}
	data, err := readSmall(h, r, maxMetaObject)
	if err != nil {
		return err
	}
	if got := object.Sum(data); kind != "commitmeta" && got != sum {
		return mismatch(h.Name, got)
	}
	switch kind {
	case "commit":
		if d.out.CommitData != nil {
			return corrupt(h.Name, "a second commit")
		}
		d.out.Commit, d.out.CommitData = sum, data
	case "commitmeta":
		if sum != d.out.Commit {
			return corrupt(h.Name, "detached metadata of another commit")
		}
		d.out.CommitMeta = data
	case "dirtree":
		d.out.Meta = append(d.out.Meta, MetaObject{object.TypeDirtree, sum, data})
	case "dirmeta":
		d.out.Meta = append(d.out.Meta, MetaObject{object.TypeDirmeta, sum, data})
	default:
		return corrupt(h.Name, "unknown kind of object")
	}
	return nil
}

// xattrObject reads xattrs that hard links will refer to.
func (d *objectDecoder) xattrObject(sum object.Checksum, h *tar.Header, r io.Reader) error {
	data, x, err := d.readXattrs(h, r)
	if err != nil {
		return err
	}
	if got := object.Sum(data); got != sum {
		return mismatch(h.Name, got)
	}
	d.xattrs[sum] = x
	return nil
}

func (d *objectDecoder) readXattrs(h *tar.Header, r io.Reader) (data []byte, x splitXattrs, err error) {
	if data, err = readSmall(h, r, maxXattrObject); err != nil {
		return nil, x, err
	}
	list, err := object.DecodeXattrs(data)
	if err != nil {
		return nil, x, corrupt(h.Name, "%w", err)
	}
	x.x = d.tree.Intern(list)
	if len(data) > 0 && !bytes.Equal(data, object.EncodeXattrs(x.x)) {
		x.raw = data
	}
	return data, x, nil
}

// xattrLink reads the entry that says which xattrs the next content object has.
func (d *objectDecoder) xattrLink(sum object.Checksum, h *tar.Header, r io.Reader) error {
	if d.next != nil {
		return corrupt(h.Name, "the content object %s is missing after its xattrs", d.next.of)
	}
	if h.Typeflag != tar.TypeLink {
		_, x, err := d.readXattrs(h, r)
		if err != nil {
			return err
		}
		d.next = &xattrRef{sum, x}
		return nil
	}
	target, err := linkedXattrs(h.Linkname)
	if err != nil {
		return corrupt(h.Name, "hard link to %q: %w", h.Linkname, err)
	}
	x, ok := d.xattrs[target]
	if !ok {
		return corrupt(h.Name, "hard link to xattrs %s, which the layer has not brought", target)
	}
	d.next = &xattrRef{sum, x}
	return nil
}

// linkedXattrs reads the checksum of xattrs from a hard link's target, whose
// directories the importers of ostree-ext do not look at either: "…/xattrs/64
// hex" or "…/xx/62 hex.file-xattrs".
func linkedXattrs(target string) (object.Checksum, error) {
	elems := strings.Split(target, "/")
	last := elems[len(elems)-1]
	if hex, ok := strings.CutSuffix(last, ".file-xattrs"); ok && len(elems) > 1 {
		return object.ParseChecksum(elems[len(elems)-2] + hex)
	}
	return object.ParseChecksum(last)
}

// file reads a content object and checks its checksum, which covers owner,
// mode, xattrs and content.
func (d *objectDecoder) file(sum object.Checksum, path string, h *tar.Header, r io.Reader) error {
	if d.next == nil || d.next.of != sum {
		return corrupt(h.Name, "the object does not follow its xattrs")
	}
	raw := d.next.raw
	n := &fstree.Inode{Xattrs: d.next.x}
	d.next = nil
	var err error
	if n.UID, err = id32(h, "user", h.Uid); err != nil {
		return err
	}
	if n.GID, err = id32(h, "group", h.Gid); err != nil {
		return err
	}
	sums := objectHash{sorted: sha256.New()}
	if raw != nil {
		sums.stored = sha256.New()
	}
	switch h.Typeflag {
	case tar.TypeReg:
		n.Mode = unix.S_IFREG | uint32(h.Mode)&0o7777
		n.Size = h.Size
		sums.header(n, raw)
		if err := d.budget.file(path, n.Size); err != nil {
			return err
		}
		n.Content, err = putContent(d.store, path, n, &contentReader{ctx: d.ctx, r: io.TeeReader(r, &sums)})
	case tar.TypeSymlink:
		n.Mode = unix.S_IFLNK | 0o777
		n.Target = h.Linkname
		if err := object.CheckTarget(n.Target); err != nil || n.Target == "" || len(n.Target) > maxPath {
			return corrupt(h.Name, "a symbolic link's target must be UTF-8 of 1 to %d bytes", maxPath)
		}
		sums.header(n, raw)
	default:
		return corrupt(h.Name, "tar entry type %q for a content object", h.Typeflag)
	}
	if err != nil {
		return err
	}
	unsorted, ok := sums.match(sum)
	if !ok {
		return mismatch(h.Name, object.Checksum(sums.sorted.Sum(nil)))
	}
	d.out.Files = append(d.out.Files, FileObject{Checksum: sum, Inode: n, Unsorted: unsorted})
	return nil
}

// objectHash computes a content object's checksum. libostree sorts the xattrs
// in it since 2024.10 and took them in the order of the commit before, so that
// objects whose stored order is another one can have either checksum.
type objectHash struct {
	sorted hash.Hash
	stored hash.Hash // nil where the order is the same
}

func (h *objectHash) header(n *fstree.Inode, raw []byte) {
	h.sorted.Write(object.FileHeader(n.UID, n.GID, n.Mode, n.Target, n.Xattrs))
	if h.stored != nil {
		h.stored.Write(object.RawFileHeader(n.UID, n.GID, n.Mode, n.Target, raw))
	}
}

func (h *objectHash) Write(p []byte) (int, error) {
	h.sorted.Write(p)
	if h.stored != nil {
		h.stored.Write(p)
	}
	return len(p), nil
}

// match tells whether sum is right, and whether only for the stored order.
func (h *objectHash) match(sum object.Checksum) (unsorted, ok bool) {
	if object.Checksum(h.sorted.Sum(nil)) == sum {
		return false, true
	}
	return true, h.stored != nil && object.Checksum(h.stored.Sum(nil)) == sum
}

func readSmall(h *tar.Header, r io.Reader, limit int64) ([]byte, error) {
	if h.Typeflag != tar.TypeReg {
		return nil, corrupt(h.Name, "tar entry type %q, expected a regular file", h.Typeflag)
	}
	if h.Size > limit {
		return nil, corrupt(h.Name, "%d bytes are above the limit of %d", h.Size, limit)
	}
	data := make([]byte, h.Size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, tarError(h.Name, err)
	}
	return data, nil
}

func mismatch(name string, got object.Checksum) error {
	return fault.New(fault.Untrusted, rebuildHint, "object %q has the checksum %s", name, got)
}
