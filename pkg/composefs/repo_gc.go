package composefs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// GCOptions say what garbage collection keeps beside what the repository's refs
// lead to.
type GCOptions struct {
	Images []Digest // images that deployments boot; one that is not there is no error
	DryRun bool     // count only
	// State is kedge's directory beside the repository (ImportOptions.State);
	// what is kept there of layers that go is removed too.
	State *os.Root
}

// GCResult tells what garbage collection removed.
type GCResult struct {
	Objects int
	Bytes   int64
	Links   int // names of images, streams and refs that led nowhere any more
}

// GC removes every object to which no ref and no live image leads, and the names
// that lead to such. Order: objects are found first and all together; nothing is
// removed where a stream or image that is kept cannot be read. Then names go
// before objects, so that at no instant one leads to what is gone. Where an
// import is at work the error is of kind Busy.
func (r *Repo) GC(ctx context.Context, o GCOptions) (*GCResult, error) {
	if err := r.meta.writable(); err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if o.DryRun {
		how = unix.LOCK_SH
	}
	unlock, err := r.lock(how)
	if err != nil {
		return nil, err
	}
	defer unlock()
	out, err := r.collect(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("clean up the composefs repository: %w", err)
	}
	return out, nil
}

func (r *Repo) collect(ctx context.Context, o GCOptions) (*GCResult, error) {
	live, err := r.live(ctx, o.Images)
	if err != nil {
		return nil, err
	}
	if !o.DryRun {
		if err := r.removeTemps(); err != nil {
			return nil, err
		}
	}
	out := &GCResult{}
	err = r.eachLink(func(name string) error {
		d, err := r.target(name)
		if err == nil && live[d] {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil // somebody else's; fsck tells
		}
		out.Links++
		if o.DryRun {
			return nil
		}
		return r.root.Remove(name)
	})
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // of out
	err = r.eachObject(ctx, func(dir *os.File, name string, d Digest) error {
		if live[d] {
			return nil
		}
		var st unix.Stat_t
		_ = unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		mu.Lock()
		out.Bytes += st.Size
		out.Objects++
		mu.Unlock()
		if o.DryRun {
			return nil
		}
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return &fs.PathError{Op: "remove", Path: dir.Name() + "/" + name, Err: err}
		}
		return nil
	})
	if err != nil || o.DryRun {
		return out, err
	}
	// What is staged refers to objects that may be gone.
	if err := r.removeStages(""); err != nil {
		return nil, err
	}
	return out, r.forgetLayers(o.State)
}

// tempPrefix begins the names that files and symlinks have for an instant,
// before a rename. Nobody else uses it; what a killed process left is nothing.
const tempPrefix = ".kedge-"

func tempName() string { return tempPrefix + rand.Text()[:12] }

func isTemp(name string) bool { return strings.HasPrefix(path.Base(name), tempPrefix) }

