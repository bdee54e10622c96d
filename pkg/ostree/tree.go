package ostree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// maxDirDepth bounds the nesting of directories, written or read. PATH_MAX
// leaves room for no more than this.
const maxDirDepth = 2048

// ContentSource gives the contents of a tree's regular files by their handle.
// It is used from several goroutines.
type ContentSource interface {
	Open(d fstree.Digest) (io.ReadCloser, error)
}

// WriteTree stages everything in a frozen tree and returns the root's dirtree
// and dirmeta.
func (t *Txn) WriteTree(tree *fstree.Tree, src ContentSource) (dirtree, dirmeta Checksum, err error) {
	return t.WriteTreeFunc(tree, func(n *fstree.Inode) (Checksum, error) { return t.PutFrom(n, src) })
}

// PutFrom stages the file object of n, a regular file with its content in src
// or a symlink.
func (t *Txn) PutFrom(n *fstree.Inode, src ContentSource) (sum Checksum, err error) {
	if !n.IsRegular() || n.Size == 0 {
		return t.PutFile(n, nil)
	}
	r, err := src.Open(n.Content)
	if err != nil {
		return sum, fmt.Errorf("open the content %s: %w", n.Content, err)
	}
	defer r.Close()
	return t.PutFile(n, r)
}

// WriteTreeFunc is WriteTree with the caller's own way to stage a file object:
// put is called once for each inode that is not a directory, from several
// goroutines, and returns the object's checksum.
func (t *Txn) WriteTreeFunc(tree *fstree.Tree, put func(*fstree.Inode) (Checksum, error)) (dirtree, dirmeta Checksum, err error) {
	w := &treeWriter{txn: t, sums: make(map[*fstree.Inode]*Checksum), metas: make(map[dirKey]Checksum)}
	if err := w.putFiles(tree, put); err != nil {
		return dirtree, dirmeta, err
	}
	return w.dir(tree.Root, 0)
}

type treeWriter struct {
	txn   *Txn
	sums  map[*fstree.Inode]*Checksum
	metas map[dirKey]Checksum
}

type dirKey struct {
	uid, gid, mode uint32
	xattrs         *fstree.Xattrs
}

// putFiles stages every file. A fixed number of workers takes them from one
// list, so that the order on disk is about that of the tree.
func (w *treeWriter) putFiles(tree *fstree.Tree, put func(*fstree.Inode) (Checksum, error)) error {
	type job struct {
		path string
		n    *fstree.Inode
		sum  *Checksum
	}
	g, ctx := errgroup.WithContext(w.txn.ctx)
	jobs := make(chan job, 64)
	for range workers() {
		g.Go(func() error {
			for j := range jobs {
				sum, err := put(j.n)
				if err != nil {
					return fmt.Errorf("store /%s: %w", j.path, err)
				}
				*j.sum = sum
			}
			return nil
		})
	}
	err := tree.Walk(func(path string, n *fstree.Inode) error {
		if n.IsDir() || w.sums[n] != nil {
			return nil
		}
		sum := new(Checksum)
		w.sums[n] = sum
		select {
		case jobs <- job{path, n, sum}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(jobs)
	if werr := g.Wait(); werr != nil {
		return werr
	}
	return err
}

func workers() int { return max(2, runtime.GOMAXPROCS(0)) }

var errTooDeep = errors.New("directories are nested too deep")

func (w *treeWriter) dir(n *fstree.Inode, depth int) (dirtree, dirmeta Checksum, err error) {
	if depth > maxDirDepth {
		return dirtree, dirmeta, errTooDeep
	}
	var files []object.FileEntry
	var dirs []object.DirEntry
	for _, e := range n.Entries() {
		if err := object.CheckName(e.Name); err != nil {
			return dirtree, dirmeta, err
		}
		if !e.Inode.IsDir() {
			files = append(files, object.FileEntry{Name: e.Name, Checksum: *w.sums[e.Inode]})
			continue
		}
		tree, meta, err := w.dir(e.Inode, depth+1)
		if err != nil {
			return dirtree, dirmeta, err
		}
		dirs = append(dirs, object.DirEntry{Name: e.Name, Tree: tree, Meta: meta})
	}
	if dirtree, err = w.txn.PutMeta(object.TypeDirtree, object.EncodeDirtree(files, dirs)); err != nil {
		return dirtree, dirmeta, err
	}
	key := dirKey{n.UID, n.GID, n.Mode, n.Xattrs}
	if sum, ok := w.metas[key]; ok {
		return dirtree, sum, nil
	}
	dirmeta, err = w.txn.PutMeta(object.TypeDirmeta, object.EncodeDirmeta(n.UID, n.GID, n.Mode, w.txn.repo.xattrs(n)))
	w.metas[key] = dirmeta
	return dirtree, dirmeta, err
}

// cached keeps what was computed for a key. Two that ask for it at the same
// time may both compute it.
type cached[K comparable, V any] struct {
	mu sync.Mutex
	m  map[K]V
}

func (o *cached[K, V]) get(k K, compute func() (V, error)) (V, error) {
	o.mu.Lock()
	v, ok := o.m[k]
	o.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := compute()
	if err != nil {
		return v, err
	}
	o.mu.Lock()
	if o.m == nil {
		o.m = make(map[K]V)
	}
	o.m[k] = v
	o.mu.Unlock()
	return v, nil
}
