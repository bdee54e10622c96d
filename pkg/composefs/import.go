package composefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// inlineMax is the length of the longest file that images and layers hold
// themselves; composefs-rs's, and part of what gives an image its digest.
const inlineMax = 64

// ImportOptions say what an import works with.
type ImportOptions struct {
	// State is kedge's directory beside the repository,
	// /sysroot/state/kedge; what is known of layers is kept in layers/ below
	// it. With nil nothing is.
	State *os.Root
	// Damaged are objects that count as missing although they have a name:
	// layers that need them are fetched again, and what comes replaces them.
	Damaged []Digest
}

// Import takes the layers of one OCI image in and writes the streams and images
// that composefs-rs would write for it. It implements ocibridge.Store; that
// part of it is safe for concurrent use.
//
// Objects go into the repository as they stream by: sealed, they are whole
// before they have a name, and without a stream that refers to them nobody sees
// them. In a repository without fs-verity they go to the staging directory
// kedge-BOOTID first, since after a power cut they may be torn; what another
// boot left there is thrown away. Layers are staged there in either case.
// WriteImage's commit point is the tag, written last.
//
// From NewImport to Close the repository is locked against garbage collection.
type Import struct {
	ctx    context.Context
	repo   *Repo
	opts   ImportOptions
	stage  *importStage
	sink   *objectSink
	unlock func()

	mu     sync.Mutex
	layers map[string]*savedLayer // by diffID: those of this import
	known  *contents
}

// place says where a content is: in an object, or in memory.
type place struct {
	object Digest
	inline string
	size   int64
}

// NewImport opens the repository for one import. Where another import or a
// garbage collection is at work the error is of kind Busy.
func (r *Repo) NewImport(ctx context.Context, opts ImportOptions) (_ *Import, err error) {
	if err := r.meta.writable(); err != nil {
		return nil, err
	}
	im := &Import{ctx: ctx, repo: r, opts: opts, layers: make(map[string]*savedLayer), known: newContents()}
	if im.unlock, err = r.lock(unix.LOCK_SH); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			im.unlock()
		}
	}()
	if opts.State != nil {
		if err := opts.State.MkdirAll(layersDir, 0o755); err != nil {
			return nil, fmt.Errorf("make the directory of layer indexes: %w", err)
		}
	}
	if _, err := r.objects.open(true); err != nil { // or each look at it misses
		return nil, err
	}
	if im.stage, err = openStage(r); err != nil {
		return nil, err
	}
	im.sink = &objectSink{repo: r, to: &r.objects, damage: make(map[Digest]bool)}
	im.sink.writeback.Sync = r.sync
	if !r.sealed {
		im.sink.to = &im.stage.objects
	}
	for _, d := range opts.Damaged {
		im.sink.damage[d] = true
	}
	return im, nil
}

// Close ends the import. What was staged stays for the next import of this boot.
func (im *Import) Close() error {
	im.sink.writeback.Wait()
	im.stage.close()
	im.unlock()
	return nil
}

