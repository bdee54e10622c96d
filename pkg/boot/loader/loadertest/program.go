package loadertest

import (
	"bytes"
	"encoding/binary"
)

// Program makes the least PE file that says it is a version of systemd-boot; it
// boots nothing.
func Program(version string) []byte {
	return PE(".sdmagic", "#### LoaderInfo: systemd-boot "+version+" ####\x00")
}

// PE makes the least PE file with one section that debug/pe reads.
func PE(section, text string) []byte {
	var b bytes.Buffer
	dos := make([]byte, 0x40)
	copy(dos, "MZ")
	binary.LittleEndian.PutUint32(dos[0x3c:], 0x40)
	b.Write(dos)
	b.WriteString("PE\x00\x00")
	coff := make([]byte, 20)
	binary.LittleEndian.PutUint16(coff, 0x8664) // AMD64
	binary.LittleEndian.PutUint16(coff[2:], 1)  // one section
	b.Write(coff)
	header := make([]byte, 40)
	copy(header, section)
	binary.LittleEndian.PutUint32(header[8:], uint32(len(text)))
	binary.LittleEndian.PutUint32(header[16:], uint32(len(text)))
	binary.LittleEndian.PutUint32(header[20:], uint32(b.Len()+len(header)))
	b.Write(header)
	b.WriteString(text)
	return b.Bytes()
}
