package ocibridge_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// layout is a generation of how chunk layers hold xattrs.
type layout int

const (
	regularFiles layout = iota // since 2025-09
	hardLinks                  // before
	xattrsDir                  // the first
)

// chunkWriter writes the layers of an ostree-chunked image, as the reference
// describes them, for what the real ostree-ext of the fixtures cannot be made
// to write: the oldest layout, and layers that are wrong.
type chunkWriter struct {
	t      *testing.T
	layout layout
	tree   *fstree.Tree // interns xattrs
	buf    bytes.Buffer
	w      *tar.Writer
	seen   map[object.Checksum]bool
}

func newChunk(t *testing.T, l layout) *chunkWriter {
	c := &chunkWriter{t: t, layout: l, tree: fstree.New(), seen: make(map[object.Checksum]bool)}
	c.w = tar.NewWriter(&c.buf)
	c.entry(tar.Header{Name: "sysroot/ostree/repo/objects/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	c.entry(tar.Header{Name: "sysroot/ostree/repo/config", Mode: 0o644}, []byte("[core]\nrepo_version=1\nmode=bare-split-xattrs\n"))
	return c
}

func (c *chunkWriter) entry(h tar.Header, content []byte) {
	c.t.Helper()
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	h.Size, h.Format = int64(len(content)), tar.FormatGNU
	if err := c.w.WriteHeader(&h); err != nil {
		c.t.Fatal(err)
	}
	c.w.Write(content)
}

func (c *chunkWriter) blob() blob {
	c.w.Close()
	return gzipLayer(c.buf.Bytes())
}

const objectsDir = "sysroot/ostree/repo/objects/"

func objectPath(sum object.Checksum, kind string) string {
	return fmt.Sprintf("%s%x/%x.%s", objectsDir, sum[:1], sum[1:], kind)
}

// meta writes a metadata object and returns its checksum.
func (c *chunkWriter) meta(kind string, data []byte) object.Checksum {
	sum := object.Sum(data)
	c.entry(tar.Header{Name: objectPath(sum, kind), Mode: 0o644}, data)
	return sum
}

// xattrs writes a file's xattrs in the writer's layout.
func (c *chunkWriter) xattrs(of object.Checksum, raw []byte) {
	sum := object.Sum(raw)
	switch c.layout {
	case regularFiles:
		c.entry(tar.Header{Name: objectPath(of, "file-xattrs-link"), Mode: 0o644}, raw)
	case hardLinks:
		if !c.seen[sum] {
			c.entry(tar.Header{Name: objectPath(sum, "file-xattrs"), Mode: 0o644}, raw)
		}
		c.entry(tar.Header{Name: objectPath(of, "file-xattrs-link"), Typeflag: tar.TypeLink, Linkname: "../../" + objectPath(sum, "file-xattrs")[len(objectsDir):]}, nil)
	case xattrsDir:
		if !c.seen[sum] {
			c.entry(tar.Header{Name: "sysroot/ostree/repo/xattrs/" + sum.String(), Mode: 0o644}, raw)
		}
		c.entry(tar.Header{Name: objectPath(of, "file.xattrs"), Typeflag: tar.TypeLink, Linkname: "../../xattrs/" + sum.String()}, nil)
	}
	c.seen[sum] = true
}

// file writes a content object with its xattrs, and the path that links to it.
func (c *chunkWriter) file(path, content string, mode uint32, raw []byte) object.Checksum {
	header := object.RawFileHeader(7, 8, unix.S_IFREG|mode, "", raw)
	sum := object.Sum(append(header, content...))
	c.xattrs(sum, raw)
	c.entry(tar.Header{Name: objectPath(sum, "file"), Mode: int64(mode), Uid: 7, Gid: 8}, []byte(content))
	c.entry(tar.Header{Name: path, Typeflag: tar.TypeLink, Linkname: objectPath(sum, "file")}, nil)
	return sum
}

func (c *chunkWriter) symlink(target string, raw []byte) object.Checksum {
	sum := object.Sum(object.RawFileHeader(0, 0, unix.S_IFLNK|0o777, target, raw))
	c.xattrs(sum, raw)
	c.entry(tar.Header{Name: objectPath(sum, "file"), Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil)
	return sum
}

func (c *chunkWriter) label(name string) []byte {
	return object.EncodeXattrs(c.tree.Intern([]fstree.Xattr{{Name: "security.selinux", Value: name + "\x00"}}))
}

// commitOf writes the commit of a tree with /usr/{files…} and /usr/etc.
func commitOf(t *testing.T, c *chunkWriter, files []object.FileEntry) object.Checksum {
	t.Helper()
	var later bytes.Buffer // the commit comes first and is known last
	inner := *c
	inner.w = tar.NewWriter(&later)
	c.w.Flush()
	x := c.tree.Intern([]fstree.Xattr{{Name: "security.selinux", Value: "dir_t\x00"}})
	meta := inner.meta("dirmeta", object.EncodeDirmeta(0, 0, unix.S_IFDIR|0o755, x))
	empty := inner.meta("dirtree", object.EncodeDirtree(nil, nil))
	usr := inner.meta("dirtree", object.EncodeDirtree(files, []object.DirEntry{{Name: "etc", Tree: empty, Meta: meta}}))
	root := inner.meta("dirtree", object.EncodeDirtree(nil, []object.DirEntry{{Name: "sysroot", Tree: empty, Meta: meta}, {Name: "usr", Tree: usr, Meta: meta}}))
	inner.w.Flush()
	commit := &object.Commit{Subject: "generated", Time: 1, Tree: root, Meta: meta}
	sum := c.meta("commit", commit.Encode())
	c.w.Flush()
	if _, err := io.Copy(&c.buf, &later); err != nil {
		t.Fatal(err)
	}
	return sum
}