// Discard ends the import and gives back what was staged. Objects that nothing
// refers to go with the next garbage collection.
func (im *Import) Discard() error {
	err := im.stage.clear()
	return errors.Join(err, im.Close())
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
	l, ok := im.layers[diffID]
	im.mu.Unlock()
	if ok && l.index != nil {
		return l.index, nil
	}
	for _, find := range []func(diffID, name string) (*savedLayer, bool){im.stagedLayer, im.storedLayer} {
		if l, ok := find(diffID, name); ok {
			im.adopt(diffID, l)
			return l.index, nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", diffID, fs.ErrNotExist)
}

func (im *Import) adopt(diffID string, l *savedLayer) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.layers[diffID] = l
	im.known.add(l)
}

// stagedLayer finds a layer that this boot staged. Nothing refers to it, so a
// garbage collection of another program may have taken objects of it.
func (im *Import) stagedLayer(_, name string) (*savedLayer, bool) {
	data, err := im.stage.root.ReadFile(layersDir + "/" + name)
	if err != nil {
		return nil, false
	}
	l, err := decodeLayerFile(data, im.repo.meta.alg)
	return l, err == nil && im.complete(l)
}

// storedLayer finds a layer that an earlier import committed. Its stream must
// be the very one: then its objects are there too, as garbage collection keeps
// or removes them together.
func (im *Import) storedLayer(diffID, name string) (*savedLayer, bool) {
	if im.opts.State == nil {
		return nil, false
	}
	data, err := im.opts.State.ReadFile(layersDir + "/" + name)
	if err != nil {
		return nil, false
	}
	l, err := decodeLayerFile(data, im.repo.meta.alg)
	if err != nil {
		return nil, false
	}
	l.stored = true
	stream, err := im.repo.linked("streams/" + layerStream(diffID))
	if err != nil || stream != l.stream || im.sink.damage[stream] {
		return nil, false
	}
	if _, err := im.repo.objects.size(stream); err != nil {
		return nil, false
	}
	if len(im.sink.damage) > 0 {
		return l, im.complete(l)
	}
	return l, true
}

// complete reports whether every object of a layer is there.
func (im *Import) complete(l *savedLayer) bool {
	for i := range l.objects {
		if o := &l.objects[i]; !im.sink.has(o.object, o.size) {
			return false
		}
	}
	if l.stream == "" {
		return true
	}
	_, err := im.repo.objects.size(l.stream)
	if err != nil && im.sink.to != &im.repo.objects {
		_, err = im.sink.to.size(l.stream)
	}
	return err == nil && !im.sink.damage[l.stream]
}

// OpenContent reads back a content that this import, or a layer of which it
// returned the index, brought.
func (im *Import) OpenContent(d fstree.Digest) (io.ReadCloser, error) {
	if d == fstree.EmptyDigest {
		return io.NopCloser(strings.NewReader("")), nil
	}
	p, err := im.place(d)
	if err != nil {
		return nil, err
	}
	if p.object == "" {
		return io.NopCloser(strings.NewReader(p.inline)), nil
	}
	return im.openObject(p.object)
}

func (im *Import) openObject(d Digest) (io.ReadCloser, error) {
	f, err := im.objectFile(d)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (im *Import) objectFile(d Digest) (*os.File, error) {
	f, err := im.repo.openObject(d)
	if errors.Is(err, fs.ErrNotExist) && im.sink.to != &im.repo.objects {
		f, _, err = im.sink.to.openFile(d)
	}
	return f, err
}

func (im *Import) place(d fstree.Digest) (place, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	p, ok := im.known.find(d)
	if !ok {
		return p, noContent(d)
	}
	return p, nil
}

// file says where a regular file's bytes are, for an image.
func (im *Import) file(_ string, n *fstree.Inode) (File, error) {
	p, err := im.place(n.Content)
	if err != nil {
		return File{}, err
	}
	if p.size != n.Size {
		return File{}, fault.New(fault.Corrupt, "", "its content has %d bytes, its inode says %d", p.size, n.Size)
	}
	if p.object == "" {
		return File{Content: p.inline}, nil
	}
	return File{Digest: p.object, stored: true}, nil
}

// importStage is the directory kedge-BOOTID of a repository.
//
//	layers/sha256-HEX  a savedLayer
//	objects/xx/rest    objects of a repository without fs-verity
type importStage struct {
	repo    *Repo
	name    string
	root    *os.Root
	lock    *os.File
	objects objectDir
}

const stagePrefix = "kedge-"

func openStage(r *Repo) (_ *importStage, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open the staging directory: %w", err)
	}
	s := &importStage{repo: r, name: stagePrefix + strings.TrimSpace(string(id))}
	if err := r.removeStages(s.name); err != nil {
		return nil, err
	}
	if err := r.root.MkdirAll(s.name+"/"+layersDir, 0o700); err != nil {
		return nil, fmt.Errorf("open the staging directory: %w", err)
	}
	if s.root, err = r.root.OpenRoot(s.name); err != nil {
		return nil, fmt.Errorf("open the staging directory: %w", err)
	}
	if s.lock, err = s.root.Open("."); err == nil {
		err = flock(s.lock, unix.LOCK_EX)
	}
	if err != nil {
		s.close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.Busy, "wait until the other kedge process is done", "another process is importing into this repository")
		}
		return nil, fmt.Errorf("lock the staging directory: %w", err)
	}
	s.objects = objectDir{root: s.root, path: "objects"}
	if err := s.objects.removeTorn(); err != nil {
		s.close()
		return nil, fmt.Errorf("clean the staging directory: %w", err)
	}
	return s, nil
}

