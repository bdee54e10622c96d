package composefs

import (
	"context"
	"crypto/sha256"
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

	repo     *Repo
	contents map[fstree.Digest]*Inode
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
	f := &Files{Tree: fstree.New(), repo: r, contents: make(map[fstree.Digest]*Inode)}
	links := make(map[*Inode]*fstree.Inode)
	f.Tree.Root = f.inode(t.Root)
	f.fill(f.Tree.Root, t.Root, links)
	f.Tree.Freeze()
	return f, nil
}

func (f *Files) fill(dir *fstree.Inode, from *Inode, links map[*Inode]*fstree.Inode) {
	for _, e := range from.Entries {
		child := links[e.Inode]
		if child == nil {
			child = f.inode(e.Inode)
			if e.Inode.Nlink > 1 && !e.Inode.IsDir() {
				child.Linked = true
				links[e.Inode] = child
			}
		}
		dir.Set(e.Name, child)
		if e.Inode.IsDir() {
			f.fill(child, e.Inode, links)
		}
	}
}

func (f *Files) inode(n *Inode) *fstree.Inode {
	out := &fstree.Inode{Mode: n.Mode, UID: n.UID, GID: n.GID, MtimeSec: n.MtimeSec, MtimeNsec: n.MtimeNsec, Rdev: n.Rdev, Xattrs: n.Xattrs}
	switch {
	case n.IsDir():
		out = fstree.NewDir(n.Mode & 0o7777)
		out.UID, out.GID, out.MtimeSec, out.MtimeNsec, out.Xattrs = n.UID, n.GID, n.MtimeSec, n.MtimeNsec, n.Xattrs
	case n.IsSymlink():
		out.Target = n.Payload
	case n.IsRegular():
		out.Size = int64(n.Size)
		switch {
		case n.Size == 0:
			out.Content = fstree.EmptyDigest
		case n.External():
			out.Content = sha256.Sum256([]byte(n.Digest))
			f.contents[out.Content] = n
		default:
			out.Content = sha256.Sum256([]byte(n.Content))
			f.contents[out.Content] = n
		}
	}
	return out
}

// Open opens a regular file of the tree.
func (f *Files) Open(n *fstree.Inode) (io.ReadCloser, error) {
	if n.Size == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	in := f.contents[n.Content]
	switch {
	case in == nil:
		return nil, fault.New(fault.NotFound, "", "content %s: %w", n.Content, fs.ErrNotExist)
	case !in.External():
		return io.NopCloser(strings.NewReader(in.Content)), nil
	case in.Digest == "":
		return nil, fault.New(fault.Conflict, "deploy the image again", "the image names no digest for the object %s", in.Payload)
	}
	return f.repo.openObject(in.Digest)
}

// HasLayer reports whether the layer with a diffID is in the repository, and
// what kedge keeps of it in state (ImportOptions.State) too, so that an import
// does not fetch it.
func (r *Repo) HasLayer(state *os.Root, diffID string) bool {
	name, err := layerFileName(diffID)
	if err != nil {
		return false
	}
	if _, err := state.Stat(layersDir + "/" + name); err != nil {
		return false
	}
	_, err = r.linked("streams/" + layerStream(diffID))
	return err == nil
}

// HasImage reports whether the repository has an image of that digest.
func (r *Repo) HasImage(d Digest) bool {
	_, err := r.linked("images/" + d.String())
	return err == nil
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
