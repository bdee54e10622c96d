package composefs

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
)

// WriteDump writes t in the format of composefs-dump(5), as composefs-info
// spells it: a directory before its children, children in bytewise order.
func WriteDump(w io.Writer, t *Tree) error {
	b := bufio.NewWriterSize(w, 64<<10)
	first := make(map[*Inode]string) // paths of what hard links lead to
	_ = t.Walk(func(_ string, e Dirent) error {
		if e.Link {
			first[e.Inode] = ""
		}
		return nil
	})
	if len(first) > 0 {
		_ = t.Walk(func(path string, e Dirent) error {
			if _, ok := first[e.Inode]; ok && !e.Link {
				first[e.Inode] = path
			}
			return nil
		})
	}
	var line []byte
	err := t.Walk(func(path string, e Dirent) error {
		line = line[:0]
		if !e.Link {
			line = AppendDumpLine(line, path, e.Inode)
		} else {
			target := first[e.Inode]
			if target == "" {
				return fmt.Errorf("write dump: the hard link %s leads to no inode of the tree", path)
			}
			line = appendLine(line, path, e.Inode, target)
		}
		_, err := b.Write(append(line, '\n'))
		return err
	})
	if err != nil {
		return err
	}
	return b.Flush()
}

// AppendDumpLine appends the dump line of one inode, without its newline.
func AppendDumpLine(b []byte, path string, n *Inode) []byte {
	return appendLine(b, path, n, "")
}

// appendLine appends a dump line; link is the target where it is a hard link's.
func appendLine(b []byte, path string, n *Inode, link string) []byte {
	number := func(v uint64) {
		b = append(strconv.AppendUint(b, v, 10), ' ')
	}
	optional := func(s string) {
		switch s {
		case "":
			b = append(b, '-')
		case "-":
			b = append(b, `\x2d`...)
		default:
			b = appendEscaped(b, s, false)
		}
		b = append(b, ' ')
	}
	b = append(appendEscaped(b, path, false), ' ')
	number(n.Size)
	if link != "" {
		b = append(b, '@')
	}
	b = append(strconv.AppendUint(b, uint64(n.Mode), 8), ' ')
	number(uint64(n.Nlink))
	number(uint64(n.UID))
	number(uint64(n.GID))
	number(n.Rdev)
	b = append(strconv.AppendInt(b, n.MtimeSec, 10), '.')
	number(uint64(n.MtimeNsec))
	if link != "" {
		optional(link)
	} else {
		optional(n.objectPath())
	}
	optional(n.Content)
	if n.Digest == "" {
		b = append(b, '-')
	} else {
		b = append(b, n.Digest.String()...)
	}
	for _, x := range n.Xattrs.All() {
		b = append(appendEscaped(append(b, ' '), x.Name, true), '=')
		b = appendEscaped(b, x.Value, true)
	}
	return b
}

func appendEscaped(b []byte, s string, escapeEqual bool) []byte {
	const hexDigits = "0123456789abcdef"
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b = append(b, `\\`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c <= ' ', c > '~', c == '=' && escapeEqual:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}
