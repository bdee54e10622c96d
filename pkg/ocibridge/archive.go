package ocibridge

import (
	"context"
	"io"
)

// ArchiveWriter is a LayerWriter of a store that keeps the layer's archive too,
// but for the contents that pass through Put.
type ArchiveWriter interface {
	LayerWriter

	// Archive is called before the first Put. What it returns is read in place
	// of r, the layer's tar, to the end: between calls of Put come headers and
	// padding, during one that file's bytes.
	Archive(r io.Reader) io.Reader
}

// showArchive lets a writer that wants it see the tar that decode reads, with
// what follows the end mark.
func showArchive(w LayerWriter, decode func(context.Context, io.Reader) error) func(context.Context, io.Reader) error {
	a, ok := w.(ArchiveWriter)
	if !ok {
		return decode
	}
	return func(ctx context.Context, tar io.Reader) error {
		shown := a.Archive(tar)
		if err := decode(ctx, shown); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, shown); err != nil {
			return tarError("", err)
		}
		return nil
	}
}

// Plain makes the layers of an ostree-chunked image layers like any other, for
// a store that has no use for ostree's objects. It is called before Import.
func (s *Source) Plain() {
	for i := range s.Layers {
		s.Layers[i].Role = Derived
	}
}
