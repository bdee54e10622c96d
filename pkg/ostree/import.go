package ostree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// ImportOptions says what an import works with.
type ImportOptions struct {
	// State is kedge's directory beside the repository, /ostree/kedge of a
	// sysroot; layer indexes are kept in layers/ below it. With nil none are.
	State *os.Root
	// Speculative is the policy that will probably label the new root: the
	// booted or the previous root's. With nil it is that which the image brings,
	// from where it has passed by, and no labels until then.
	Speculative Labeler
	// EncodeLayer makes the index of a layer that ostree-ext imported; its
	// codec is ocibridge's. With nil such layers are fetched again.
	EncodeLayer func(*ForeignLayer) ([]byte, error)
	// Version is written into commits as ostree.importer.version.
	Version string
	// Now is the time of an image that does not say its own; nil is time.Now.
	Now func() time.Time
}

// Import takes the layers of one OCI image in and writes the commits that
// ostree-ext would write for it. It implements ocibridge.Store; that part of it
// is safe for concurrent use.
//
// Contents are staged in the repository's tmp directory while they stream by, as
// the objects that they are expected to be. Nothing outside of tmp changes before WriteContainer, whose
// commit point is the transaction's: the image's ref, written last. A process
// that was killed leaves its whole layers to the next one of the same boot.
type Import struct {
	ctx   context.Context
	repo  *Repo
	opts  ImportOptions
	stage *contentStage
	// present is what the repository had when the layers came; WriteContainer
	// looks again.
	present *objectNames

	// Rehashed is the number of contents that WriteContainer read again
	// because their labels were not those that were expected.
	Rehashed int
	// Warning is what went wrong after WriteContainer had succeeded.
	Warning error

	guessed atomic.Pointer[Labeler] // the policy that a layer brought

	mu      sync.Mutex
	known   records                 // what is known of contents, staged or in the repository
	settled *objectSet              // what is known of them at the end, in place of known
	layers  map[string]*savedLayer  // by diffID: those of this import
	full    bool                    // the file system was full
	foreign map[string]foreignImage // by diffID: layers of the repository's images; nil before it is needed
}

// NewImport opens the repository for one import. Only one at a time can be
// open; a second gets an error of kind Busy.
func (r *Repo) NewImport(ctx context.Context, opts ImportOptions) (*Import, error) {
	if err := r.checkWritable(); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.State != nil {
		if err := opts.State.MkdirAll(layersDir, 0o755); err != nil {
			return nil, fmt.Errorf("make the directory of layer indexes: %w", err)
		}
	}
	stage, err := r.openContentStage()
	if err != nil {
		return nil, err
	}
	if opts.State != nil { // under the stage's lock
		if err := removeUnfinished(opts.State); err != nil {
			stage.close()
			return nil, err
		}
	}
	return &Import{
		ctx: ctx, repo: r, opts: opts, stage: stage, layers: map[string]*savedLayer{},
		present: &objectNames{dir: r.objects, archive: r.mode == Archive},
	}, nil
}

// Close ends the import. What was staged stays for the next import of this
// boot, unless the file system ran full: then it is given back.
func (im *Import) Close() error {
	defer im.stage.close()
	if im.full {
		return im.stage.clear()
	}
	return nil
}

// Discard ends the import and gives back what was staged.
func (im *Import) Discard() error {
	im.full = true
	return im.Close()
}

