package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// bootRepo is the store's repository as package boot needs it.
type bootRepo ostreeStore

// Checkout implements boot.Repo: the files, and the composefs image of them.
func (r *bootRepo) Checkout(ctx context.Context, commit string, parent *os.Root, name string) error {
	sum, err := object.ParseChecksum(commit)
	if err != nil {
		return err
	}
	if err := r.repo.Checkout(ctx, sum, parent, name, ostree.CheckoutOptions{}); err != nil {
		return err
	}
	deployment, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer deployment.Close()
	if err := r.writeCFS(ctx, sum, deployment); err != nil {
		return fmt.Errorf("write %s: %w", cfsName, err)
	}
	return nil
}

// CommitVersion implements boot.Repo. An image's version stands in its config,
// where libostree does not look; both are asked.
func (r *bootRepo) CommitVersion(commit string) (string, error) {
	sum, err := object.ParseChecksum(commit)
	if err != nil {
		return "", err
	}
	c, err := r.repo.ReadCommit(sum)
	if err != nil {
		return "", err
	}
	v, _ := c.Metadata.Text("version")
	return v, nil
}

// Refs implements boot.Repo.
func (r *bootRepo) Refs(prefix string) (map[string]string, error) {
	refs, err := r.repo.Refs(prefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(refs))
	for name, sum := range refs {
		out[name] = sum.String()
	}
	return out, nil
}

// SetRefs implements boot.Repo.
func (r *bootRepo) SetRefs(ctx context.Context, refs map[string]string) error {
	txn, err := r.repo.Txn(ctx)
	if err != nil {
		return err
	}
	defer txn.Abort() //nolint:errcheck // after Commit it does nothing, and before it there is an error already
	for name, commit := range refs {
		var sum object.Checksum
		if commit != "" {
			if sum, err = object.ParseChecksum(commit); err != nil {
				return err
			}
		}
		if err := txn.SetRef(name, sum); err != nil {
			return err
		}
	}
	return txn.Commit()
}

// Tree implements store. The defaults of /etc have the place that they have in
// the image.
func (s *ostreeStore) Tree(ctx context.Context, root string) (*fstree.Tree, error) {
	t, err := s.commitTree(ctx, root)
	if err != nil {
		return nil, err
	}
	if usr := t.Root.Lookup("usr"); usr != nil && usr.Lookup("etc") != nil {
		t.Root.Set("etc", usr.Lookup("etc"))
		usr.Remove("etc")
		t.Freeze()
	}
	return t, nil
}

// commitTree reads the files of a commit.
func (s *ostreeStore) commitTree(ctx context.Context, root string) (*fstree.Tree, error) {
	sum, err := object.ParseChecksum(root)
	if err != nil {
		return nil, err
	}
	tree, err := s.repo.ReadTree(ctx, sum)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Corrupt, "run kedge fsck", "read the tree of %s: %w", root, err)
	}
	return tree, err
}

// OpenFile implements store.
func (s *ostreeStore) OpenFile(n *fstree.Inode) (io.ReadCloser, error) {
	return (*bootRepo)(s).open(n.Content)
}

// SameContent implements store. Handles are the checksums of objects, which cover
// owner, mode and attributes too.
func (s *ostreeStore) SameContent(a, b *fstree.Inode) (bool, error) {
	_, x, err := s.repo.OpenFile(object.Checksum(a.Content))
	if err != nil {
		return false, err
	}
	defer x.Close()
	_, y, err := s.repo.OpenFile(object.Checksum(b.Content))
	if err != nil {
		return false, err
	}
	defer y.Close()
	left, right := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(x, left)
		m, err2 := io.ReadFull(y, right)
		if !bytes.Equal(left[:n], right[:m]) {
			return false, nil
		}
		if err == nil && err2 == nil {
			continue
		}
		for _, e := range []error{err, err2} {
			if e != nil && !errors.Is(e, io.EOF) && !errors.Is(e, io.ErrUnexpectedEOF) {
				return false, e
			}
		}
		return true, nil
	}
}
