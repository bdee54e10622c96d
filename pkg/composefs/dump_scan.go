package composefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

var errLongLine = fmt.Errorf("longer than %d bytes", maxDumpLine)

// readLine returns the next line without its newline. The bytes are good until
// the next call; long is room for a line that is longer than r's buffer.
func readLine(r *bufio.Reader, long *[]byte) ([]byte, error) {
	b, err := r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		if errors.Is(err, io.EOF) && len(b) > 0 {
			err = nil
		}
		return bytes.TrimSuffix(b, []byte{'\n'}), err
	}
	*long = append((*long)[:0], b...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(*long) > maxDumpLine {
			return nil, errLongLine
		}
		b, err = r.ReadSlice('\n')
		*long = append(*long, b...)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return bytes.TrimSuffix(*long, []byte{'\n'}), err
}

// number parses an unsigned number that fits T.
func number[T uint32 | uint64](b []byte, base, field int) (T, error) {
	size := 64
	if uint64(^T(0)) == math.MaxUint32 {
		size = 32
	}
	v, err := strconv.ParseUint(string(b), base, size)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no number of %d bits in base %d", fieldNames[field], b, size, base)
	}
	return T(v), nil
}

// unescape returns the bytes that b stands for, in buf.
func unescape(buf *[]byte, b []byte) ([]byte, error) {
	i := bytes.IndexByte(b, '\\')
	if i < 0 {
		return b, nil
	}
	out := append((*buf)[:0], b[:i]...)
	for b = b[i:]; len(b) > 0; {
		if b[0] != '\\' {
			out = append(out, b[0])
			b = b[1:]
			continue
		}
		if len(b) < 2 {
			return nil, errors.New("nothing after a backslash")
		}
		switch b[1] {
		case '\\':
			out = append(out, '\\')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'x':
			if len(b) < 4 {
				return nil, errors.New(`\x without two hexadecimal digits`)
			}
			v, err := strconv.ParseUint(string(b[2:4]), 16, 8)
			if err != nil {
				return nil, fmt.Errorf(`\x%s: want two hexadecimal digits`, b[2:4])
			}
			out = append(out, byte(v))
			b = b[2:]
		default:
			return nil, fmt.Errorf("unknown escape \\%c", b[1])
		}
		b = b[2:]
	}
	*buf = out
	return out, nil
}
