// Package writeback begins to write to disk what is staged while more arrives,
// so that the sync before a commit finds less to do.
package writeback

import (
	"sync"
	"sync/atomic"
)

// every is how many bytes are staged between two times.
const every = 64 << 20

// Writer counts what is staged. It is safe for concurrent use.
type Writer struct {
	// Sync writes what there is. Its error is nobody's: the sync before the
	// commit tells of what is wrong.
	Sync func() error

	dirty   atomic.Int64 // bytes since the last time
	running atomic.Bool
	wg      sync.WaitGroup
}

// Add tells of n bytes more.
func (w *Writer) Add(n int64) {
	if w.dirty.Add(n) < every || !w.running.CompareAndSwap(false, true) {
		return
	}
	w.dirty.Store(0)
	w.wg.Go(func() {
		_ = w.Sync()
		w.running.Store(false)
	})
}

// Wait waits until nothing is being written.
func (w *Writer) Wait() { w.wg.Wait() }
