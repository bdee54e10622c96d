package layering

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// change is one path that the transaction added, changed or removed.
type change struct {
	whiteout bool
	// same: a directory that is in the layer for what is below it.
	same   bool
	stat   unix.Stat_t
	target string            // symlinks
	xattrs map[string]string // without the overlay's own and labels
	src    string            // regular files: where the content is
	data   []byte            // regular files without src
	link   string            // the path of the layer that this is a hard link to
}

func (c *change) typ() uint32     { return c.stat.Mode & unix.S_IFMT }
func (c *change) isRegular() bool { return !c.whiteout && c.typ() == unix.S_IFREG }

// changes are the changes by path, without a leading slash.
type changes map[string]*change

// under returns the paths at and below dir, in order.
func (cs changes) under(dir string) []string {
	var names []string
	for name := range cs {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (cs changes) drop(dir string) {
	for _, name := range cs.under(dir) {
		delete(cs, name)
	}
}

// addFile adds a file that kedge writes, with the directories above it that
// neither layer nor base have.
func (cs changes) addFile(name string, data []byte) {
	cs[name] = &change{stat: unix.Stat_t{Mode: unix.S_IFREG | 0o644, Size: int64(len(data))}, data: data}
	cs.addParents(name)
}

func (cs changes) addLink(name, target string) {
	cs[name] = &change{stat: unix.Stat_t{Mode: unix.S_IFLNK | 0o777}, target: target}
	cs.addParents(name)
}

func (cs changes) addParents(name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := cs[dir]; !ok {
			cs[dir] = &change{stat: unix.Stat_t{Mode: unix.S_IFDIR | 0o755}}
		}
	}
}

// prune removes the directories that are there for nothing.
func (cs changes) prune() {
	names := cs.sorted()
	needed := make(map[string]bool)
	for _, name := range slices.Backward(names) {
		if cs[name].same && !needed[name] {
			delete(cs, name)
			continue
		}
		needed[path.Dir(name)] = true
	}
}

// collector reads an overlay's upper. The transaction has ended: nobody else
// changes what is read, and no symlink is followed.
type collector struct {
	out changes
	// started and ended bound the transaction: a time between them says when
	// it ran, and nothing about the file.
	started, ended time.Time
	epoch          time.Time
}

// level is a directory in the lower trees: dirs[0] is the base's, the others
// are preparations above it; "" where a tree has no such directory.
type level []string

func (l level) sub(name string) level {
	out := make(level, len(l))
	for i, d := range l {
		if d == "" {
			continue
		}
		p := filepath.Join(d, name)
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			out[i] = p
		}
	}
	return out
}

// walk adds what is in dir of an upper. hidden: the lower directories do not
// show through it.
func (c *collector) walk(dir, prefix string, below level, hidden bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	have := make(map[string]bool)
	for _, e := range entries {
		have[e.Name()] = true
		if err := c.entry(filepath.Join(dir, e.Name()), path.Join(prefix, e.Name()), e.Name(), below, hidden); err != nil {
			return err
		}
	}
	if !hidden || below[0] == "" {
		return nil
	}
	gone, err := os.ReadDir(below[0])
	if err != nil {
		return err
	}
	for _, e := range gone {
		if !have[e.Name()] {
			c.out[path.Join(prefix, e.Name())] = &change{whiteout: true}
		}
	}
	return nil
}

func (c *collector) entry(src, name, elem string, below level, hidden bool) error {
	ch, err := readChange(src)
	if err != nil {
		return err
	}
	if isWhiteout(&ch.stat) {
		if inBase(below, elem) {
			c.out[name] = &change{whiteout: true}
		}
		return nil
	}
	if ch.typ() == unix.S_IFDIR {
		opaque, err := isOpaque(src)
		if err != nil {
			return err
		}
		if !hidden && !opaque {
			ch.same = c.sameAsBelow(ch, below, elem)
		}
		c.setTime(ch)
		if inBase(below, elem) {
			// Whether it has a name more or less is no matter of the package.
			ch.stat.Mtim = unix.NsecToTimespec(c.epoch.UnixNano())
		}
		c.out[name] = ch
		return c.walk(src, name, below.sub(elem), hidden || opaque)
	}
	if c.sameAsBelow(ch, below, elem) {
		return nil
	}
	c.setTime(ch)
	c.out[name] = ch
	return nil
}

