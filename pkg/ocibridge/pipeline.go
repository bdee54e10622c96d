package ocibridge

import (
	"bufio"
	"bytes"
	"context"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kedge-os/kedge/pkg/fault"
)

// The blocks between the stages of a stream. Twice two queues of queueDepth
// blocks are what a layer costs in memory, 6 MiB, besides the decompressor's
// window.
const (
	wireBlock  = 256 << 10
	plainBlock = 512 << 10
	queueDepth = 4
)

// relay runs read-ahead and hashing of a stream in goroutines of their own: one
// fills blocks from the source, one hashes them, and the reader gets them in
// order. Blocks are recycled.
type relay struct {
	out  chan []byte
	free chan []byte
	stop chan struct{}
	wg   sync.WaitGroup
	once sync.Once

	cur, block []byte
	err        error // of the source; valid once out is closed
	n          int64 // bytes that passed; valid once out is closed
}

// newRelay starts a relay over r. Bytes are added to h before a reader can see
// them. Close must be called and waits until r is no longer used: what r reads
// from must have been closed or cancelled before, or be at its end.
func newRelay(r io.Reader, h hash.Hash, size int) *relay {
	l := &relay{
		out:  make(chan []byte, queueDepth),
		free: make(chan []byte, 2*queueDepth+2),
		stop: make(chan struct{}),
	}
	filled := make(chan []byte, queueDepth)
	for range cap(l.free) {
		l.free <- nil
	}
	l.wg.Add(2)
	go func() {
		defer l.wg.Done()
		defer close(filled)
		l.err = l.fill(r, filled, size)
	}()
	go func() {
		defer l.wg.Done()
		defer close(l.out)
		for b := range filled {
			h.Write(b)
			l.n += int64(len(b))
			select {
			case l.out <- b:
			case <-l.stop:
			}
		}
	}()
	return l
}

func (l *relay) fill(r io.Reader, filled chan<- []byte, size int) error {
	for {
		var b []byte
		select {
		case b = <-l.free:
		case <-l.stop:
			return context.Canceled
		}
		if b == nil {
			b = make([]byte, size)
		}
		n, err := 0, error(nil)
		for n < size && err == nil {
			var k int
			k, err = r.Read(b[n:size])
			n += k
		}
		if n > 0 {
			select {
			case filled <- b[:n]:
			case <-l.stop:
				return context.Canceled
			}
		}
		if err != nil {
			return err
		}
	}
}

// next makes l.cur non-empty, or returns the source's error.
func (l *relay) next() error {
	for len(l.cur) == 0 {
		if l.block != nil {
			l.free <- l.block[:cap(l.block)]
			l.block = nil
		}
		b, ok := <-l.out
		if !ok {
			return l.err
		}
		l.block, l.cur = b, b
	}
	return nil
}

func (l *relay) Read(p []byte) (int, error) {
	if err := l.next(); err != nil {
		return 0, err
	}
	n := copy(p, l.cur)
	l.cur = l.cur[n:]
	return n, nil
}

// drain reads to the end, so that the hash covers everything. It returns nil
// at the end of the source.
func (l *relay) drain() error {
	for {
		l.cur = nil
		if err := l.next(); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// Close stops the relay's goroutines and waits for them.
func (l *relay) Close() {
	l.once.Do(func() { close(l.stop) })
	for range l.out { //nolint:revive // empty: unblocks the hasher
	}
	l.wg.Wait()
}

// decompress returns the plain stream of a blob, by what the blob begins with:
// media types lie about compression often enough that every client looks. The
// func frees the decompressor.
func decompress(wire io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(wire, wireBlock)
	magic, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, undecodable("gzip", err)
		}
		return &decoder{z, "gzip"}, func() { z.Close() }, nil
	case isZstd(magic):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, undecodable("zstd", err)
		}
		return &decoder{z, "zstd"}, z.Close, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")), bytes.HasPrefix(magic, []byte("BZh")):
		return nil, nil, fault.New(fault.Conflict, "push the image with gzip or zstd compression", "the layer is compressed with xz or bzip2")
	}
	return br, func() {}, nil
}

// maxWindow is what zstd itself decompresses without --long=N: more would be
// memory that the image's author chose.
const maxWindow = 128 << 20

// isZstd recognises a zstd frame or a skippable frame (RFC 8878, 3.1).
func isZstd(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	return bytes.Equal(b[:4], []byte{0x28, 0xb5, 0x2f, 0xfd}) || b[0]&0xf0 == 0x50 && bytes.Equal(b[1:4], []byte{0x2a, 0x4d, 0x18})
}

// decoder names the compression in errors of a decompressor, and lets errors of
// the stream below pass.
type decoder struct {
	r    io.Reader
	name string
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = undecodable(d.name, err)
	}
	return n, err
}

func undecodable(name string, err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if k := fault.KindOf(err); k != fault.Internal {
		return err
	}
	return fault.New(fault.Corrupt, rebuildHint, "the layer's %s data cannot be decompressed: %w", name, err)
}

// ratioReader stops a stream that is out of all proportion to the blob it came
// from.
type ratioReader struct {
	r      io.Reader
	limits Limits
	wire   int64 // the blob's length; negative: unknown
	n      int64
}

func (r *ratioReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n += int64(n)
	if r.n > r.limits.RatioFrom && r.wire >= 0 && r.n/r.limits.Ratio > r.wire {
		return 0, fault.New(fault.Corrupt, rebuildHint, "a blob of %d bytes decompresses to more than %d: it is a decompression bomb", r.wire, r.n)
	}
	return n, err
}

// progressReader reports what arrives.
type progressReader struct {
	r        io.Reader
	progress Progress
	layer    int
}

func (r *progressReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 {
		r.progress.Bytes(r.layer, int64(n))
	}
	return n, err
}
