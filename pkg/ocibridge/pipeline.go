package ocibridge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kedge-os/kedge/pkg/fault"
)

// The blocks between the stages of a stream. Both queues of a stream together
// take (2·queueDepth+2)·(wireBlock+plainBlock), 3 MiB, at most.
const (
	wireBlock  = 128 << 10
	plainBlock = 256 << 10
	queueDepth = 3
)

// buffers are what streams hand on to the next stream when they end, so that an
// image of many layers costs as much memory as one of a few.
type buffers struct {
	wire, plain, zstd sync.Pool
}

// relay runs read-ahead and hashing of a stream in goroutines of their own: one
// fills blocks from the source, one hashes them, and the reader gets them in
// order. Blocks are recycled.
type relay struct {
	out  chan *[]byte
	free chan *[]byte
	stop chan struct{}
	pool *sync.Pool
	wg   sync.WaitGroup
	once sync.Once

	cur   []byte
	block *[]byte
	err   error // of the source; valid once out is closed
	n     int64 // bytes that passed; valid once out is closed
}

// newRelay starts a relay over r with blocks of size bytes out of pool. Bytes
// are added to h before a reader can see them. Close must be called and waits
// until r is no longer used: what r reads from must have been closed or
// cancelled before, or be at its end.
func newRelay(r io.Reader, h hash.Hash, pool *sync.Pool, size int) *relay {
	l := &relay{
		out:  make(chan *[]byte, queueDepth),
		free: make(chan *[]byte, 2*queueDepth+2),
		stop: make(chan struct{}),
		pool: pool,
	}
	filled := make(chan *[]byte, queueDepth)
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
			h.Write(*b)
			l.n += int64(len(*b))
			select {
			case l.out <- b:
			case <-l.stop:
			}
		}
	}()
	return l
}

func (l *relay) fill(r io.Reader, filled chan<- *[]byte, size int) error {
	for {
		var b *[]byte
		select {
		case b = <-l.free:
		case <-l.stop:
			return context.Canceled
		}
		if b == nil {
			if b, _ = l.pool.Get().(*[]byte); b == nil {
				b = new([]byte)
				*b = make([]byte, size)
			}
		}
		n, err := 0, error(nil)
		for n < size && err == nil {
			var k int
			k, err = r.Read((*b)[n:size])
			n += k
		}
		*b = (*b)[:n]
		if n > 0 {
			select {
			case filled <- b:
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
			l.recycle()
		}
		b, ok := <-l.out
		if !ok {
			return l.err
		}
		l.block, l.cur = b, *b
	}
	return nil
}

func (l *relay) recycle() {
	*l.block = (*l.block)[:cap(*l.block)]
	l.free <- l.block
	l.block = nil
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
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// Close stops the relay's goroutines, waits for them, and gives the blocks back.
func (l *relay) Close() {
	l.once.Do(func() {
		close(l.stop)
		for b := range l.out { // what is still under way
			l.pool.Put(b)
		}
		l.wg.Wait()
		if l.block != nil {
			l.recycle()
		}
		close(l.free)
		for b := range l.free {
			if b != nil {
				l.pool.Put(b)
			}
		}
	})
}

// decompress returns the plain stream of a blob, by what the blob begins with:
// media types lie about compression often enough that every client looks. The
// func frees the decompressor.
func (b *buffers) decompress(wire io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(wire, wireBlock)
	magic, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, undecodable("gzip", err)
		}
		return &decoder{z, "gzip"}, func() {}, nil
	case isZstd(magic):
		z, err := b.zstdDecoder(br)
		if err != nil {
			return nil, nil, undecodable("zstd", err)
		}
		return &decoder{z, "zstd"}, func() { b.freeZstd(z) }, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")), bytes.HasPrefix(magic, []byte("BZh")):
		return nil, nil, fault.New(fault.Conflict, "push the image with gzip or zstd compression", "the layer is compressed with xz or bzip2")
	}
	return br, func() {}, nil
}

func (b *buffers) zstdDecoder(r io.Reader) (*zstd.Decoder, error) {
	if z, _ := b.zstd.Get().(*zstd.Decoder); z != nil {
		return z, z.Reset(r)
	}
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
}

func (b *buffers) freeZstd(z *zstd.Decoder) {
	if z.Reset(nil) == nil {
		b.zstd.Put(z)
	}
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
	if err != nil && !errors.Is(err, io.EOF) {
		err = undecodable(d.name, err)
	}
	return n, err
}

func undecodable(name string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if k := fault.KindOf(err); k != fault.Internal {
		return err
	}
	return damaged("the layer's %s data cannot be decompressed: %w", name, err)
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
