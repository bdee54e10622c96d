package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// Run holds a store to the contract of ocibridge.Store. open returns the store
// that the test is about; called again within the same test it returns another
// handle to the same data, as the next process would have it.
func Run(t *testing.T, open func(t *testing.T) func() ocibridge.Store) {
	tests := []struct {
		name string
		run  func(t *testing.T, open func() ocibridge.Store)
	}{
		{"UnknownLayer", testUnknownLayer},
		{"CommitMakesVisible", testCommit},
		{"AbortForgets", testAbort},
		{"AbortAfterCommit", testAbortAfterCommit},
		{"ReaderError", testReaderError},
		{"SameContentTwice", testSameContent},
		{"ParallelLayers", testParallel},
		{"NextHandle", testNextHandle},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

const layerA, layerB = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

func begin(t *testing.T, s ocibridge.Store, diffID string) ocibridge.LayerWriter {
	t.Helper()
	w, err := s.Begin(diffID)
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	return w
}

func regular(size int) *fstree.Inode {
	return &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: int64(size)}
}

func put(t *testing.T, w ocibridge.LayerWriter, path, content string) fstree.Digest {
	t.Helper()
	d, err := w.Put(path, regular(len(content)), strings.NewReader(content))
	if err != nil {
		t.Fatalf("Put %s: %v", path, err)
	}
	return d
}

func wantContent(t *testing.T, s ocibridge.Store, d fstree.Digest, want string) {
	t.Helper()
	r, err := s.OpenContent(d)
	if err != nil {
		t.Fatalf("OpenContent: %v", err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != want {
		t.Fatalf("content %s has %d bytes (%v), want the %d that were put", d, len(got), err, len(want))
	}
}

func wantNoLayer(t *testing.T, s ocibridge.Store, diffID string) {
	t.Helper()
	if _, err := s.LayerIndex(diffID); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("LayerIndex of a layer that was not committed: %v, want fs.ErrNotExist", err)
	}
}

func testUnknownLayer(t *testing.T, open func() ocibridge.Store) {
	s := open()
	wantNoLayer(t, s, layerA)
	if r, err := s.OpenContent(fstree.Digest{1}); err == nil {
		r.Close()
		t.Fatal("OpenContent of an unknown content succeeded")
	}
}

func testCommit(t *testing.T, open func() ocibridge.Store) {
	s := open()
	w := begin(t, s, layerA)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	d1, d2, d3 := put(t, w, "usr/bin/one", "one"), put(t, w, "usr/bin/empty", ""), put(t, w, "usr/bin/big", big)
	wantNoLayer(t, s, layerA)
	index := []byte("an index, \x00 any bytes")
	if err := w.Commit(index); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	got, err := s.LayerIndex(layerA)
	if err != nil {
		t.Fatalf("LayerIndex after Commit: %v", err)
	}
	if diff := cmp.Diff(index, got); diff != "" {
		t.Fatalf("the index changed (-committed +read):\n%s", diff)
	}
	wantContent(t, s, d1, "one")
	wantContent(t, s, d2, "")
	wantContent(t, s, d3, big)
}

func testAbort(t *testing.T, open func() ocibridge.Store) {
	s := open()
	w := begin(t, s, layerA)
	put(t, w, "a", "content of an aborted layer")
	w.Abort()
	w.Abort()
	wantNoLayer(t, s, layerA)
	w = begin(t, s, layerA)
	d := put(t, w, "a", "second try")
	if err := w.Commit([]byte("x")); err != nil {
		t.Fatalf("Commit after an earlier Abort: %v", err)
	}
	wantContent(t, s, d, "second try")
}

func testAbortAfterCommit(t *testing.T, open func() ocibridge.Store) {
	s := open()
	w := begin(t, s, layerA)
	d := put(t, w, "a", "kept")
	if err := w.Commit([]byte("x")); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	w.Abort()
	if _, err := s.LayerIndex(layerA); err != nil {
		t.Fatalf("LayerIndex after Commit and Abort: %v", err)
	}
	wantContent(t, s, d, "kept")
}

func testReaderError(t *testing.T, open func() ocibridge.Store) {
	s := open()
	w := begin(t, s, layerA)
	broken := errors.New("the stream broke")
	r := io.MultiReader(strings.NewReader("part"), iotest.ErrReader(broken))
	if _, err := w.Put("a", regular(100), r); !errors.Is(err, broken) {
		t.Fatalf("Put of a broken stream: %v, want the stream's error", err)
	}
	w.Abort()
	wantNoLayer(t, s, layerA)
}

func testSameContent(t *testing.T, open func() ocibridge.Store) {
	s := open()
	w := begin(t, s, layerA)
	d := put(t, w, "a", "the same")
	if again := put(t, w, "b", "the same"); again != d {
		t.Fatalf("the same content has the digests %s and %s", d, again)
	}
	if other := put(t, w, "other", "the sane"); other == d {
		t.Fatalf("two contents have the digest %s", d)
	}
	meta := regular(len("the same"))
	meta.Mode, meta.UID = unix.S_IFREG|0o4755, 7
	if again, err := w.Put("c", meta, strings.NewReader("the same")); err != nil || again != d {
		t.Fatalf("Put of the same content with another owner: %s, %v, want %s", again, err, d)
	}
	if err := w.Commit([]byte("x")); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	w = begin(t, s, layerB)
	if again := put(t, w, "a", "the same"); again != d {
		t.Fatalf("the same content has the digest %s in another layer, was %s", again, d)
	}
	if err := w.Commit([]byte("y")); err != nil {
		t.Fatalf("Commit of a layer with content that is there: %v", err)
	}
	wantContent(t, s, d, "the same")
}

func testParallel(t *testing.T, open func() ocibridge.Store) {
	s := open()
	var wg sync.WaitGroup
	digests := make([][]fstree.Digest, 4)
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w, err := s.Begin(fmt.Sprintf("sha256:%064d", i))
			if err != nil {
				t.Errorf("Begin: %v", err)
				return
			}
			for j := range 100 {
				content := bytes.Repeat([]byte{byte(j)}, j*37)
				if i%2 == 1 {
					content = append(content, byte(i)) // half of the layers share contents
				}
				d, err := w.Put(fmt.Sprintf("f%d", j), regular(len(content)), bytes.NewReader(content))
				if err != nil {
					t.Errorf("Put: %v", err)
				}
				digests[i] = append(digests[i], d)
			}
			if err := w.Commit([]byte{byte(i)}); err != nil {
				t.Errorf("Commit: %v", err)
			}
		}()
	}
	wg.Wait()
	if !slices.Equal(digests[0], digests[2]) {
		t.Error("the same contents have other digests in a layer beside")
	}
	for i := range 4 {
		if got, err := s.LayerIndex(fmt.Sprintf("sha256:%064d", i)); err != nil || len(got) != 1 || got[0] != byte(i) {
			t.Errorf("layer %d: index %v, %v", i, got, err)
		}
	}
}

func testNextHandle(t *testing.T, open func() ocibridge.Store) {
	s := open()
	w := begin(t, s, layerA)
	d := put(t, w, "a", "kept for the next process")
	if err := w.Commit([]byte("x")); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	next := open()
	if _, err := next.LayerIndex(layerA); err != nil {
		t.Fatalf("a committed layer is unknown to the next handle: %v", err)
	}
	wantContent(t, next, d, "kept for the next process")
}
