package composefs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Files is an image of a repository as the tree that other packages speak. Its
// content handles are the repository's own: equal ones stand for equal bytes,
// and no other image has to have the same.
type Files struct {
	Tree *fstree.Tree

	repo  *Repo
	place func(fstree.Digest) (place, error)
}

// Files reads an image. One that the repository does not have is fs.ErrNotExist.
func (r *Repo) Files(ctx context.Context, d Digest) (*Files, error) {
	f, err := r.files(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("read image %s in the composefs repository: %w", d, err)
	}
	return f, nil
}

func (r *Repo) files(ctx context.Context, d Digest) (*Files, error) {
	if _, err := r.linked("images/" + d.String()); err != nil {
		return nil, err
	}
	data, err := r.readObject(d, maxImage)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t, _, err := ReadImage(data)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "run kedge fsck --repair", "%w", err)
	}
	c := &plainer{places: make(map[fstree.Digest]place), links: make(map[*Inode]*fstree.Inode)}
	f := &Files{Tree: fstree.New(), repo: r, place: c.place}
	f.Tree.Root = c.inode(t.Root)
	c.fill(f.Tree.Root, t.Root)
	f.Tree.Freeze()
	return f, nil
}

// plainer turns the tree of an image into an fstree.Tree.
type plainer struct {
	places map[fstree.Digest]place
	links  map[*Inode]*fstree.Inode
}

func (c *plainer) place(d fstree.Digest) (place, error) {
	p, ok := c.places[d]
	if !ok {
		return p, noContent(d)
	}
	return p, nil
}

func noContent(d fstree.Digest) error {
	return fault.New(fault.NotFound, "", "content %s: %w", d, fs.ErrNotExist)
}

func (c *plainer) fill(dir *fstree.Inode, from *Inode) {
	for _, e := range from.Entries {
		child := c.links[e.Inode]
		if child == nil {
			child = c.inode(e.Inode)
			if e.Inode.Nlink > 1 && !e.Inode.IsDir() {
				child.Linked = true
				c.links[e.Inode] = child
			}
		}
		dir.Set(e.Name, child)
		if e.Inode.IsDir() {
			c.fill(child, e.Inode)
		}
	}
}

func (c *plainer) inode(n *Inode) *fstree.Inode {
	out := &fstree.Inode{Mode: n.Mode, UID: n.UID, GID: n.GID, MtimeSec: n.MtimeSec, MtimeNsec: n.MtimeNsec, Rdev: n.Rdev, Xattrs: n.Xattrs}
	switch {
	case n.IsDir():
		out = fstree.NewDir(n.Mode & 0o7777)
		out.UID, out.GID, out.MtimeSec, out.MtimeNsec, out.Xattrs = n.UID, n.GID, n.MtimeSec, n.MtimeNsec, n.Xattrs
	case n.IsSymlink():
		out.Target = n.Payload
	case n.IsRegular() && n.Size == 0:
		out.Content = fstree.EmptyDigest
	case n.IsRegular():
		out.Size = int64(n.Size)
		p := place{object: n.Digest, inline: n.Content, size: int64(n.Size)}
		// As an import has it.
		if out.Content = handleOf(n.Digest); n.Digest == "" {
			out.Content = sha256.Sum256([]byte(n.Content))
		}
		c.places[out.Content] = p
	}
	return out
}

// filesOf is a tree of this import as Files, which may be used longer than it.
func (im *Import) filesOf(tree *fstree.Tree) *Files {
	return &Files{Tree: tree, repo: im.repo, place: im.place}
}

// Open opens a regular file of the tree.
func (f *Files) Open(n *fstree.Inode) (io.ReadCloser, error) {
	if n.Size == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	p, err := f.place(n.Content)
	switch {
	case err != nil:
		return nil, err
	case p.object != "":
		return f.repo.openObject(p.object)
	case p.inline != "":
		return io.NopCloser(strings.NewReader(p.inline)), nil
	}
	return nil, fault.New(fault.Conflict, "deploy the image again", "the image names no digest for a file of %d bytes", n.Size)
}

// HasLayer reports whether the layer with a diffID is in the repository.
func (r *Repo) HasLayer(diffID string) bool {
	_, err := r.linked("streams/" + layerStream(diffID))
	return err == nil
}

// OpenArchive reads the tar of a layer that the repository has; one that it has
// not, or of which an object counts as damaged, is fs.ErrNotExist. It implements
// ocibridge.Archives.
func (im *Import) OpenArchive(diffID string) (io.ReadCloser, error) {
	d, err := im.repo.linked("streams/" + layerStream(diffID))
	if err != nil {
		return nil, err
	}
	s, err := im.repo.readStream(d, typeLayer)
	if err != nil {
		return nil, err
	}
	for _, o := range append(s.Objects, d) {
		if im.sink.damage[o] {
			return nil, fmt.Errorf("object %s: %w", o, fs.ErrNotExist)
		}
	}
	return s.Original(im.openObject)
}

// HasImage reports whether the repository has an image of that digest.
func (r *Repo) HasImage(d Digest) bool {
	_, err := r.linked("images/" + d.String())
	return err == nil
}

// OpenImage opens an image to mount it. One that the repository does not have is
// fs.ErrNotExist.
func (r *Repo) OpenImage(d Digest) (*os.File, error) {
	if _, err := r.linked("images/" + d.String()); err != nil {
		return nil, err
	}
	return r.openObject(d)
}

// OpenObject opens an object. One that the repository does not have is
// fs.ErrNotExist.
func (r *Repo) OpenObject(d Digest) (*os.File, error) { return r.openObject(d) }

// OpenObject opens a content that this import, or a layer of which it returned the
// index, brought as an object, and names that. One that a layer holds itself is
// fs.ErrNotExist.
func (im *Import) OpenObject(d fstree.Digest) (*os.File, Digest, error) {
	p, err := im.place(d)
	if err != nil || p.object == "" {
		return nil, "", errors.Join(err, noContent(d))
	}
	f, err := im.objectFile(p.object)
	return f, p.object, err
}

// Damaged returns those of the objects that are missing, or not what their name
// says.
func (r *Repo) Damaged(ctx context.Context, list []Digest) ([]Digest, error) {
	var out []Digest
	for _, d := range list {
		c := &checker{repo: r}
		if err := c.object(ctx, d, objectPath(d)); err != nil {
			return nil, err
		}
		if c.out.Objects == 0 || len(c.out.Damage) > 0 {
			out = append(out, d)
		}
	}
	return out, nil
}
