package ostree

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"os"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// parallelHash is the size from which a content's hashes run beside the reader
// and the writer.
const parallelHash = 1 << 20

// copyHashed copies r to w, at most size bytes and one more, and feeds every
// hash. It returns how many bytes r had: more than size means that r is longer.
// r is read once, in pieces of the buffer's size; large contents are hashed in
// goroutines of their own while the next piece is read.
func copyHashed(ctx context.Context, w io.Writer, r io.Reader, size int64, buf []byte, hashes ...hash.Hash) (total int64, err error) {
	if size < parallelHash {
		for {
			k, err := readAll(r, buf)
			if total += int64(k); total > size || err != nil {
				return total, err
			}
			for _, h := range hashes {
				h.Write(buf[:k])
			}
			if _, err := w.Write(buf[:k]); err != nil {
				return total, err
			}
			if k < len(buf) {
				return total, nil
			}
		}
	}
	second := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(second)
	bufs := [2][]byte{buf, second[:]}
	p := startHashers(hashes)
	defer p.stop()
	for i := 0; ; i ^= 1 {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		k, err := readAll(r, bufs[i])
		p.wait() // the piece before this one
		if total += int64(k); total > size || err != nil {
			return total, err
		}
		p.feed(bufs[i][:k])
		if _, err := w.Write(bufs[i][:k]); err != nil {
			return total, err
		}
		if k < len(bufs[i]) {
			p.wait()
			return total, nil
		}
	}
}

// sumContent returns the checksum of the object with a header and the content
// in r, which must have n's size.
func sumContent(ctx context.Context, header []byte, n *fstree.Inode, r io.Reader) (sum Checksum, err error) {
	h := sha256.New()
	h.Write(header)
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for total := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		k, err := readAll(r, buf[:])
		if err != nil {
			return sum, err
		}
		h.Write(buf[:k])
		if total += int64(k); k < len(buf) {
			if total != n.Size {
				return sum, wrongSize(n)
			}
			h.Sum(sum[:0])
			return sum, nil
		}
	}
}

// hashers feeds pieces to hashes in one goroutine each.
type hashers struct {
	in      []chan []byte
	done    chan struct{}
	pending int
}

func startHashers(hashes []hash.Hash) *hashers {
	p := &hashers{done: make(chan struct{}, len(hashes))}
	for _, h := range hashes {
		in := make(chan []byte)
		p.in = append(p.in, in)
		go func() {
			for b := range in {
				h.Write(b)
				p.done <- struct{}{}
			}
		}()
	}
	return p
}

func (p *hashers) feed(b []byte) {
	for _, in := range p.in {
		in <- b
	}
	p.pending = len(p.in)
}

func (p *hashers) wait() {
	for ; p.pending > 0; p.pending-- {
		<-p.done
	}
}

func (p *hashers) stop() {
	p.wait()
	for _, in := range p.in {
		close(in)
	}
}

// readAll fills buf as far as r has bytes. Unlike io.ReadFull it tells the end
// of r from an error of the kind io.ErrUnexpectedEOF inside r.
func readAll(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) {
		k, err := r.Read(buf[n:])
		n += k
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// sparseWriter writes blocks of zeros as holes. The caller sets the length.
type sparseWriter struct{ f *os.File }

func (w sparseWriter) Write(p []byte) (int, error) {
	if len(p) < copyBuffer || !allZero(p) {
		return w.f.Write(p)
	}
	_, err := w.f.Seek(int64(len(p)), io.SeekCurrent)
	return len(p), err
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
