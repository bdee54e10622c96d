package loadertest

import (
	"encoding/binary"
)

// Program makes the least PE file that says it is a version of systemd-boot; it
// boots nothing.
func Program(version string) []byte {
	return PE(".sdmagic", "#### LoaderInfo: systemd-boot "+version+" ####\x00")
}

// UKI makes the least unified kernel image; it boots nothing.
func UKI(cmdline, linux, initrd string) []byte {
	return PE(".osrel", "ID=test\n", ".cmdline", cmdline, ".linux", linux, ".initrd", initrd)
}

// PE makes the least PE file with some sections: name, text, name, text.
func PE(sections ...string) []byte {
	le := binary.LittleEndian
	file := make([]byte, 0x40)
	copy(file, "MZ")
	le.PutUint32(file[0x3c:], 0x40)
	file = append(file, "PE\x00\x00"...)
	coff := make([]byte, 20)
	le.PutUint16(coff, 0x8664) // AMD64
	le.PutUint16(coff[2:], uint16(len(sections)/2))
	file = append(file, coff...)
	at := len(file) + len(sections)/2*40
	var data []byte
	for i := 0; i < len(sections); i += 2 {
		header := make([]byte, 40)
		copy(header, sections[i])
		le.PutUint32(header[8:], uint32(len(sections[i+1])))
		le.PutUint32(header[16:], uint32(len(sections[i+1])))
		le.PutUint32(header[20:], uint32(at+len(data)))
		file, data = append(file, header...), append(data, sections[i+1]...)
	}
	return append(file, data...)
}
