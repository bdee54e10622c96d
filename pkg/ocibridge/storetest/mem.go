// Package storetest holds the tests that every implementation of
// ocibridge.Store passes, and a store in memory that other tests import images
// into.
package storetest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// Mem is a Store in memory.
type Mem struct {
	mu       sync.Mutex
	indexes  map[string][]byte
	contents map[fstree.Digest][]byte
	discard  bool
	open     int
}

// NewMem returns an empty store.
func NewMem() *Mem {
	return &Mem{indexes: make(map[string][]byte), contents: make(map[fstree.Digest][]byte)}
}

// NewDiscard returns a store that hashes contents and forgets them: what an
// import costs without one.
func NewDiscard() *Mem {
	m := NewMem()
	m.discard = true
	return m
}

// LayerIndex implements ocibridge.Store.
func (m *Mem) LayerIndex(diffID string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	index, ok := m.indexes[diffID]
	if !ok {
		return nil, fmt.Errorf("layer %s: %w", diffID, fs.ErrNotExist)
	}
	return index, nil
}

// Begin implements ocibridge.Store.
func (m *Mem) Begin(diffID string) (ocibridge.LayerWriter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	return &memWriter{mem: m, diffID: diffID, contents: make(map[fstree.Digest][]byte)}, nil
}

// OpenContent implements ocibridge.Store.
func (m *Mem) OpenContent(d fstree.Digest) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.contents[d]
	if !ok {
		return nil, fmt.Errorf("content %s: %w", d, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(c)), nil
}

// Layers returns how many layers are committed.
func (m *Mem) Layers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.indexes)
}

// OpenWriters returns how many layers were begun and neither committed nor
// aborted.
func (m *Mem) OpenWriters() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

type memWriter struct {
	mem      *Mem
	diffID   string
	contents map[fstree.Digest][]byte
	buf      []byte
	done     bool
}

func (w *memWriter) Put(_ string, meta *fstree.Inode, r io.Reader) (d fstree.Digest, err error) {
	h := sha256.New()
	if w.mem.discard {
		if w.buf == nil {
			w.buf = make([]byte, 128<<10)
		}
		_, err := io.CopyBuffer(h, struct{ io.Reader }{r}, w.buf)
		h.Sum(d[:0])
		return d, err
	}
	content, err := io.ReadAll(io.TeeReader(r, h))
	h.Sum(d[:0])
	if err == nil && int64(len(content)) != meta.Size {
		err = fmt.Errorf("%d bytes came, meta says %d", len(content), meta.Size)
	}
	w.contents[d] = content
	return d, err
}

func (w *memWriter) Commit(index []byte) error {
	w.mem.mu.Lock()
	defer w.mem.mu.Unlock()
	if w.done {
		return fmt.Errorf("layer %s was committed or aborted before", w.diffID)
	}
	w.done = true
	w.mem.open--
	for d, c := range w.contents {
		w.mem.contents[d] = c
	}
	w.mem.indexes[w.diffID] = bytes.Clone(index)
	return nil
}

func (w *memWriter) Abort() {
	w.mem.mu.Lock()
	defer w.mem.mu.Unlock()
	if !w.done {
		w.done = true
		w.mem.open--
	}
}
