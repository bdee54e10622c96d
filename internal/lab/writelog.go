package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// WriteLog is what QEMU's blklogwrites driver recorded of a disk: every write
// with its bytes, and every flush, in the order in which the guest sent them. The
// format is dm-log-writes' (Documentation/admin-guide/device-mapper/log-writes.rst
// of Linux): little-endian numbers, a superblock, and entries, each in a sector of
// its own before its data.
type WriteLog struct {
	Entries []LogEntry

	f *os.File
}

// LogEntry is a write, or where Length is 0 a flush: what was written before it
// stays. Offset and Length are bytes of the disk.
type LogEntry struct {
	Offset, Length int64

	at int64 // of the data in the log
}

// Flush reports whether the entry is a flush.
func (e LogEntry) Flush() bool { return e.Length == 0 }

const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	logFlush   = 1 << 0
	logFUA     = 1 << 1
	logDiscard = 1 << 2
)

// OpenWriteLog reads the entries of a log. The guest must be down.
func OpenWriteLog(path string) (*WriteLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	l := &WriteLog{f: f}
	if l.Entries, err = readLog(f); err != nil {
		return nil, errors.Join(fmt.Errorf("write log %s: %w", path, err), f.Close())
	}
	return l, nil
}

func readLog(r io.ReaderAt) ([]LogEntry, error) {
	var super struct {
		Magic, Version, Entries uint64
		Sector                  uint32
	}
	if err := binary.Read(io.NewSectionReader(r, 0, 28), binary.LittleEndian, &super); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	if super.Magic != logMagic || super.Version != logVersion || super.Sector < 512 || super.Sector&(super.Sector-1) != 0 {
		return nil, fmt.Errorf("not a write log, or not of version %d", logVersion)
	}
	sector := int64(super.Sector)
	var entries []LogEntry
	pos := sector
	for i := range super.Entries {
		var e struct{ Sector, Sectors, Flags, Text uint64 }
		if err := binary.Read(io.NewSectionReader(r, pos, 32), binary.LittleEndian, &e); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		if e.Flags&^(logFlush|logFUA) != 0 || e.Sector > 1<<40 || e.Sectors > 1<<30 {
			return nil, fmt.Errorf("entry %d: flags %#x, sectors %d+%d: only writes and flushes are understood", i, e.Flags, e.Sector, e.Sectors)
		}
		pos += sector
		if e.Flags&logFlush != 0 {
			entries = append(entries, LogEntry{})
		}
		if e.Sectors > 0 {
			length := int64(e.Sectors) * sector
			entries = append(entries, LogEntry{Offset: int64(e.Sector) * sector, Length: length, at: pos})
			pos += length
		}
		if e.Flags&logFUA != 0 {
			entries = append(entries, LogEntry{})
		}
	}
	return entries, nil
}

// Data reads the bytes that an entry wrote.
func (l *WriteLog) Data(e LogEntry) ([]byte, error) {
	b := make([]byte, e.Length)
	_, err := l.f.ReadAt(b, e.at)
	return b, err
}

// Close closes the log.
func (l *WriteLog) Close() error { return l.f.Close() }

// LogMark is a text that the guest wrote to one place of the disk: Entry is the
// index of that write.
type LogMark struct {
	Entry int
	Text  string
}

// Marks returns the texts, ended by a NUL, that were written at an offset of the
// disk, one behind the file system.
func (l *WriteLog) Marks(offset int64) ([]LogMark, error) {
	var marks []LogMark
	for i, e := range l.Entries {
		if e.Flush() || e.Offset != offset {
			continue
		}
		b, err := l.Data(e)
		if err != nil {
			return nil, err
		}
		text, _, _ := bytes.Cut(b, []byte{0})
		marks = append(marks, LogMark{Entry: i, Text: string(text)})
	}
	return marks, nil
}
