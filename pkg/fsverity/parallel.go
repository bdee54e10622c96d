package fsverity

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// parallelFrom is the file size from which several goroutines pay.
const parallelFrom = 4 << 20

// Of returns the fs-verity digest of the size bytes that r holds. Large
// files are hashed by several goroutines, each of which holds one part of the
// file (512 KiB with sha256) in memory.
func Of(ctx context.Context, r io.ReaderAt, size int64, alg Algorithm) (Digest, error) {
	v := New(alg)
	var done int64
	if size >= parallelFrom {
		var err error
		if done, err = hashParts(ctx, v, r, size, runtime.GOMAXPROCS(0)); err != nil {
			return "", err
		}
	}
	n, err := io.Copy(v, io.NewSectionReader(r, done, size-done))
	if err != nil {
		return "", fmt.Errorf("compute fs-verity digest: %w", err)
	}
	if n != size-done {
		return "", fmt.Errorf("compute fs-verity digest: %w after %d of %d bytes", io.ErrUnexpectedEOF, done+n, size)
	}
	return v.Sum(), nil
}

// hashParts gives v all whole parts of the file, where a part is what one block
// of level-1 hashes covers. It returns how many bytes that is.
func hashParts(ctx context.Context, v *Hasher, r io.ReaderAt, size int64, workers int) (int64, error) {
	partSize := int64(verityBlock / v.alg.Size() * verityBlock)
	parts := size / partSize
	type result struct {
		hash []byte
		err  error
	}
	// Results are taken in the order of the parts; the window bounds how far
	// the workers run ahead.
	window := make(chan chan result, 2*workers)
	type job struct {
		part int64
		out  chan result
	}
	jobs := make(chan job)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(window)
		defer close(jobs)
		for part := range parts {
			j := job{part, make(chan result, 1)}
			select {
			case window <- j.out:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- j:
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		wg.Go(func() {
			buf := make([]byte, partSize)
			hashes := make([]byte, 0, verityBlock)
			for j := range jobs {
				if n, err := r.ReadAt(buf, j.part*partSize); n < len(buf) {
					if err == io.EOF {
						err = io.ErrUnexpectedEOF
					}
					j.out <- result{err: fmt.Errorf("compute fs-verity digest: %w", err)}
					continue
				}
				hashes = hashes[:0]
				for b := buf; len(b) > 0; b = b[wide*verityBlock:] {
					hashes = v.alg.appendSums(hashes, b[:wide*verityBlock])
				}
				j.out <- result{hash: v.alg.appendSum(nil, hashes)}
			}
		})
	}
	for out := range window {
		select {
		case res := <-out:
			if res.err != nil {
				return 0, res.err
			}
			v.pushHashes(uint64(partSize), res.hash)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return parts * partSize, nil
}
