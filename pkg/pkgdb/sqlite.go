package pkgdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// RPM's table is read as SQLite lays it out ("Database File Format",
// sqlite.org/fileformat2.html): a tree of pages, with overflow pages for long
// rows, and a log of newer pages where the last writer left one.

const sqliteMagic = "SQLite format 3\x00"

var errSQLite = errors.New("no SQLite database that can be read")

type sqlite struct {
	f, wal   *source
	pageSize int64
	usable   int64 // of a page, in bytes
	pages    int64
	newer    map[uint32]int64 // pages in the log, with their places
	seen     map[uint32]bool
}

// readSQLite calls fn for each header of RPM's table Packages (hnum, blob).
func readSQLite(f, wal *source, fn func([]byte) error) error {
	db := &sqlite{f: f, wal: wal, newer: make(map[uint32]int64), seen: make(map[uint32]bool)}
	head, err := f.read(0, 100)
	if err != nil || string(head[:16]) != sqliteMagic {
		return errSQLite
	}
	db.pageSize = int64(binary.BigEndian.Uint16(head[16:]))
	if db.pageSize == 1 {
		db.pageSize = 64 << 10
	}
	db.usable = db.pageSize - int64(head[20])
	if db.pageSize < 512 || db.pageSize&(db.pageSize-1) != 0 || db.usable < 480 {
		return errSQLite
	}
	db.pages = f.size / db.pageSize
	if wal != nil && wal.size > 0 && head[19] == 2 {
		if err := db.readLog(); err != nil {
			return err
		}
	}
	var root uint32
	err = db.walk(1, 0, func(row []byte) error {
		// type, name, tbl_name, rootpage, sql
		v, err := columns(row, 4)
		if err == nil && string(v[0].bytes) == "table" && string(v[1].bytes) == "Packages" {
			root = uint32(v[3].number)
		}
		return err
	})
	if err != nil {
		return err
	}
	if root == 0 {
		return fmt.Errorf("%w: it has no table Packages", errSQLite)
	}
	return db.walk(root, 0, func(row []byte) error {
		v, err := columns(row, 2)
		if err != nil {
			return err
		}
		return fn(v[1].bytes)
	})
}

