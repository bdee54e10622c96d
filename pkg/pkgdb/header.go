package pkgdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// Tags and types of RPM's headers (rpmtag.h, "RPM V4 package format").
const (
	tagName    = 1000
	tagVersion = 1001
	tagRelease = 1002
	tagEpoch   = 1003
	tagArch    = 1022

	typeInt32  = 4
	typeString = 6
)

// maxHeader is RPM's own limit, in bytes.
const maxHeader = 256 << 20

// maxText is the most that a name, version, release or architecture may have.
const maxText = 1024

var errHeader = errors.New("a header is damaged")

// parseHeader reads what a package is from its header: the number of entries
// and the length of the data, big-endian; the entries (tag, type, offset,
// count); the data.
func parseHeader(b []byte) (p Package, err error) {
	if len(b) < 8 {
		return p, errHeader
	}
	entries, size := int64(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[4:]))
	if size > maxHeader || 8+16*entries+size > int64(len(b)) {
		return p, fmt.Errorf("%w: it says it has %d entries and %d bytes", errHeader, entries, size)
	}
	index, data := b[8:8+16*entries], b[8+16*entries:8+16*entries+size]
	var version, release, epoch string
	texts := map[uint32]*string{tagName: &p.Name, tagVersion: &version, tagRelease: &release, tagArch: &p.Arch}
	for ; len(index) > 0; index = index[16:] {
		tag, typ := binary.BigEndian.Uint32(index), binary.BigEndian.Uint32(index[4:])
		off := int64(binary.BigEndian.Uint32(index[8:]))
		text := texts[tag]
		if text == nil && tag != tagEpoch {
			continue
		}
		if off >= size {
			return p, errHeader
		}
		value := data[off:]
		switch {
		case text != nil && typ == typeString:
			end := bytes.IndexByte(value, 0)
			if end < 0 || end > maxText {
				return p, errHeader
			}
			*text = string(value[:end])
		case tag == tagEpoch && typ == typeInt32 && len(value) >= 4:
			if n := binary.BigEndian.Uint32(value); n != 0 {
				epoch = strconv.FormatUint(uint64(n), 10) + ":"
			}
		default:
			return p, errHeader
		}
	}
	if p.Name == "" || version == "" {
		return p, fmt.Errorf("%w: it has no name or no version", errHeader)
	}
	p.Version = epoch + version + "-" + release
	if p.Name == "gpg-pubkey" || p.Arch == "" {
		p.Arch = "noarch"
	}
	return p, nil
}