func (r *Repo) removeTemps() error {
	for _, dir := range []string{".", "objects", "images", "streams", "images/refs", "streams/refs", "streams/refs/oci"} {
		d, err := r.root.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		names, err := d.Readdirnames(-1)
		_ = d.Close()
		if err != nil {
			return err
		}
		for _, name := range names {
			if !isTemp(name) {
				continue
			}
			if err := r.root.Remove(dir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// forgetLayers removes what kedge keeps of layers that the repository lacks.
func (r *Repo) forgetLayers(state *os.Root) error {
	if state == nil {
		return nil
	}
	d, err := state.Open(layersDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		hex, ok := strings.CutPrefix(name, "sha256-")
		if ok {
			if _, err := r.root.Lstat("streams/" + layerStream("sha256:"+hex)); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		} else if !strings.HasPrefix(name, unfinished) {
			continue
		}
		if err := state.Remove(layersDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// live returns the objects that refs and images lead to.
func (r *Repo) live(ctx context.Context, images []Digest) (map[Digest]bool, error) {
	streams, err := r.streamObjects()
	if err != nil {
		return nil, err
	}
	m := &marker{repo: r, ctx: ctx, live: make(map[Digest]bool), walked: make(map[Digest]bool), streams: streams}
	// Streams first: an image that a config names needs not be read.
	for _, category := range []string{"streams", "images"} {
		err := r.eachLinkIn(category+"/refs", true, func(name string) error {
			d, err := r.target(name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if category == "images" {
				return m.image(d)
			}
			return m.stream(d)
		})
		if err != nil {
			return nil, err
		}
	}
	for _, d := range images {
		if _, err := r.root.Lstat("images/" + d.String()); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := m.image(d); err != nil {
			return nil, err
		}
	}
	return m.live, nil
}

// streamObjects returns the objects that have the name of a stream. Named refs
// lead to streams and images alike; what is none of these is an image.
func (r *Repo) streamObjects() (map[Digest]bool, error) {
	out := make(map[Digest]bool)
	err := r.eachLinkIn("streams", false, func(name string) error {
		if d, err := r.linked(name); err == nil {
			out[d] = true
		}
		return nil
	})
	return out, err
}

type marker struct {
	repo    *Repo
	ctx     context.Context
	live    map[Digest]bool
	walked  map[Digest]bool // streams whose references are live
	streams map[Digest]bool
}

func (m *marker) stream(d Digest) error {
	if m.walked[d] {
		return nil
	}
	m.walked[d] = true
	if err := m.ctx.Err(); err != nil {
		return err
	}
	s, err := m.repo.readStream(d, 0)
	if err != nil {
		return fmt.Errorf("stream %s: %w", d, err)
	}
	m.live[d] = true
	for _, o := range s.Objects {
		m.live[o] = true
	}
	for _, ref := range s.Refs {
		if !m.streams[ref.Object] {
			m.live[ref.Object] = true // an image; its objects are those of layers
			continue
		}
		if err := m.stream(ref.Object); err != nil {
			return err
		}
	}
	return nil
}

func (m *marker) image(d Digest) error {
	if err := m.ctx.Err(); err != nil || m.live[d] {
		return err // a config's image, and its objects those of its layers
	}
	m.live[d] = true
	objects, err := m.repo.imageObjects(d)
	if err != nil {
		return fmt.Errorf("image %s: %w", d, err)
	}
	for o := range objects {
		m.live[o] = true
	}
	return nil
}

// maxImage bounds what is read as an image.
const maxImage = 4 << 30

// imageObjects returns the objects that an image refers to, with their sizes.
func (r *Repo) imageObjects(d Digest) (map[Digest]int64, error) {
	data, err := r.readObject(d, maxImage)
	if err != nil {
		return nil, err
	}
	t, _, err := ReadImage(data)
	if err != nil {
		return nil, err
	}
	out := make(map[Digest]int64)
	err = t.Walk(func(_ string, e Dirent) error {
		if !e.Link && e.Inode.External() && e.Inode.Digest != "" {
			out[e.Inode.Digest] = int64(e.Inode.Size)
		}
		return nil
	})
	return out, err
}

// target follows the symlinks of the repository, which lead from refs to names
// and from names to objects, and returns the object, which exists.
func (r *Repo) target(name string) (Digest, error) {
	const maxHops = 4
	for range maxHops {
		if d, err := r.linked(name); err == nil {
			_, err := r.objects.size(d)
			return d, err
		}
		to, err := r.root.Readlink(name)
		if err != nil {
			return "", err
		}
		name = path.Join(path.Dir(name), to)
	}
	return r.linked(name)
}

// eachLink calls fn for each name of an image or stream, then for each ref.
func (r *Repo) eachLink(fn func(name string) error) error {
	for _, dir := range []string{"images", "streams"} {
		if err := r.eachLinkIn(dir, false, fn); err != nil {
			return err
		}
	}
	for _, dir := range []string{"images/refs", "streams/refs"} {
		if err := r.eachLinkIn(dir, true, fn); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) eachLinkIn(dir string, deep bool, fn func(name string) error) error {
	d, err := r.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(-1)
	_ = d.Close()
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := dir + "/" + e.Name()
		switch {
		case isTemp(name):
		case e.Type() == fs.ModeSymlink:
			err = fn(name)
		case e.IsDir() && deep:
			err = r.eachLinkIn(name, true, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eachObject calls fn, from several goroutines at once, for each file in the
// directories of objects whose name is that of an object.
func (r *Repo) eachObject(ctx context.Context, fn func(dir *os.File, name string, d Digest) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for first := range 256 {
		g.Go(func() error { return r.objectsIn(ctx, byte(first), fn) })
	}
	return g.Wait()
}

func (r *Repo) objectsIn(ctx context.Context, first byte, fn func(dir *os.File, name string, d Digest) error) error {
	dir, names, err := r.objectNames(first)
	if err != nil {
		return err
	}
	raw := make([]byte, r.meta.alg.Size())
	raw[0] = first
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(name) != hex.EncodedLen(len(raw)-1) {
			continue
		}
		if _, err := hex.Decode(raw[1:], []byte(name)); err != nil {
			continue
		}
		if err := fn(dir, name, Digest(raw)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) objectNames(first byte) (*os.File, []string, error) {
	dir, err := r.objects.sub(first, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	list, err := os.Open(procPath(dir)) // an offset of its own
	if err != nil {
		return nil, nil, err
	}
	defer list.Close()
	names, err := list.Readdirnames(-1)
	return dir, names, err
}