// removeStages removes the staging directories of other boots than keep's.
func (r *Repo) removeStages(keep string) error {
	d, err := r.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look for old staging directories: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, stagePrefix) && name != keep {
			if err := r.root.RemoveAll(name); err != nil {
				return fmt.Errorf("remove an old staging directory: %w", err)
			}
		}
	}
	return nil
}

func (s *importStage) close() {
	s.objects.close()
	if s.lock != nil {
		_ = s.lock.Close()
	}
	if s.root != nil {
		_ = s.root.Close()
	}
}

func (s *importStage) clear() error {
	if err := s.repo.root.RemoveAll(s.name); err != nil {
		return fmt.Errorf("remove the staging directory: %w", err)
	}
	return nil
}

// publish moves staged objects into the repository. They are durable.
func (s *importStage) publish(damage map[Digest]bool) error {
	for first := range 256 {
		from, err := s.objects.sub(byte(first), false)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if whole, err := s.publishDir(byte(first)); whole || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		// btrfs lists what was there when the directory was opened or rewound.
		if _, err := from.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := from.Readdirnames(-1)
		if err != nil {
			return fmt.Errorf("publish staged objects: %w", err)
		}
		to, err := s.repo.objects.sub(byte(first), true)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := unix.Renameat(int(from.Fd()), name, int(to.Fd()), name); err != nil {
				return &fs.PathError{Op: "publish", Path: to.Name() + "/" + name, Err: err}
			}
		}
	}
	clear(damage)
	return nil
}

// publishDir moves a whole directory of objects, where the repository has none of
// that name yet.
func (s *importStage) publishDir(first byte) (bool, error) {
	from, err := s.objects.open(false)
	if err != nil {
		return false, err
	}
	to, err := s.repo.objects.open(true)
	if err != nil {
		return false, err
	}
	name := fmt.Sprintf("%02x", first)
	err = unix.Renameat2(int(from.Fd()), name, int(to.Fd()), name, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EINVAL): // EINVAL: not on this file system
		return false, nil
	}
	return false, &fs.PathError{Op: "publish", Path: to.Name() + "/" + name, Err: err}
}

// putLayer stages what is known of a layer. The rename is the commit point; it
// needs no sync, as the next boot does not look at it.
func (s *importStage) putLayer(name string, l *savedLayer) error {
	if err := replaceFile(s.root, layersDir+"/"+name, l.write); err != nil {
		return fmt.Errorf("stage a layer's index: %w", err)
	}
	return nil
}

func replaceFile(root *os.Root, name string, write func(io.Writer) error) error {
	tmp := layersDir + "/" + unfinished + strings.TrimPrefix(name, layersDir+"/")
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return err
	}
	return root.Rename(tmp, name)
}

// saveLayers keeps what is known of committed layers in kedge's state.
func (im *Import) saveLayers(diffIDs []string) error {
	if im.opts.State == nil {
		return nil
	}
	for _, id := range diffIDs {
		im.mu.Lock()
		l := im.layers[id]
		im.mu.Unlock()
		if l == nil || l.stored {
			continue
		}
		name, err := layerFileName(id)
		if err != nil {
			return err
		}
		if err := im.saveLayer(layersDir + "/" + name); err != nil {
			return fmt.Errorf("save the index of layer %s: %w", id, err)
		}
		l.stored = true
	}
	return atomicfile.SyncDir(im.opts.State, layersDir)
}

// saveLayer copies a staged layer to kedge's state.
func (im *Import) saveLayer(name string) error {
	f, err := im.stage.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return replaceFile(im.opts.State, name, func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}
