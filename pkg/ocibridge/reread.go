package ocibridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Archives is what a Store is, too, that may have a layer's archive without an
// index: other programs leave it so.
type Archives interface {
	// OpenArchive reads the uncompressed tar of a layer. A layer that is not
	// there is fs.ErrNotExist.
	OpenArchive(diffID string) (io.ReadCloser, error)
}

// reread makes the index of a layer whose archive the store has; nil where it
// has none, or another one than the diffID says: then the layer is fetched.
func (im *importer) reread(ctx context.Context, l LayerInfo) (*Index, error) {
	a, ok := im.store.(Archives)
	if !ok {
		return nil, nil
	}
	r, err := a.OpenArchive(l.DiffID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var x *Index
	if err == nil {
		defer r.Close()
		x, err = im.rereadArchive(ctx, l, r)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		im.opt.Logger.Warn("fetching a layer again that the store has damaged", "layer", l.DiffID, "error", err)
		return nil, nil
	}
	return x, nil
}

func (im *importer) rereadArchive(ctx context.Context, l LayerInfo, r io.Reader) (*Index, error) {
	w, err := im.store.Begin(l.DiffID)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	x := &Index{DiffID: l.DiffID, Role: l.Role}
	sum := sha256.New()
	tar := &countReader{r: io.TeeReader(r, sum)}
	err = showArchive(w, func(ctx context.Context, tar io.Reader) (err error) {
		x.Layer, err = decodeLayer(ctx, tar, w, im.budget)
		return err
	})(ctx, tar)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, tar); err != nil {
		return nil, err
	}
	if got := digest.NewDigest(digest.SHA256, sum).String(); got != l.DiffID {
		return nil, fault.New(fault.Corrupt, "", "its archive has the digest %s", got)
	}
	x.TarBytes = tar.n
	if err := w.Commit(EncodeIndex(x)); err != nil {
		return nil, fmt.Errorf("committing: %w", err)
	}
	return x, nil
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
