package host

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

// DiffPackages compares the packages of two roots, named as for Diff, by their
// package databases. It reads nothing else of them.
//
// Errors: NotFound for a root without a database, Conflict for databases of two
// package managers.
func (h *Host) DiffPackages(ctx context.Context, a, b string) ([]v1.PackageDiff, error) {
	from, to, err := h.twoRoots(a, b)
	if err != nil {
		return nil, wrap("diff", err)
	}
	changes, err := h.diffPackages(ctx, from, to)
	return changes, wrap("diff", err)
}

func (h *Host) diffPackages(ctx context.Context, from, to string) ([]v1.PackageDiff, error) {
	x, err := h.packageDB(ctx, from)
	if err != nil {
		return nil, err
	}
	y, err := h.packageDB(ctx, to)
	if err != nil {
		return nil, err
	}
	return comparePackageDBs(x, y)
}

// packageDB reads a root's package database.
func (h *Host) packageDB(ctx context.Context, root string) (*pkgdb.Database, error) {
	image, err := h.imageFiles(ctx, root)
	if err != nil {
		return nil, err
	}
	return pkgdb.Read(image)
}

func comparePackageDBs(x, y *pkgdb.Database) ([]v1.PackageDiff, error) {
	changes, err := pkgdb.Diff(x, y)
	if err != nil {
		return nil, err
	}
	out := []v1.PackageDiff{}
	for _, c := range changes {
		out = append(out, v1.PackageDiff(c))
	}
	return out, nil
}

// storedPackageChanges are what changes in packages from a deployment to an
// image that the store has; nil where that is not known.
func (h *Host) storedPackageChanges(ctx context.Context, list deployments, from *deployment, digest string) []v1.PackageDiff {
	root := h.storedRoot(list, digest)
	if root == "" {
		return nil
	}
	changes, err := h.diffPackages(ctx, from.root, root)
	if err != nil {
		h.cfg.Log.Debug("the packages are not compared", "error", err)
	}
	return changes
}

// databaseStore is a lookStore that keeps the files of package databases, in
// files without a name, for as long as the process has them open.
type databaseStore struct {
	lookStore
	mu   sync.Mutex
	kept map[fstree.Digest]*os.File
}

func newDatabaseStore() *databaseStore {
	return &databaseStore{kept: make(map[fstree.Digest]*os.File)}
}

// databaseDirs are the names of the directories in which databases lie.
var databaseDirs = []string{"rpm", "dpkg", "status.d"}

// Begin implements ocibridge.Store.
func (s *databaseStore) Begin(string) (ocibridge.LayerWriter, error) {
	return databaseWriter{s: s}, nil
}

type databaseWriter struct {
	lookWriter
	s *databaseStore
}

// Put implements ocibridge.LayerWriter.
func (w databaseWriter) Put(name string, n *fstree.Inode, r io.Reader) (fstree.Digest, error) {
	if !slices.Contains(databaseDirs, path.Base(path.Dir(name))) {
		return w.lookWriter.Put(name, n, r)
	}
	f, err := os.CreateTemp("", "kedge-packages-")
	if err != nil {
		return fstree.Digest{}, err
	}
	err = os.Remove(f.Name())
	var d fstree.Digest
	if err == nil {
		d, err = w.lookWriter.Put(name, n, io.TeeReader(r, f))
	}
	if err != nil {
		return d, errors.Join(err, f.Close())
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.kept[d] != nil {
		return d, f.Close()
	}
	w.s.kept[d] = f
	return d, nil
}

// open opens what was kept.
func (s *databaseStore) open(n *fstree.Inode) (io.ReadCloser, error) {
	f := s.kept[n.Content]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return struct {
		io.Reader
		io.ReaderAt
		io.Closer
	}{io.NewSectionReader(f, 0, n.Size), f, io.NopCloser(nil)}, nil
}

func (s *databaseStore) close() {
	for _, f := range s.kept {
		f.Close()
	}
}

// planPackages says what changes in packages, where the target's database is
// known.
func (h *Host) planPackages(ctx context.Context, p *v1.Plan, from *deployment, target func() (*pkgdb.Database, error)) {
	if from == nil || !p.Changed {
		return
	}
	x, err := h.packageDB(ctx, from.root)
	if err == nil {
		var y *pkgdb.Database
		if y, err = target(); err == nil {
			p.PackageChanges, err = comparePackageDBs(x, y)
		}
	}
	if err != nil {
		h.cfg.Log.Debug("the packages are not compared", "error", err)
	}
}
