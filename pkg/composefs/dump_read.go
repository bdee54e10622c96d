package composefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Bounds of a dump, beside those of an image.
const (
	maxDumpLine  = 1 << 20
	maxDumpPath  = 1 << 16
	maxDumpXattr = 0xffff // bytes of a line after the fixed fields
)

// The fixed fields of a dump line.
const (
	fieldPath = iota
	fieldSize
	fieldMode
	fieldNlink
	fieldUID
	fieldGID
	fieldRdev
	fieldMtime
	fieldPayload
	fieldContent
	fieldDigest
	fieldCount
)

var fieldNames = [fieldCount]string{"path", "size", "mode", "nlink", "uid", "gid", "rdev", "mtime", "payload", "content", "digest"}

// DumpError says which line of a dump cannot be read and why.
type DumpError struct {
	Line   int // from 1; 0 when the dump as a whole is at fault
	Reason string
}

func (e *DumpError) Error() string {
	if e.Line == 0 {
		return "dump: " + e.Reason
	}
	return fmt.Sprintf("dump line %d: %s", e.Line, e.Reason)
}

// ReadDump reads a tree in the format of composefs-dump(5). What mkcomposefs
// refuses is refused, and so is what it would quietly cut or take for something
// else: NUL bytes in names and targets, numbers that do not fit, digests of
// other lengths than 32 or 64 bytes. Such an error is a *DumpError of kind
// Corrupt. Content, payload and digest are dropped where a file type has none.
func ReadDump(r io.Reader) (*Tree, error) {
	d := &dumpReader{tree: &Tree{}, dirs: make(map[string]*Inode), links: make(map[*Inode]string), strings: make(map[string]string)}
	s := bufio.NewReaderSize(r, 64<<10)
	var long []byte
	for line := 1; ; line++ {
		b, err := readLine(s, &long)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = d.line(b)
		} else if !errors.Is(err, errLongLine) {
			return nil, fmt.Errorf("read dump: %w", err)
		}
		if err != nil {
			return nil, dumpFault(line, err.Error())
		}
	}
	if err := d.finish(); err != nil {
		return nil, dumpFault(0, err.Error())
	}
	return d.tree, nil
}

func dumpFault(line int, reason string) error {
	return fault.New(fault.Corrupt, "", "%w", &DumpError{line, reason})
}

type dumpReader struct {
	tree    *Tree
	dirs    map[string]*Inode // by path without slashes at its ends
	links   map[*Inode]string // what stands for a hard link until the end, and where it leads
	strings map[string]string // values that often come again
	scratch []byte
	xattrs  []fstree.Xattr
}

func (d *dumpReader) line(line []byte) error {
	if bytes.IndexByte(line, 0) >= 0 {
		return errors.New("a NUL byte")
	}
	var field [fieldCount][]byte
	rest := line
	for i := range field {
		field[i], rest, _ = bytes.Cut(rest, []byte{' '})
	}
	path, err := d.text(field[fieldPath], fieldPath)
	if err != nil {
		return err
	}
	mode, isLink := bytes.CutPrefix(field[fieldMode], []byte{'@'})
	n := &Inode{}
	if n.Mode, err = number[uint32](mode, 8, fieldMode); err != nil {
		return err
	}
	if direntType(n.Mode) == 0 || n.Mode > 0xffff {
		return fmt.Errorf("mode %o has no file type", n.Mode)
	}
	if isLink {
		if n.IsDir() {
			return errors.New("a directory cannot be a hard link")
		}
		target, err := d.text(field[fieldPayload], fieldPayload)
		if err != nil {
			return err
		}
		if string(field[fieldPayload]) == "-" || target == "" {
			return errors.New("a hard link without a target")
		}
		return d.add(path, nil, target)
	}
	if err := d.numbers(n, &field); err != nil {
		return err
	}
	if err := d.data(n, &field); err != nil {
		return err
	}
	if len(rest) > maxDumpXattr {
		return fmt.Errorf("%d bytes of xattrs, the limit is %d", len(rest), maxDumpXattr)
	}
	if n.Xattrs, err = d.readXattrs(rest); err != nil {
		return err
	}
	if err := n.check(); err != nil {
		return err
	}
	return d.add(path, n, "")
}

func (d *dumpReader) numbers(n *Inode, field *[fieldCount][]byte) (err error) {
	if n.Size, err = number[uint64](field[fieldSize], 10, fieldSize); err != nil {
		return err
	}
	if n.Nlink, err = number[uint32](field[fieldNlink], 10, fieldNlink); err != nil {
		return err
	}
	if n.UID, err = number[uint32](field[fieldUID], 10, fieldUID); err != nil {
		return err
	}
	if n.GID, err = number[uint32](field[fieldGID], 10, fieldGID); err != nil {
		return err
	}
	rdev, err := number[uint64](field[fieldRdev], 10, fieldRdev)
	if err != nil {
		return err
	}
	if n.isDevice() {
		n.Rdev = rdev
	}
	sec, nsec, ok := bytes.Cut(field[fieldMtime], []byte{'.'})
	if !ok {
		return fmt.Errorf("mtime: %q is not SECONDS.NANOSECONDS", field[fieldMtime])
	}
	if n.MtimeSec, err = strconv.ParseInt(string(sec), 10, 64); err != nil {
		return fmt.Errorf("mtime: %q is no number of seconds", sec)
	}
	if n.MtimeNsec, err = number[uint32](nsec, 10, fieldMtime); err != nil {
		return err
	}
	if n.MtimeNsec >= 1e9 {
		return fmt.Errorf("mtime: %d nanoseconds are more than a second", n.MtimeNsec)
	}
	return nil
}

