package ocibridge

// Progress is told how an import goes. Its methods are called from several
// goroutines.
type Progress interface {
	// Layers is called once, before the first byte of a layer.
	Layers([]LayerProgress)
	// Bytes says that n more compressed bytes of a layer have arrived; layer is
	// an index into what Layers was given.
	Bytes(layer int, n int64)
	// Done says that a layer is verified and in the store.
	Done(layer int)
}

// LayerProgress is a layer as Progress gets to know it.
type LayerProgress struct {
	Digest string
	Size   int64  // compressed, in bytes
	Name   string // what is in it, where the image says so; else ""
	Cached bool   // already in the store: not fetched
}

type noProgress struct{}

func (noProgress) Layers([]LayerProgress) {}
func (noProgress) Bytes(int, int64)       {}
func (noProgress) Done(int)               {}
