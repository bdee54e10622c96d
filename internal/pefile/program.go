package pefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Places in the optional header of PE32+, and bounds on what is in it.
const (
	magic64      = 0x20b
	atMagic      = 0
	atAlignment  = 32 // of sections in memory; of those in the file behind it
	atImageSize  = 56
	atHeaderSize = 60
	atChecksum   = 64
	atDirectory  = 112
	// certificates is the place of the certificate table among the directories.
	certificates = 4

	maxHeader   = 1 << 20
	maxSections = 96
	maxAlign    = 1 << 20
	// MaxSize bounds what a program takes, in its file and in memory.
	MaxSize = 1 << 30
)

// Program is a PE32+ file from which another one can be made.
type Program struct {
	Sections []Section // in their order in memory

	r        io.ReaderAt
	header   []byte // with the section table
	optional int    // where in it the optional header is
	table    int    // and the section table
	align    int64  // of sections in memory
	file     int64  // of sections in the file
	places   []place
}

// place is where a section is in memory.
type place struct {
	header        []byte // its line of the section table
	address, size int64
}

// Parse reads a file of size bytes so that Rebuild can make another one of it.
// Sections that overlap, or that do not follow each other in memory, are an error.
func Parse(r io.ReaderAt, size int64) (*Program, error) {
	if size > MaxSize {
		return nil, fmt.Errorf("it has %d bytes, more than %d", size, int64(MaxSize))
	}
	sections, err := Sections(r, size)
	if err != nil {
		return nil, err
	}
	if len(sections) > maxSections {
		return nil, fmt.Errorf("it has %d sections, more than %d", len(sections), maxSections)
	}
	p := &Program{Sections: sections, r: r}
	if err := p.readHeader(size); err != nil {
		return nil, err
	}
	return p, p.readPlaces()
}

// readHeader reads what stands before the sections. Sections has found the
// signatures in it.
func (p *Program) readHeader(size int64) error {
	var word [4]byte
	if _, err := p.r.ReadAt(word[:], dosSize-4); err != nil {
		return notPE(err)
	}
	coff := int64(binary.LittleEndian.Uint32(word[:]))
	if coff > maxHeader {
		return errFormat
	}
	if _, err := p.r.ReadAt(word[:2], coff+20); err != nil {
		return notPE(err)
	}
	p.optional = int(coff) + coffSize
	optionalSize := int(binary.LittleEndian.Uint16(word[:]))
	p.table = p.optional + optionalSize
	fixed := make([]byte, atDirectory)
	if _, err := p.r.ReadAt(fixed, int64(p.optional)); err != nil {
		return notPE(err)
	}
	le := binary.LittleEndian
	if optionalSize < atDirectory || le.Uint16(fixed[atMagic:]) != magic64 {
		return errors.New("it is not a 64-bit program")
	}
	directories := le.Uint32(fixed[atDirectory-4:])
	if directories <= certificates || directories > 16 || optionalSize < atDirectory+8*int(directories) {
		return errors.New("it has no place for a signature")
	}
	p.align, p.file = int64(le.Uint32(fixed[atAlignment:])), int64(le.Uint32(fixed[atAlignment+4:]))
	power := func(n int64) bool { return n >= 8 && n <= maxAlign && n&(n-1) == 0 }
	if !power(p.align) || !power(p.file) || p.align < p.file {
		return fmt.Errorf("it has the alignments %d and %d", p.align, p.file)
	}
	n := int64(le.Uint32(fixed[atHeaderSize:]))
	if n > min(maxHeader, size) || n < int64(p.table+len(p.Sections)*sectionSize) || n%p.file != 0 {
		return fmt.Errorf("it has a header of %d bytes", n)
	}
	p.header = make([]byte, n)
	if _, err := p.r.ReadAt(p.header, 0); err != nil {
		return notPE(err)
	}
	return nil
}

// readPlaces checks where the sections are.
func (p *Program) readPlaces() error {
	free := int64(len(p.header))
	for i, s := range p.Sections {
		h := p.header[p.table+i*sectionSize:][:sectionSize]
		at := place{header: h, size: int64(binary.LittleEndian.Uint32(h[8:])), address: int64(binary.LittleEndian.Uint32(h[12:]))}
		if at.size == 0 {
			at.size = s.Size
		}
		if at.address < free || at.address%p.align != 0 || at.address+at.size > MaxSize {
			return fmt.Errorf("section %q is not behind the one before it in memory", s.Name)
		}
		free = alignUp(at.address+at.size, p.align)
		for _, o := range p.Sections[:i] {
			if s.Size > 0 && o.Size > 0 && s.Offset < o.Offset+o.Size && o.Offset < s.Offset+s.Size {
				return fmt.Errorf("sections %q and %q overlap", o.Name, s.Name)
			}
		}
		if s.Size > 0 && s.Offset < int64(len(p.header)) {
			return fmt.Errorf("section %q overlaps the header", s.Name)
		}
		p.places = append(p.places, at)
	}
	return nil
}