// readLog finds the pages in the write-ahead log that were committed.
func (db *sqlite) readLog() error {
	head, err := db.wal.read(0, 32)
	if err != nil {
		return nil //nolint:nilerr // a log without a header is empty
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.BigEndian.Uint32(head) {
	case 0x377f0682:
	case 0x377f0683:
		order = binary.BigEndian
	default:
		return nil
	}
	if int64(binary.BigEndian.Uint32(head[8:])) != db.pageSize {
		return fmt.Errorf("%w: its log is of another", errSQLite)
	}
	var sum [2]uint32
	add := func(b []byte) {
		for ; len(b) >= 8; b = b[8:] {
			sum[0] += order.Uint32(b) + sum[1]
			sum[1] += order.Uint32(b[4:]) + sum[0]
		}
	}
	is := func(b []byte) bool {
		return sum[0] == binary.BigEndian.Uint32(b) && sum[1] == binary.BigEndian.Uint32(b[4:])
	}
	if add(head[:24]); !is(head[24:]) {
		return nil
	}
	frames := make(map[uint32]int64)
	for at := int64(32); ; at += 24 + db.pageSize {
		frame, err := db.wal.read(at, 24+db.pageSize)
		if err != nil {
			return nil //nolint:nilerr // its end
		}
		add(frame[:8])
		add(frame[24:])
		if string(frame[8:16]) != string(head[16:24]) || !is(frame[16:]) {
			return nil // left from an earlier round
		}
		frames[binary.BigEndian.Uint32(frame)] = at + 24
		if size := binary.BigEndian.Uint32(frame[4:]); size != 0 { // a commit
			for page, place := range frames {
				db.newer[page] = place
			}
			clear(frames)
			db.pages = int64(size)
		}
	}
}

// page reads a page; each may be read once, so that nothing goes in circles.
func (db *sqlite) page(n uint32) ([]byte, error) {
	if n == 0 || int64(n) > db.pages || db.seen[n] {
		return nil, fmt.Errorf("%w: page %d is out of place", errSQLite, n)
	}
	if n != 1 { // the first has the schema and is not part of any table
		db.seen[n] = true
	}
	if at, ok := db.newer[n]; ok {
		return db.wal.read(at, db.pageSize)
	}
	return db.f.read(int64(n-1)*db.pageSize, db.pageSize)
}

const (
	maxDepth      = 32
	interiorTable = 0x05
	leafTable     = 0x0d
)

// walk calls fn for each row below a page of a table.
func (db *sqlite) walk(n uint32, depth int, fn func(row []byte) error) error {
	p, err := db.page(n)
	if err != nil {
		return err
	}
	head := p
	if n == 1 {
		head = p[100:]
	}
	size := 8
	if head[0] == interiorTable {
		size = 12
	}
	cells := int(binary.BigEndian.Uint16(head[3:]))
	if depth > maxDepth || head[0] != interiorTable && head[0] != leafTable || size+2*cells > len(head) {
		return fmt.Errorf("%w: page %d is no page of a table", errSQLite, n)
	}
	room := int64(len(p)) // rows do not overlap
	for i := range cells {
		at := int(binary.BigEndian.Uint16(head[size+2*i:]))
		if at+4 > len(p) {
			return fmt.Errorf("%w: page %d has a row outside of it", errSQLite, n)
		}
		if head[0] == interiorTable {
			err = db.walk(binary.BigEndian.Uint32(p[at:]), depth+1, fn)
		} else {
			var row []byte
			var local int64
			row, local, err = db.row(p[at:])
			if room -= local; err == nil && room < 0 {
				err = fmt.Errorf("%w: the rows of page %d are larger than it", errSQLite, n)
			}
			if err == nil {
				err = fn(row)
			}
		}
		if err != nil {
			return err
		}
	}
	if head[0] == interiorTable {
		return db.walk(binary.BigEndian.Uint32(head[8:]), depth+1, fn)
	}
	return nil
}

// row returns the payload of a leaf's cell: its length, the row's number, what
// of it fits into the page, and the first of the pages with the rest. local is
// how much of it is in the page.
func (db *sqlite) row(cell []byte) (row []byte, local int64, err error) {
	length, cell := varint(cell)
	_, cell = varint(cell)
	if length > maxHeader || int64(length) > db.pages*db.pageSize {
		return nil, 0, fmt.Errorf("%w: a row has %d bytes", errSQLite, length)
	}
	size := int64(length)
	local = size
	if size > db.usable-35 {
		least := (db.usable-12)*32/255 - 23
		if local = least + (size-least)%(db.usable-4); local > db.usable-35 {
			local = least
		}
	}
	if local > int64(len(cell)) {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if local == size {
		return cell[:size], local, nil
	}
	if local+4 > int64(len(cell)) {
		return nil, 0, io.ErrUnexpectedEOF
	}
	next := binary.BigEndian.Uint32(cell[local:])
	row = append([]byte{}, cell[:local]...)
	for int64(len(row)) < size {
		p, err := db.page(next)
		if err != nil {
			return nil, 0, err
		}
		next = binary.BigEndian.Uint32(p)
		row = append(row, p[4:min(db.usable, 4+size-int64(len(row)))]...)
	}
	return row, local, nil
}

// value is a column: a number, or a text or blob.
type value struct {
	number int64
	bytes  []byte
}

// columns returns the first n columns of a row: a header with its own length
// and a type for each, then the values.
func columns(row []byte, n int) ([]value, error) {
	headSize, head := varint(row)
	if headSize > uint64(len(row)) || int(headSize) < len(row)-len(head) {
		return nil, io.ErrUnexpectedEOF
	}
	head, body := row[len(row)-len(head):headSize], row[headSize:]
	var out []value
	for len(out) < n {
		if len(head) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		var typ uint64
		typ, head = varint(head)
		var size uint64
		switch {
		case typ >= 12:
			size = (typ - 12) / 2
		case typ <= 7:
			size = []uint64{0, 1, 2, 3, 4, 6, 8, 8}[typ]
		}
		if size > uint64(len(body)) {
			return nil, io.ErrUnexpectedEOF
		}
		v := value{bytes: body[:size]}
		switch {
		case typ == 9:
			v.number = 1
		case typ >= 1 && typ <= 6:
			for _, b := range v.bytes {
				v.number = v.number<<8 | int64(b)
			}
		}
		body = body[size:]
		out = append(out, v)
	}
	return out, nil
}

// varint reads a number of one to nine bytes. At the end of b it is cut short.
func varint(b []byte) (v uint64, rest []byte) {
	for i, c := range b {
		if i == 8 {
			return v<<8 | uint64(c), b[9:]
		}
		if v = v<<7 | uint64(c&0x7f); c < 0x80 {
			return v, b[i+1:]
		}
	}
	return v, nil
}
