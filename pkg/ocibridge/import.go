package ocibridge

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Image is an imported image: every layer is in the store, and Tree is what
// they come to.
type Image struct {
	*Source
	Tree   *fstree.Tree // the layers merged, nothing else changed; frozen
	Layers []ImageLayer // in the manifest's order
	OSTree *OSTreeBase  // ostree-chunked images; else nil
}

// ImageLayer is a layer with what is in it.
type ImageLayer struct {
	LayerInfo
	Layer   *fstree.Layer // Derived layers
	Objects *ObjectLayer  // OSTreeCommit and OSTreeChunk layers
	Fetched bool          // it was not in the store before
}

// Import brings every layer that the store lacks into it and merges them all.
// Layers that were committed stay in the store when Import fails or is
// cancelled; the next one does not fetch them again.
func (s *Source) Import(ctx context.Context, store Store) (*Image, error) {
	im := &importer{Source: s, store: store, budget: &budget{Limits: s.opt.Limits}, index: make(map[string]*Index)}
	if err := im.layers(ctx); err != nil {
		return nil, fmt.Errorf("importing %s: %w", s.Reference, err)
	}
	img, err := im.merge()
	if err != nil {
		return nil, fmt.Errorf("merging the layers of %s: %w", s.Reference, err)
	}
	return img, nil
}

type importer struct {
	*Source
	store   Store
	budget  *budget
	buffers buffers
	index   map[string]*Index // by diffID
	fetched map[string]bool
}

// layers fills im.index.
func (im *importer) layers(ctx context.Context) error {
	type job struct {
		layer int
		index *Index
	}
	var jobs []*job
	progress := make([]LayerProgress, len(im.Layers))
	im.fetched = make(map[string]bool)
	for i, l := range im.Layers {
		progress[i] = LayerProgress{Digest: l.Digest, Size: l.Size, Name: layerName(l)}
		if im.fetched[l.DiffID] {
			progress[i].Cached = true // the same layer again, as empty ones are
			continue
		}
		x, err := im.known(l)
		if x == nil && err == nil {
			x, err = im.reread(ctx, l)
		}
		if err != nil {
			return err
		}
		if x != nil {
			im.index[l.DiffID] = x
			progress[i].Cached = true
			continue
		}
		im.fetched[l.DiffID] = true
		jobs = append(jobs, &job{layer: i})
	}
	im.opt.Progress.Layers(progress)

	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(im.opt.Parallel)
	for _, j := range jobs {
		g.Go(func() (err error) {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			j.index, err = im.fetchLayer(gctx, j.layer)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for _, j := range jobs {
		im.index[im.Layers[j.layer].DiffID] = j.index
	}
	return nil
}

func layerName(l LayerInfo) string {
	switch {
	case len(l.Components) == 1:
		return l.Components[0]
	case len(l.Components) > 1:
		return fmt.Sprintf("%s and %d more", l.Components[0], len(l.Components)-1)
	}
	return ""
}

// known returns the index of a layer that the store has, or nil. An index that
// cannot be read, or that was made for the layer in another role, counts as
// missing.
func (im *importer) known(l LayerInfo) (*Index, error) {
	data, err := im.store.LayerIndex(l.DiffID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up layer %s: %w", l.DiffID, err)
	}
	x, err := DecodeIndex(data)
	if err != nil || x.DiffID != l.DiffID || x.Role != l.Role {
		im.opt.Logger.Warn("fetching a layer again whose index is of no use", "layer", l.DiffID, "error", err)
		return nil, nil
	}
	return x, nil
}

// fetchLayer brings one layer into the store. The commit point is
// LayerWriter.Commit, after both digests were found right.
func (im *importer) fetchLayer(ctx context.Context, i int) (x *Index, err error) {
	l := im.Layers[i]
	defer func() {
		if err != nil {
			err = fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}()
	w, err := im.store.Begin(l.DiffID)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	x = &Index{DiffID: l.DiffID, Role: l.Role}
	x.TarBytes, err = im.readLayer(ctx, i, showArchive(w, func(ctx context.Context, tar io.Reader) (err error) {
		if l.Role == Derived {
			x.Layer, err = decodeLayer(ctx, tar, w, im.budget)
			return err
		}
		x.Objects, err = decodeObjects(ctx, tar, w, im.budget, l.Role)
		return err
	}))
	if err != nil {
		return nil, err
	}
	index := EncodeIndex(x)
	if err := w.Commit(index); err != nil {
		return nil, fmt.Errorf("committing: %w", err)
	}
	if l.Role == Derived {
		// The same layer in the memory of the index, which the store may keep.
		if x, err = DecodeIndex(index); err != nil {
			return nil, fmt.Errorf("committing: %w", err)
		}
	}
	im.opt.Progress.Done(i)
	return x, nil
}

// readLayer streams a layer through decode and verifies it: blob size, blob
// digest, diffID. It returns the tar's length. Where the blob is not the one
// that the manifest names, that is the error, whatever decoding it led to.
func (im *importer) readLayer(ctx context.Context, i int, decode func(context.Context, io.Reader) error) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, info := im.Layers[i], im.fetch[i]
	blob := im.blobs.open(ctx, info)
	defer blob.hangUp()
	wireHash := newHash(info.Digest)
	wire := newRelay(&progressReader{blob, im.opt.Progress, i}, wireHash, &im.buffers.wire, wireBlock)
	defer wire.Close()
	defer cancel() // before wire.Close waits for the network

	tarBytes, diffID, err := im.unpack(ctx, wire, info.Size, func(ctx context.Context, tar io.Reader) error {
		err := decode(ctx, tar)
		if err != nil && !isDamaged(err) {
			cancel() // the rest of the blob cannot change that
		}
		return err
	})
	if err != nil && !isDamaged(err) {
		return 0, err
	}
	if drained := wire.drain(); drained != nil {
		return 0, drained
	}
	if got := digest.NewDigest(info.Digest.Algorithm(), wireHash); got != info.Digest {
		return 0, fault.New(fault.Untrusted, tamperedHint, "the blob has the digest %s, the manifest says %s", got, info.Digest)
	}
	if err != nil {
		return 0, err
	}
	if diffID != l.DiffID {
		return 0, fault.New(fault.Untrusted, rebuildHint, "the layer's diffID is %s, the image's config says %s", diffID, l.DiffID)
	}
	return tarBytes, nil
}

// unpack decompresses, hashes and decodes a layer to its last byte: what
// follows the tar's end mark belongs to the diffID too.
func (im *importer) unpack(ctx context.Context, wire io.Reader, size int64, decode func(context.Context, io.Reader) error) (int64, string, error) {
	plain, free, err := im.buffers.decompress(wire)
	if err != nil {
		return 0, "", err
	}
	defer free()
	sum := sha256.New()
	tar := newRelay(&ratioReader{r: plain, limits: im.budget.Limits, wire: size}, sum, &im.buffers.plain, plainBlock)
	defer tar.Close()
	if err := decode(ctx, tar); err != nil {
		return 0, "", err
	}
	if err := tar.drain(); err != nil {
		return 0, "", tarError("", err)
	}
	return tar.n, digest.NewDigest(digest.SHA256, sum).String(), nil
}

func newHash(d digest.Digest) hash.Hash {
	if d.Algorithm() == digest.SHA512 {
		return sha512.New()
	}
	return sha256.New()
}