// data takes over payload, content and digest as far as the file type has them.
func (d *dumpReader) data(n *Inode, field *[fieldCount][]byte) error {
	payload, content, digest := "", "", ""
	var err error
	if string(field[fieldPayload]) != "-" {
		if payload, err = d.text(field[fieldPayload], fieldPayload); err != nil {
			return err
		}
	}
	if string(field[fieldContent]) != "-" {
		if content, err = d.text(field[fieldContent], fieldContent); err != nil {
			return err
		}
		if uint64(len(content)) != n.Size {
			return fmt.Errorf("%d bytes of content in a file of size %d", len(content), n.Size)
		}
	}
	if string(field[fieldDigest]) != "-" {
		if digest, err = d.text(field[fieldDigest], fieldDigest); err != nil {
			return err
		}
	}
	switch {
	case n.IsSymlink():
		n.Payload, n.Size = payload, uint64(len(payload))
	case n.IsRegular():
		n.Payload, n.Content = payload, content
		if digest != "" {
			if n.Digest, err = ParseDigest(digest); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *dumpReader) readXattrs(rest []byte) (*fstree.Xattrs, error) {
	d.xattrs = d.xattrs[:0]
	total := xattrHeader
	for len(rest) > 0 {
		var x []byte
		x, rest, _ = bytes.Cut(rest, []byte{' '})
		name, value, ok := bytes.Cut(x, []byte{'='})
		if !ok {
			return nil, fmt.Errorf("xattr %q has no =", x)
		}
		n, err := unescape(&d.scratch, name)
		if err != nil {
			return nil, fmt.Errorf("xattr name: %w", err)
		}
		key := d.common(n)
		v, err := unescape(&d.scratch, value)
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", key, err)
		}
		if err := checkXattr(key, string(v)); err != nil {
			return nil, err
		}
		total += xattrCost(key, len(v))
		d.xattrs = append(d.xattrs, fstree.Xattr{Name: key, Value: d.common(v)})
	}
	if len(d.xattrs) > 0 && total > maxXattrs {
		return nil, fmt.Errorf("xattrs of %d bytes, the limit is %d", total, maxXattrs)
	}
	return d.tree.intern.Intern(d.xattrs), nil
}

// text returns an unescaped field.
func (d *dumpReader) text(b []byte, field int) (string, error) {
	u, err := unescape(&d.scratch, b)
	if err != nil {
		return "", fmt.Errorf("%s: %w", fieldNames[field], err)
	}
	return string(u), nil
}

// common returns a string that is kept once for all that are equal.
func (d *dumpReader) common(b []byte) string {
	if s, ok := d.strings[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(s) <= 256 {
		d.strings[s] = s
	}
	return s
}

// add gives the tree a path: inode n, or a hard link where n is nil.
func (d *dumpReader) add(path string, n *Inode, target string) error {
	if len(path) > maxDumpPath {
		return fmt.Errorf("path of %d bytes, the limit is %d", len(path), maxDumpPath)
	}
	if path == "" {
		return errors.New("an empty path")
	}
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	path = strings.TrimPrefix(path, "/")
	if path == "" {
		if n == nil || !n.IsDir() {
			return errors.New("the root must be a directory")
		}
		if d.tree.Root != nil {
			return errors.New("a second root")
		}
		d.tree.Root = n
		d.dirs[""] = n
		return nil
	}
	if d.tree.Root == nil {
		return errors.New("no root before the first path")
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if err := checkName(name); err != nil {
		return err
	}
	parent := d.dirs[dir]
	if parent == nil {
		return fmt.Errorf("the parent directory of /%s is missing", path)
	}
	if n == nil {
		n = &Inode{}
		d.links[n] = target
		parent.Entries = append(parent.Entries, Dirent{Name: name, Inode: n, Link: true})
		return nil
	}
	parent.Entries = append(parent.Entries, Dirent{Name: name, Inode: n})
	if n.IsDir() {
		d.dirs[path] = n
	}
	return nil
}

// finish sorts the directories and resolves the hard links.
func (d *dumpReader) finish() error {
	if d.tree.Root == nil {
		return errors.New("no root")
	}
	for path, dir := range d.dirs {
		if err := dir.sortEntries(); err != nil {
			return fmt.Errorf("/%s: %w", path, err)
		}
	}
	for path, dir := range d.dirs {
		for i := range dir.Entries {
			if e := &dir.Entries[i]; e.Link {
				target, err := d.follow(e.Inode)
				if err != nil {
					return fmt.Errorf("hard link %q in /%s to %q: %w", e.Name, path, d.links[e.Inode], err)
				}
				e.Inode = target
			}
		}
	}
	return nil
}

// maxLinkHops bounds chains of hard links to hard links.
const maxLinkHops = 40

// follow returns the inode that a hard link leads to. It goes by the links'
// targets and not by their entries, which are being replaced.
func (d *dumpReader) follow(link *Inode) (*Inode, error) {
	for range maxLinkHops {
		target, ok := d.links[link]
		if !ok {
			if link.IsDir() {
				return nil, errors.New("leads to a directory")
			}
			return link, nil
		}
		if link = d.tree.Lookup(target); link == nil {
			return nil, errors.New("leads nowhere")
		}
	}
	return nil, errors.New("leads to itself, or through too many hard links")
}