// Open reads a section.
func (p *Program) Open(s Section) *io.SectionReader {
	return io.NewSectionReader(p.r, s.Offset, s.Size)
}

// MemorySize returns how many bytes a program takes in memory, and 0 for what is no
// PE file.
func MemorySize(r io.ReaderAt) int64 {
	var dos [dosSize]byte
	if _, err := r.ReadAt(dos[:], 0); err != nil || !bytes.HasPrefix(dos[:], []byte("MZ")) {
		return 0
	}
	head := make([]byte, coffSize+atImageSize+4)
	coff := int64(binary.LittleEndian.Uint32(dos[dosSize-4:]))
	if _, err := r.ReadAt(head, coff); err != nil || !bytes.HasPrefix(head, []byte("PE\x00\x00")) {
		return 0
	}
	return int64(binary.LittleEndian.Uint32(head[coffSize+atImageSize:]))
}

// Payload is a section that a program is to have beside those that it runs with.
type Payload struct {
	Name string // at most 8 bytes
	Data *io.SectionReader
	// Memory is how many bytes it takes in memory; what the data has, where that is
	// more.
	Memory int64
}

// Draft is a program that is to be written.
type Draft struct {
	header []byte
	// body are the sections in their order in the file.
	body []*io.SectionReader
	file int64
	sums int // where in the header the checksum is
	cert int // and the directory of the certificate table
	size int64
}

// Rebuild plans a program of the sections of p that keep names, where they are in
// memory, and the payload behind them. It has no signature. More sections than p
// has are an error: there may be no place for them in the header.
func (p *Program) Rebuild(keep func(name string) bool, payload []Payload) (*Draft, error) {
	le := binary.LittleEndian
	d := &Draft{
		header: bytes.Clone(p.header), file: p.file, size: int64(len(p.header)),
		sums: p.optional + atChecksum, cert: p.optional + atDirectory + 8*certificates,
	}
	table := d.header[p.table:]
	clear(table[:len(p.Sections)*sectionSize])
	n, free := 0, int64(len(p.header))
	add := func(line []byte, memory, address int64, data *io.SectionReader) error {
		if n == len(p.Sections) {
			return errors.New("there is no place for another section")
		}
		raw := alignUp(data.Size(), p.file)
		if address+memory > MaxSize || d.size+raw > MaxSize {
			return fmt.Errorf("it would have more than %d bytes", int64(MaxSize))
		}
		h := table[n*sectionSize:][:sectionSize]
		copy(h, line)
		le.PutUint32(h[8:], uint32(memory))
		le.PutUint32(h[12:], uint32(address))
		le.PutUint32(h[16:], uint32(raw))
		le.PutUint32(h[20:], 0)
		if raw > 0 {
			le.PutUint32(h[20:], uint32(d.size))
			d.body = append(d.body, data)
		}
		n++
		d.size += raw
		free = alignUp(address+memory, p.align)
		return nil
	}
	for i, s := range p.Sections {
		if !keep(s.Name) {
			continue
		}
		if err := add(p.places[i].header, p.places[i].size, p.places[i].address, p.Open(s)); err != nil {
			return nil, err
		}
	}
	for _, s := range payload {
		line := make([]byte, sectionSize)
		if copy(line[:8], s.Name) < len(s.Name) {
			return nil, fmt.Errorf("the name %q of a section is too long", s.Name)
		}
		const initializedRead = 0x40000040
		le.PutUint32(line[36:], initializedRead)
		if err := add(line, max(s.Memory, s.Data.Size()), free, s.Data); err != nil {
			return nil, err
		}
	}
	coff := d.header[p.optional-coffSize:]
	le.PutUint16(coff[6:], uint16(n))
	clear(coff[12:20]) // symbols, which stood behind the sections
	le.PutUint32(d.header[p.optional+atImageSize:], uint32(free))
	// The firmware looks at no checksum.
	clear(d.header[d.sums:][:4])
	clear(d.header[d.cert:][:8])
	return d, nil
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }
