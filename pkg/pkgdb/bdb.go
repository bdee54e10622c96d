package pkgdb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// RPM's format until 4.16 (RHEL 8 and older): a hash table of Berkeley DB
// (libdb, src/dbinc/db_page.h). Keys are the packages' numbers, 0 being the
// counter of them; values are headers, in the page or in a chain of others.

var errBDB = errors.New("no Berkeley DB that can be read")

const (
	bdbHashMagic = 0x061561

	bdbPageHashUnsorted = 2
	bdbPageOverflow     = 7
	bdbPageHashMeta     = 8
	bdbPageHash         = 13

	bdbItemInline   = 1
	bdbItemOverflow = 3

	bdbPageHeader = 26
)

type bdb struct {
	f        *source
	order    binary.ByteOrder
	pageSize int64
	seen     map[uint32]bool // overflow pages
}

func readBDB(f, _ *source, fn func([]byte) error) error {
	head, err := f.read(0, 72)
	if err != nil {
		return errBDB
	}
	db := &bdb{f: f, order: binary.LittleEndian, seen: make(map[uint32]bool)}
	if db.order.Uint32(head[12:]) != bdbHashMagic {
		db.order = binary.BigEndian
	}
	db.pageSize = int64(db.order.Uint32(head[20:]))
	if db.order.Uint32(head[12:]) != bdbHashMagic || head[25] != bdbPageHashMeta ||
		db.pageSize < 512 || db.pageSize > 64<<10 || db.pageSize&(db.pageSize-1) != 0 {
		return errBDB
	}
	last := int64(db.order.Uint32(head[32:]))
	if (last+1)*db.pageSize > f.size {
		return fmt.Errorf("%w: it is cut off", errBDB)
	}
	for n := int64(1); n <= last; n++ {
		p, err := f.read(n*db.pageSize, db.pageSize)
		if err != nil {
			return err
		}
		if p[25] != bdbPageHash && p[25] != bdbPageHashUnsorted {
			continue
		}
		if err := db.pairs(p, fn); err != nil {
			return err
		}
	}
	return nil
}

// pairs calls fn for each header of a page: keys and values take turns, from
// the page's end towards its beginning.
func (db *bdb) pairs(p []byte, fn func([]byte) error) error {
	n := int(db.order.Uint16(p[20:]))
	if n%2 != 0 || bdbPageHeader+2*n > len(p) {
		return fmt.Errorf("%w: a page has %d entries", errBDB, n)
	}
	end := len(p)
	item := func(i int) ([]byte, error) {
		at := int(db.order.Uint16(p[bdbPageHeader+2*i:]))
		if at < bdbPageHeader+2*n || at >= end {
			return nil, fmt.Errorf("%w: an entry lies outside of its page", errBDB)
		}
		it := p[at:end]
		end = at
		return it, nil
	}
	for i := 0; i < n; i += 2 {
		key, err := item(i)
		if err != nil {
			return err
		}
		value, err := item(i + 1)
		if err != nil {
			return err
		}
		if len(key) == 5 && string(key[1:]) == "\x00\x00\x00\x00" {
			continue
		}
		header := value[1:]
		switch value[0] {
		case bdbItemInline:
		case bdbItemOverflow:
			if header, err = db.overflow(value); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: an entry is of type %d", errBDB, value[0])
		}
		if err := fn(header); err != nil {
			return err
		}
	}
	return nil
}

// overflow reads a value that lies in pages of its own. Each belongs to one
// value, so that no chain is endless.
func (db *bdb) overflow(item []byte) ([]byte, error) {
	if len(item) < 12 {
		return nil, errBDB
	}
	next, size := db.order.Uint32(item[4:]), int64(db.order.Uint32(item[8:]))
	var out []byte
	for next != 0 {
		p, err := db.f.read(int64(next)*db.pageSize, db.pageSize)
		if err != nil {
			return nil, err
		}
		used := int(db.order.Uint16(p[22:]))
		if p[25] != bdbPageOverflow || db.seen[next] || bdbPageHeader+used > len(p) {
			return nil, fmt.Errorf("%w: page %d is out of place", errBDB, next)
		}
		db.seen[next] = true
		out = append(out, p[bdbPageHeader:bdbPageHeader+used]...)
		next = db.order.Uint32(p[16:])
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("%w: an entry of %d bytes has %d", errBDB, size, len(out))
	}
	return out, nil
}