// setTime gives a file that was made in the transaction the session's time.
func (c *collector) setTime(ch *change) {
	t := time.Unix(ch.stat.Mtim.Unix())
	if !t.Before(c.started.Add(-time.Second)) && !t.After(c.ended.Add(time.Second)) {
		ch.stat.Mtim = unix.NsecToTimespec(c.epoch.UnixNano())
	}
}

func inBase(below level, elem string) bool {
	if below[0] == "" {
		return false
	}
	_, err := os.Lstat(filepath.Join(below[0], elem))
	return err == nil
}

// sameAsBelow reports whether the entry is what the trees below have: copied up
// and not changed, or changed and changed back.
func (c *collector) sameAsBelow(ch *change, below level, elem string) bool {
	for _, dir := range slices.Backward(below) {
		if dir == "" {
			continue
		}
		low, err := readChange(filepath.Join(dir, elem))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return err == nil && sameEntry(ch, low)
	}
	return false
}

func sameEntry(a, b *change) bool {
	if a.stat.Mode != b.stat.Mode || a.stat.Uid != b.stat.Uid || a.stat.Gid != b.stat.Gid || a.stat.Rdev != b.stat.Rdev || a.target != b.target || len(a.xattrs) != len(b.xattrs) {
		return false
	}
	for name, value := range a.xattrs {
		if v, ok := b.xattrs[name]; !ok || v != value {
			return false
		}
	}
	if a.typ() != unix.S_IFREG {
		return true
	}
	return a.stat.Size == b.stat.Size && sameContent(a.src, b.src)
}

func sameContent(a, b string) bool {
	fa, err := os.Open(a)
	if err != nil {
		return false
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false
	}
	defer fb.Close()
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(fa, bufA)
		m, errB := io.ReadFull(fb, bufB)
		if n != m || !bytes.Equal(bufA[:n], bufB[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return n < len(bufA) && (errA == io.EOF || errA == io.ErrUnexpectedEOF)
		}
	}
}

func readChange(src string) (*change, error) {
	c := &change{src: src}
	if err := unix.Lstat(src, &c.stat); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: src, Err: err}
	}
	var err error
	if c.typ() == unix.S_IFLNK {
		if c.target, err = os.Readlink(src); err != nil {
			return nil, err
		}
	}
	c.xattrs, err = readXattrs(src)
	return c, err
}

// isWhiteout: overlayfs writes a character device 0:0 for a removed name.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isOpaque(dir string) (bool, error) {
	buf := make([]byte, 1)
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", buf)
	if errors.Is(err, unix.ENODATA) {
		return false, nil
	}
	return err == nil && n == 1 && buf[0] == 'y', err
}

// readXattrs returns the extended attributes that belong into an image: labels
// come with the import, the overlay's are its own.
func readXattrs(src string) (map[string]string, error) {
	size, err := unix.Llistxattr(src, nil)
	if err != nil || size == 0 {
		return nil, os.NewSyscallError("llistxattr", err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(src, names); err != nil {
		return nil, os.NewSyscallError("llistxattr", err)
	}
	out := make(map[string]string)
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.") || name == "security.selinux" || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(src, name, nil)
		if err != nil {
			return nil, os.NewSyscallError("lgetxattr", err)
		}
		value := make([]byte, n)
		if n, err = unix.Lgetxattr(src, name, value); err != nil {
			return nil, os.NewSyscallError("lgetxattr", err)
		}
		out[name] = string(value[:n])
	}
	return out, nil
}

func (cs changes) sorted() []string { return slices.Sorted(maps.Keys(cs)) }
