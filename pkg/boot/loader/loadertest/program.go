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

// PE makes the least PE32+ file with some sections: name, text, name, text.
func PE(sections ...string) []byte {
	const fileAlign, memoryAlign, optionalSize = 8, 4096, 112 + 8*16
	le := binary.LittleEndian
	align := func(n, to int) int { return (n + to - 1) / to * to }
	n := len(sections) / 2
	const coff, optional, table = 0x40, 0x40 + 24, 0x40 + 24 + optionalSize
	file := make([]byte, align(table+n*40, fileAlign))
	headers, address := len(file), memoryAlign
	copy(file, "MZ")
	le.PutUint32(file[0x3c:], coff)
	copy(file[coff:], "PE\x00\x00")
	le.PutUint16(file[coff+4:], 0x8664) // AMD64
	le.PutUint16(file[coff+6:], uint16(n))
	le.PutUint16(file[coff+20:], optionalSize)
	le.PutUint16(file[coff+22:], 0x22e) // a program for 64 bits
	for i := range n {
		name, text := sections[2*i], sections[2*i+1]
		header := file[table+i*40:][:40]
		copy(header, name)
		le.PutUint32(header[8:], uint32(len(text)))
		le.PutUint32(header[12:], uint32(address))
		le.PutUint32(header[16:], uint32(len(text)))
		le.PutUint32(header[20:], uint32(len(file)))
		file, address = append(file, text...), align(address+len(text), memoryAlign)
	}
	h := file[optional:]
	le.PutUint16(h, 0x20b) // PE32+
	le.PutUint32(h[32:], memoryAlign)
	le.PutUint32(h[36:], fileAlign)
	le.PutUint32(h[56:], uint32(address))
	le.PutUint32(h[60:], uint32(headers))
	le.PutUint16(h[68:], 10) // EFI application
	le.PutUint32(h[108:], 16)
	return file
}
