package ostree

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// ReadTree returns the tree of a commit, frozen. A regular file's content
// handle is the checksum of its object, not the sha256 of its bytes; the
// repository is the ContentSource for these handles (Contents). Files with the
// same object are one inode. Times are 0, as a checkout has them.
func (r *Repo) ReadTree(ctx context.Context, commit Checksum) (*fstree.Tree, error) {
	c, err := r.ReadCommit(commit)
	if err != nil {
		return nil, err
	}
	return r.ReadSubtree(ctx, c.Tree, c.Meta)
}

// ReadSubtree is ReadTree for any directory.
func (r *Repo) ReadSubtree(ctx context.Context, dirtree, dirmeta Checksum) (*fstree.Tree, error) {
	tr := &treeReaderState{repo: r, ctx: ctx, tree: fstree.New(), files: make(map[Checksum]*fstree.Inode)}
	root, err := tr.dir(dirtree, dirmeta, 0)
	if err != nil {
		return nil, err
	}
	tr.tree.Root = root
	tr.tree.Freeze()
	return tr.tree, nil
}

type treeReaderState struct {
	repo  *Repo
	ctx   context.Context
	tree  *fstree.Tree
	files map[Checksum]*fstree.Inode
	metas cached[Checksum, object.Meta]
}

func (t *treeReaderState) dir(dirtree, dirmeta Checksum, depth int) (*fstree.Inode, error) {
	if err := t.ctx.Err(); err != nil {
		return nil, err
	}
	if depth > maxDirDepth {
		return nil, fault.New(fault.Corrupt, "", "read the dirtree %s: %w", dirtree, errTooDeep)
	}
	files, dirs, err := t.repo.ReadDirtree(dirtree)
	if err != nil {
		return nil, err
	}
	meta, err := t.metas.get(dirmeta, func() (object.Meta, error) { return t.repo.ReadDirmeta(dirmeta) })
	if err != nil {
		return nil, err
	}
	n := fstree.NewDir(0)
	n.UID, n.GID, n.Mode, n.Xattrs = meta.UID, meta.GID, meta.Mode, t.tree.Intern(meta.Xattrs)
	for _, e := range files {
		child, err := t.file(e.Checksum)
		if err != nil {
			return nil, err
		}
		n.Set(e.Name, child)
	}
	for _, e := range dirs {
		child, err := t.dir(e.Tree, e.Meta, depth+1)
		if err != nil {
			return nil, err
		}
		n.Set(e.Name, child)
	}
	return n, nil
}

func (t *treeReaderState) file(sum Checksum) (*fstree.Inode, error) {
	if n := t.files[sum]; n != nil {
		return n, nil
	}
	m, known := t.repo.recentFile(sum)
	if !known {
		var rc io.ReadCloser
		var err error
		if m, rc, err = t.repo.OpenFile(sum); err != nil {
			return nil, err
		}
		_ = rc.Close()
	}
	n := &fstree.Inode{Mode: m.Mode, UID: m.UID, GID: m.GID, Target: m.Target, Xattrs: t.tree.Intern(m.Xattrs)}
	if m.Mode&unix.S_IFMT == unix.S_IFREG {
		n.Size, n.Content = m.Size, fstree.Digest(sum)
	}
	t.files[sum] = n
	return n, nil
}

// Contents returns a ContentSource whose handles are the checksums of file
// objects, as ReadTree gives them.
func (r *Repo) Contents() ContentSource { return repoContents{r} }

type repoContents struct{ r *Repo }

func (c repoContents) Open(d fstree.Digest) (io.ReadCloser, error) {
	_, rc, err := c.r.OpenFile(Checksum(d))
	if err != nil {
		return nil, fmt.Errorf("open the content of an object: %w", err)
	}
	return rc, nil
}
