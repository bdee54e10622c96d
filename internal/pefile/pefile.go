// Package pefile finds the sections of PE files, which EFI programs are. It
// reads headers and nothing else, from files that nobody vouches for. Source of
// the format: https://learn.microsoft.com/windows/win32/debug/pe-format
package pefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	dosSize     = 0x40 // with the place of the PE header at its end
	coffSize    = 24   // with the signature before it
	sectionSize = 40
)

var errFormat = errors.New("it is not a PE file")

// Section is a named part of a file.
type Section struct {
	Name string
	// Offset and Size are what of the file is in it, without padding.
	Offset, Size int64
}

// Sections reads the section table of a file of size bytes. Sections that reach
// beyond its end are an error, and so is anything that is no PE file.
func Sections(r io.ReaderAt, size int64) ([]Section, error) {
	var dos [dosSize]byte
	if _, err := r.ReadAt(dos[:], 0); err != nil || !bytes.HasPrefix(dos[:], []byte("MZ")) {
		return nil, notPE(err)
	}
	at := int64(binary.LittleEndian.Uint32(dos[dosSize-4:]))
	var coff [coffSize]byte
	if _, err := r.ReadAt(coff[:], at); err != nil || !bytes.HasPrefix(coff[:], []byte("PE\x00\x00")) {
		return nil, notPE(err)
	}
	n, optional := binary.LittleEndian.Uint16(coff[6:]), binary.LittleEndian.Uint16(coff[20:])
	table := make([]byte, int(n)*sectionSize)
	if _, err := r.ReadAt(table, at+coffSize+int64(optional)); err != nil && n > 0 {
		return nil, notPE(err)
	}
	list := make([]Section, n)
	for i := range list {
		h := table[i*sectionSize:][:sectionSize]
		name, _, _ := bytes.Cut(h[:8], []byte{0})
		s := Section{Name: string(name), Size: int64(binary.LittleEndian.Uint32(h[16:])), Offset: int64(binary.LittleEndian.Uint32(h[20:]))}
		if virtual := int64(binary.LittleEndian.Uint32(h[8:])); virtual > 0 {
			s.Size = min(s.Size, virtual)
		}
		if s.Size > 0 && s.Offset+s.Size > size {
			return nil, fmt.Errorf("section %q ends behind the end of the file", s.Name)
		}
		list[i] = s
	}
	return list, nil
}

// notPE keeps errors of reading apart from files that are too short.
func notPE(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errFormat
	}
	return err
}

// Find reads the first section of that name of a file in memory that has at most
// limit bytes; false where it has none.
func Find(file []byte, name string, limit int64) ([]byte, bool) {
	list, err := Sections(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil, false
	}
	for _, s := range list {
		if s.Name == name && s.Size > 0 && s.Size <= limit {
			return file[s.Offset:][:s.Size], true
		}
	}
	return nil, false
}
