package builder

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// OSTreeDigest computes the root of what as the ostree backend has it. Its
// digest is that of the composefs image of the tree, with fs-verity digests of
// all files, which libostree calls ostree.composefs.digest.v0: it stands for
// every object of the commit, and not for what the commit says of the image.
//
// A file's checksum covers its label, which the policy in the merged image
// decides: contents wait in a temporary file without a name until it is known.
func OSTreeDigest(ctx context.Context, what string, o DigestOptions) (*Root, error) {
	r, err := ostreeDigest(ctx, what, o)
	if err != nil {
		return nil, fmt.Errorf("compute the ostree digest of %s: %w", what, err)
	}
	return r, nil
}

func ostreeDigest(ctx context.Context, what string, o DigestOptions) (*Root, error) {
	if o.Raw || o.KeepUser || o.SHA256 {
		return nil, fault.New(fault.Usage, "leave it out", "the ostree backend has one form of a root")
	}
	read := readWithContents
	if isDir(what) {
		read = readDirAgain
	}
	tree, opts, done, err := read(ctx, what, o)
	if err != nil {
		return nil, err
	}
	defer done()
	p, err := ostree.Prepare(tree, opts)
	if err != nil {
		return nil, err
	}
	files, err := objectsOf(ctx, p.Tree, opts.Open)
	if err != nil {
		return nil, err
	}
	root := &Root{}
	root.Tree, err = composefs.FromOSTree(p.Tree, func(_ string, n *fstree.Inode) (composefs.OSTreeFile, error) { return files[n], nil })
	if err != nil {
		return nil, err
	}
	info, err := composefs.WriteImage(io.Discard, root.Tree, composefs.Default)
	root.Digest = info.Digest
	return root, err
}

// readDirAgain reads a directory; files are opened once more where they are.
func readDirAgain(ctx context.Context, path string, o DigestOptions) (*fstree.Tree, ostree.PrepareOptions, func(), error) {
	none := ostree.PrepareOptions{}
	tree, err := readDir(ctx, composefs.NewMeter(composefs.SHA256), path, o)
	if err != nil {
		return nil, none, nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, none, nil, err
	}
	at := make(map[fstree.Digest]string)
	_ = tree.Walk(func(name string, n *fstree.Inode) error {
		if n.IsRegular() {
			at[n.Content] = name
		}
		return nil
	})
	open := func(d fstree.Digest) (io.ReadCloser, error) { return root.Open(at[d]) }
	return tree, ostree.PrepareOptions{Open: open}, func() { _ = root.Close() }, nil
}

func readWithContents(ctx context.Context, image string, o DigestOptions) (*fstree.Tree, ostree.PrepareOptions, func(), error) {
	none := ostree.PrepareOptions{}
	src, err := openImage(ctx, image, o)
	if err != nil {
		return nil, none, nil, err
	}
	defer src.Close()
	c, err := newContents()
	if err != nil {
		return nil, none, nil, err
	}
	img, err := src.Import(ctx, c)
	if err != nil {
		c.close()
		return nil, none, nil, err
	}
	opts := ostree.PrepareOptions{Open: c.OpenContent}
	for _, l := range img.Layers {
		if l.Role == ocibridge.Derived {
			opts.Derived = true
			opts.Layers = append(opts.Layers, l.Layer)
		}
	}
	if img.OSTree != nil {
		opts.Base = img.OSTree.Tree
	}
	return img.Tree, opts, c.close, nil
}

// objectsOf computes the objects of a tree's files, several at once.
func objectsOf(ctx context.Context, t *fstree.Tree, open ostree.OpenFunc) (map[*fstree.Inode]composefs.OSTreeFile, error) {
	out := make(map[*fstree.Inode]composefs.OSTreeFile)
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	seen := make(map[*fstree.Inode]bool)
	_ = t.Walk(func(name string, n *fstree.Inode) error {
		if !n.IsRegular() || n.Size == 0 || seen[n] {
			return nil
		}
		seen[n] = true
		g.Go(func() error {
			f, err := objectOf(ctx, n, open)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			out[n] = f
			return nil
		})
		return ctx.Err()
	})
	return out, g.Wait()
}

func objectOf(ctx context.Context, n *fstree.Inode, open ostree.OpenFunc) (f composefs.OSTreeFile, err error) {
	if err := ctx.Err(); err != nil {
		return f, err
	}
	r, err := open(n.Content)
	if err != nil {
		return f, err
	}
	defer r.Close()
	sum, v := sha256.New(), fsverity.New(fsverity.SHA256)
	sum.Write(object.FileHeader(n.UID, n.GID, n.Mode, "", n.Xattrs))
	size, err := io.Copy(io.MultiWriter(sum, v), r)
	if err == nil && size != n.Size {
		err = fault.New(fault.Conflict, "run the command again", "it changed while it was read")
	}
	sum.Sum(f.Checksum[:0])
	f.Verity = v.Sum()
	return f, err
}

// contents keeps what layers bring in one temporary file. It is an
// ocibridge.Store without layers.
type contents struct {
	file *os.File

	mu   sync.Mutex
	end  int64
	part map[fstree.Digest]span
}

type span struct{ at, size int64 }

func newContents() (*contents, error) {
	f, err := os.CreateTemp("", "kedge-digest-")
	if err != nil {
		return nil, err
	}
	// It goes with this process, whatever becomes of it.
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &contents{file: f, part: make(map[fstree.Digest]span)}, nil
}

func (c *contents) close() { _ = c.file.Close() }

// LayerIndex implements ocibridge.Store.
func (c *contents) LayerIndex(string) ([]byte, error) { return nil, fs.ErrNotExist }

// Begin implements ocibridge.Store.
func (c *contents) Begin(string) (ocibridge.LayerWriter, error) { return c, nil }

// Put implements ocibridge.LayerWriter.
func (c *contents) Put(_ string, meta *fstree.Inode, r io.Reader) (d fstree.Digest, err error) {
	c.mu.Lock()
	s := span{c.end, meta.Size}
	c.end += meta.Size
	c.mu.Unlock()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, io.NewOffsetWriter(c.file, s.at)), io.LimitReader(r, meta.Size+1))
	if err != nil {
		return d, err
	}
	if n != meta.Size {
		return d, fault.New(fault.Corrupt, "", "%d bytes came of %d", n, meta.Size)
	}
	sum.Sum(d[:0])
	c.mu.Lock()
	defer c.mu.Unlock()
	c.part[d] = s
	return d, nil
}

// Commit implements ocibridge.LayerWriter.
func (c *contents) Commit([]byte) error { return nil }

// Abort implements ocibridge.LayerWriter.
func (c *contents) Abort() {}

// OpenContent implements ocibridge.Store.
func (c *contents) OpenContent(d fstree.Digest) (io.ReadCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.part[d]
	if !ok && d != fstree.EmptyDigest {
		return nil, fault.New(fault.NotFound, "", "content %s: %w", d, fs.ErrNotExist)
	}
	return io.NopCloser(io.NewSectionReader(c.file, s.at, s.size)), nil
}
