package pkgdb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// RPM's own format, of SUSE's images (rpm, lib/backend/ndb/rpmpkg.c): slots of
// 16 bytes, the first two of which are the file's header, in pages of 4096; a
// slot that is used leads to a blob. All numbers are little-endian.

var errNDB = errors.New("no NDB database that can be read")

func readNDB(f, _ *source, fn func([]byte) error) error {
	const slot, slotsInPage = 16, 4096 / 16
	head, err := f.read(0, 2*slot)
	if err != nil || string(head[:4]) != "RpmP" || binary.LittleEndian.Uint32(head[4:]) != 0 {
		return errNDB
	}
	pages := int64(binary.LittleEndian.Uint32(head[12:]))
	slots, err := f.read(2*slot, (pages*slotsInPage-2)*slot)
	if err != nil {
		return fmt.Errorf("%w: it says it has %d pages of slots", errNDB, pages)
	}
	left := f.size // blobs do not overlap
	for ; len(slots) > 0; slots = slots[slot:] {
		if string(slots[:4]) != "Slot" {
			return fmt.Errorf("%w: a slot is damaged", errNDB)
		}
		id := binary.LittleEndian.Uint32(slots[4:])
		if id == 0 {
			continue
		}
		at := int64(binary.LittleEndian.Uint32(slots[8:])) * 16
		blob, err := f.read(at, 16)
		if err != nil || string(blob[:4]) != "BlbS" || binary.LittleEndian.Uint32(blob[4:]) != id {
			return fmt.Errorf("%w: package %d is not where it should be", errNDB, id)
		}
		size := int64(binary.LittleEndian.Uint32(blob[12:]))
		if left -= size; size > maxHeader || left < 0 {
			return fmt.Errorf("%w: package %d has %d bytes", errNDB, id, size)
		}
		header, err := f.read(at+16, size)
		if err != nil {
			return fmt.Errorf("%w: package %d is cut off", errNDB, id)
		}
		if err := fn(header); err != nil {
			return err
		}
	}
	return nil
}
