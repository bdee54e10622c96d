package ocibridge

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Limits bound what an image may ask of the machine. Zero fields take the
// values of DefaultLimits.
type Limits struct {
	Entries   int64 // entries of all layers that are read
	FileBytes int64 // length of one file, holes included
	Bytes     int64 // length of all files that have to be stored, holes included
	Ratio     int64 // uncompressed : compressed, counted above RatioFrom
	RatioFrom int64 // uncompressed bytes of a layer below which any ratio will do
}

// DefaultLimits are far above what an operating system image has and low
// enough that a hostile one is refused before it fills a large machine. A
// caller that knows the free space sets Bytes from it.
var DefaultLimits = Limits{
	Entries:   1_000_000,
	FileBytes: 64 << 30,
	Bytes:     256 << 30,
	Ratio:     300,
	RatioFrom: 1 << 30,
}

// The bounds of Linux on names, paths and extended attributes, in bytes.
const (
	maxName       = 255
	maxPath       = 4095
	maxXattrName  = 255
	maxXattrValue = 64 << 10
	maxXattrList  = 64 << 10
)

// maxManifest bounds manifests and configs, as go.podman.io/image does.
const maxManifest = 4 << 20

// maxBlob bounds what a manifest may say of a blob's length: sums of it stay far
// from the end of int64.
const maxBlob = 1 << 40

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.Entries, DefaultLimits.Entries)
	set(&l.FileBytes, DefaultLimits.FileBytes)
	set(&l.Bytes, DefaultLimits.Bytes)
	set(&l.Ratio, DefaultLimits.Ratio)
	set(&l.RatioFrom, DefaultLimits.RatioFrom)
	return l
}

// budget is what is left of the limits of one import, over all its layers.
type budget struct {
	Limits
	entries, bytes atomic.Int64
}

func (b *budget) entry(path string) error {
	if b.entries.Add(1) > b.Entries {
		return corrupt(path, "the image has more than %d entries", b.Entries)
	}
	return nil
}

func (b *budget) file(path string, size int64) error {
	switch {
	case size > b.FileBytes:
		return corrupt(path, "a file of %d bytes is above the limit of %d", size, b.FileBytes)
	case b.bytes.Add(size) > b.Bytes:
		return corrupt(path, "the image's files have more than %d bytes", b.Bytes)
	}
	return nil
}

func corrupt(path, format string, args ...any) error {
	return fault.New(fault.Corrupt, rebuildHint, "entry %.256q: "+format, append([]any{path}, args...)...)
}

// damagedError marks a stream that cannot be decoded: it may have been changed
// on the way, so that the blob's digest has to be looked at before it is called
// corrupt. A stream that can be decoded and asks for what is not allowed needs
// no second look.
type damagedError struct{ error }

func (e damagedError) Unwrap() error { return e.error }

func damaged(format string, args ...any) error {
	return &fault.Error{Kind: fault.Corrupt, Hint: rebuildHint, Err: damagedError{fmt.Errorf(format, args...)}}
}

func isDamaged(err error) bool {
	var d damagedError
	return errors.As(err, &d)
}

const rebuildHint = "the image itself is damaged or hostile: build and push it again, or use another one"
