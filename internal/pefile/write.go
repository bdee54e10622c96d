package pefile

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// Signer makes the certificate table of a program.
type Signer interface {
	// TableSize is how many bytes the table has, a multiple of 8.
	TableSize() int
	// Table makes it for a program of that Authenticode digest, sha256.
	Table(digest [sha256.Size]byte) ([]byte, error)
}

// WriteSigned writes the program with its certificate table behind it, and returns its
// size. The digest that is signed is that of "Windows Authenticode Portable
// Executable Signature Format": of all but the checksum, the directory's entry of
// the table, and the table.
func (d *Draft) WriteSigned(w io.Writer, s Signer) (int64, error) {
	tableSize := s.TableSize()
	start := alignUp(d.size, 8)
	binary.LittleEndian.PutUint32(d.header[d.cert:], uint32(start))
	binary.LittleEndian.PutUint32(d.header[d.cert+4:], uint32(tableSize))
	h := sha256.New()
	for _, part := range [][]byte{d.header[:d.sums], d.header[d.sums+4 : d.cert], d.header[d.cert+8:]} {
		h.Write(part)
	}
	if _, err := w.Write(d.header); err != nil {
		return 0, err
	}
	both := io.MultiWriter(w, h)
	buf := make([]byte, 1<<20)
	for _, data := range d.body {
		n, err := io.CopyBuffer(both, io.NewSectionReader(data, 0, data.Size()), buf)
		if err == nil && n != data.Size() {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		if _, err := both.Write(make([]byte, alignUp(n, d.file)-n)); err != nil {
			return 0, err
		}
	}
	if _, err := both.Write(make([]byte, start-d.size)); err != nil {
		return 0, err
	}
	table, err := s.Table([sha256.Size]byte(h.Sum(nil)))
	if err != nil {
		return 0, err
	}
	if len(table) != tableSize {
		return 0, fmt.Errorf("the signature has %d bytes, and %d were left for it", len(table), tableSize)
	}
	_, err = w.Write(table)
	return start + int64(tableSize), err
}