// LayerIndex returns the index saved for a layer, staged or in the repository,
// if all its contents are there; else an error that is fs.ErrNotExist. What
// cannot be read counts as absent and is fetched again.
func (im *Import) LayerIndex(diffID string) ([]byte, error) {
	name, err := layerFileName(diffID)
	if err != nil {
		return nil, err
	}
	im.mu.Lock()
	known := im.layers[diffID] != nil
	im.mu.Unlock()
	if known {
		if l, ok := im.stage.layer(name); ok {
			return l.index, nil
		}
		if l, ok := im.stateLayer(name); ok {
			return l.index, nil
		}
	}
	for _, find := range []func(diffID, name string) (*savedLayer, bool){im.stagedLayer, im.storedLayer, im.foreignLayer} {
		if l, ok := find(diffID, name); ok {
			im.keep(diffID, l)
			return l.index, nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", diffID, fs.ErrNotExist)
}

// keep remembers a layer of this import. Its index, as large as the layer's
// tree, is read again from where it is when it is needed.
func (im *Import) keep(diffID string, l *savedLayer) {
	im.mu.Lock()
	defer im.mu.Unlock()
	small := *l
	small.index, small.records = nil, nil
	if l.stored {
		small.sum = sumRecords(listOf(l.records))
	}
	im.layers[diffID] = &small
	im.known.add(l.records...)
}

// openIndex opens the index of a layer of this import.
func (im *Import) openIndex(diffID string) (*savedIndex, error) {
	name, err := layerFileName(diffID)
	if err != nil {
		return nil, err
	}
	x, err := im.stage.index(name)
	if err == nil || im.opts.State == nil {
		return x, err
	}
	f, size, err := im.stateFile(name)
	if err != nil {
		return nil, err
	}
	return openIndex(f, size)
}

// stagedLayer finds a layer that this boot staged.
func (im *Import) stagedLayer(_, name string) (*savedLayer, bool) {
	l, ok := im.stage.layer(name)
	if !ok || !im.contentsExist(l, im.stage.has) {
		return nil, false
	}
	return l, true
}

// storedLayer finds a layer that an earlier import committed. Its objects are
// there as long as its ref still names the same commit; else each is looked
// for, since ostree-ext relabels layers and moves their refs.
func (im *Import) storedLayer(_, name string) (*savedLayer, bool) {
	l, ok := im.stateLayer(name)
	if !ok {
		return nil, false
	}
	l.stored = true
	if commit, err := im.repo.ResolveRev(LayerRef(l.blob)); err == nil && commit == l.commit && im.hasObject(commit, object.TypeCommit) {
		return l, true
	}
	return l, im.contentsExist(l, func(object.Checksum) bool { return false })
}

// stateLayer reads a layer's file from kedge's state directory.
func (im *Import) stateLayer(name string) (*savedLayer, bool) {
	if im.opts.State == nil {
		return nil, false
	}
	f, size, err := im.stateFile(name)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	l, err := readLayerFile(f, size)
	return l, err == nil
}

func (im *Import) stateFile(name string) (*os.File, int64, error) {
	f, err := im.opts.State.Open(layersDir + "/" + name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxLayerFile) {
		err = errLayerFile
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// contentsExist reports whether each content of a layer is staged or in an
// object, and drops the records of objects that are not.
func (im *Import) contentsExist(l *savedLayer, staged func(object.Checksum) bool) bool {
	var all records
	all.add(l.records...)
	all.sort()
	var kept []record
	for i := 0; i < len(all.list); {
		group := all.of(all.list[i].content)
		i += len(group)
		n := len(kept)
		for _, r := range group {
			if staged(r.object) || im.hasObject(r.object, object.TypeFile) {
				kept = append(kept, r)
			}
		}
		if len(kept) == n {
			return false
		}
	}
	l.records = kept
	return true
}

// OpenContent reads back a content that this import, or a layer of which it
// returned the index, brought.
func (im *Import) OpenContent(d fstree.Digest) (io.ReadCloser, error) {
	if d == fstree.EmptyDigest {
		return noContent, nil
	}
	for _, r := range im.lookup(d) {
		f, err := im.openRecord(r)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, missingContent(d)
}

// openRecord opens the content of an object, staged or in the repository.
func (im *Import) openRecord(r record) (io.ReadCloser, error) {
	f, err := im.stage.open(r.object)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	_, content, err := im.repo.OpenFile(r.object)
	return content, err
}

func (im *Import) lookup(d fstree.Digest) []record {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.settled != nil {
		return im.settled.of(d)
	}
	return slices.Clone(im.known.of(d))
}

// settle makes the objects of a set, which all are there, what is known of
// contents.
func (im *Import) settle(s *objectSet) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.settled, im.known = s, records{}
}

func (im *Import) hasObject(c object.Checksum, t object.Type) bool {
	ok, err := im.repo.HasObject(object.Name{Checksum: c, Type: t})
	return ok && err == nil
}

// inRepo reports whether a content is in the repository: as the object that it
// is expected to be, or as another.
func (im *Import) inRepo(d fstree.Digest, expected object.Checksum) bool {
	if ok, err := im.present.has(fileName(expected)); ok && err == nil {
		return true
	}
	for _, r := range im.lookup(d) {
		if im.hasObject(r.object, object.TypeFile) {
			return true
		}
	}
	return false
}

// Begin starts a layer.
func (im *Import) Begin(diffID string) (*LayerImport, error) {
	name, err := layerFileName(diffID)
	if err != nil {
		return nil, err
	}
	shape := &finisher{tree: fstree.New(), labels: im.opts.Speculative}
	return &LayerImport{im: im, diffID: diffID, name: name, shape: shape}, nil
}

// LayerImport takes the contents of one layer; it implements
// ocibridge.LayerWriter and is for one goroutine.
type LayerImport struct {
	im           *Import
	diffID, name string
	shape        *finisher
	policy       policyGuess
	records      []record
}

// Put stages a regular file's bytes, read once, and returns their sha256. The
// same pass computes the object that the file will be if its label is as
// expected.
func (l *LayerImport) Put(path string, meta *fstree.Inode, r io.Reader) (fstree.Digest, error) {
	n := l.expected(path, meta)
	header := object.FileHeader(n.UID, n.GID, n.Mode, "", n.Xattrs)
	d, sum, err := l.im.stage.put(l.im.ctx, r, n, header, l.im.inRepo)
	if err != nil {
		l.im.failed(err)
		return d, err
	}
	rec := record{d, hashHeader(header), sum}
	l.im.guess(l, path, rec)
	if d != fstree.EmptyDigest {
		l.records = append(l.records, rec)
	}
	return d, nil
}

// expected returns the inode that path will have if the policy is as expected.
// Content objects of ostree layers have theirs already.
func (l *LayerImport) expected(path string, meta *fstree.Inode) *fstree.Inode {
	if strings.HasPrefix(path, repoObjects+"/objects/") {
		return meta
	}
	n := meta.WithMeta(nil)
	l.shape.meta(n, "/"+shapedPath(path))
	return n
}

// guess takes the policy that the image itself brings where there is none to
// expect.
func (im *Import) guess(l *LayerImport, path string, r record) {
	if l.shape.labels != nil {
		return
	}
	if policy := l.policy.saw(path, r, im.openRecord); policy != nil {
		im.guessed.CompareAndSwap(nil, &policy)
	}
	if policy := im.guessed.Load(); policy != nil {
		l.shape = &finisher{tree: l.shape.tree, labels: *policy}
	}
}

// failed remembers that the file system is full.
func (im *Import) failed(err error) {
	if fault.KindOf(err) == fault.NoSpace {
		im.mu.Lock()
		im.full = true
		im.mu.Unlock()
	}
}

// Commit makes the layer's contents and index visible to this import and, if
// this process dies, to the next one of the same boot.
func (l *LayerImport) Commit(index []byte) error {
	all := records{list: l.records}
	all.sort()
	saved := &savedLayer{index: index, records: all.list}
	l.records = nil
	if err := l.im.stage.putLayer(l.name, saved); err != nil {
		l.im.failed(err)
		return err
	}
	l.im.keep(l.diffID, saved)
	return nil
}

// Abort forgets the layer. Its contents stay staged, for a second try.
func (l *LayerImport) Abort() { l.records = nil }
