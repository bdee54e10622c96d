package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Labeler says which SELinux label a path is to have; false where the policy
// has none for it.
type Labeler interface {
	Label(path string, mode uint32) (string, bool)
}

// WriteOptions are the choices of a Write.
type WriteOptions struct {
	// Labels gives files that come from the image their label as /etc/…; with
	// nil they keep the one they have in /usr/etc. Local files keep theirs.
	Labels Labeler
	// Since, when set, is the time of an earlier Write to the same directory.
	// A file above LargeFile is then taken as written when size and time agree
	// and it has not changed since; all others are compared byte by byte. Files
	// above LargeFile that did change share their blocks with the local ones; on
	// a file system that cannot do that LateBytes of them are copied, and more
	// are refused.
	Since time.Time
	// Whiteouts hides what the image has and the new /etc has not: the directory
	// is the upper layer of an overlay on the image's /etc.
	Whiteouts bool
}

const (
	// LargeFile is the size above which a second Write does not read a file
	// again that has not changed since the first.
	LargeFile = 1 << 20
	// LateBytes is what a second Write copies of files above LargeFile: as much
	// as a slow disk takes in a minute, while a machine shuts down.
	LateBytes = 256 << 20
)

// Stats says what a Write did.
type Stats struct {
	Files   int    // regular files written
	Bytes   int64  // in them, without those that share their blocks
	Largest int64  // the size of the largest file whose bytes were written
	Name    string // its path in /etc
	Shared  int    // regular files that share their blocks
	Others  int    // directories and symlinks made, attributes corrected
	Removed int    // entries removed
}

// Apply plans a merge, writes it to dst, and logs what it came to.
func Apply(ctx context.Context, s Sides, dst *dirfd.Dir, o WriteOptions, log *slog.Logger) ([]Change, Stats, error) {
	m, err := Plan(ctx, s)
	if err != nil {
		return nil, Stats{}, err
	}
	stats, err := m.Write(ctx, dst, o)
	if err != nil {
		return nil, stats, err
	}
	log.Info("merged /etc", "changes", len(m.Changes), "files", stats.Files, "bytes", stats.Bytes, "shared", stats.Shared)
	if !o.Since.IsZero() {
		// Nobody is there any more to be told.
		for _, c := range m.Changes {
			if c.Conflict() {
				log.Warn("changed in /etc on this host and in the image", "path", "/etc/"+c.Path, "result", c.Outcome.String(), "notes", c.Notes)
			}
		}
	}
	if !o.Since.IsZero() && stats.Largest > LargeFile {
		log.Warn("a large file changed after staging and was copied at shutdown", "path", stats.Name, "bytes", stats.Largest)
	}
	return m.Changes, stats, nil
}

// Write makes dst, an existing directory, look like the merge. It has no
// commit point of its own: dst must not be in use, and the caller syncs it.
// It refuses, before anything is written, when there is a type conflict.
func (m *Merge) Write(ctx context.Context, dst *dirfd.Dir, o WriteOptions) (Stats, error) {
	if err := m.Refused(); err != nil {
		return Stats{}, err
	}
	w := &writer{ctx: ctx, o: o}
	err := w.dir("/etc", dst, m.local, m.image, m.root)
	return w.stats, err
}

type writer struct {
	ctx   context.Context
	o     WriteOptions
	stats Stats
	late  int64 // bytes of large files that a second Write copied
}

// dir writes the children of n into dst, then n's own attributes.
func (w *writer) dir(path string, dst *dirfd.Dir, local, image source.Dir, n *node) error {
	have, err := dst.Names()
	if err != nil {
		return err
	}
	for _, name := range have {
		if !n.has(name) {
			if err := w.remove(dst, image, name); err != nil {
				return err
			}
		}
	}
	if err := w.hide(dst, image, n, have); err != nil {
		return err
	}
	for _, c := range n.children {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.child(path+"/"+c.name, dst, local, image, c); err != nil {
			return err
		}
	}
	return w.attributes(path, dst, ".", local, image, ".", n)
}

func (n *node) has(name string) bool {
	_, found := slices.BinarySearchFunc(n.children, name, func(c *node, s string) int { return strings.Compare(c.name, s) })
	return found
}

// remove takes an entry away that the new /etc does not have, unless it is what
// hides the image's.
func (w *writer) remove(dst *dirfd.Dir, image source.Dir, name string) error {
	if w.o.Whiteouts {
		st, err := dst.Lstat(name)
		if err != nil {
			return err
		}
		if theirs, err := lstat(image, name); err != nil || theirs != nil && source.IsWhiteout(st) {
			return err
		}
	}
	w.stats.Removed++
	return dst.Remove(name)
}

// hide hides what the image has in a directory and the new /etc has not. have is
// what dst had.
func (w *writer) hide(dst *dirfd.Dir, image source.Dir, n *node, have []string) error {
	if !w.o.Whiteouts || image == nil {
		return nil
	}
	names, err := image.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if n.has(name) {
			continue
		}
		if _, there := slices.BinarySearch(have, name); there {
			if st, err := lstat(source.Disk(dst), name); err != nil || st != nil && source.IsWhiteout(st) {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := dst.Whiteout(name); err != nil {
			return err
		}
		w.stats.Others++
	}
	return nil
}

// child writes one entry; local and image are the directories that hold it on
// those sides, nil where there is none.
func (w *writer) child(path string, dst *dirfd.Dir, local, image source.Dir, c *node) error {
	old, err := lstat(source.Disk(dst), c.name)
	if err != nil {
		return err
	}
	if old != nil && old.Mode&unix.S_IFMT != c.st.Mode&unix.S_IFMT {
		if err := dst.Remove(c.name); err != nil {
			return err
		}
		w.stats.Removed++
		old = nil
	}
	src := image
	if c.local {
		src = local
	}
	switch c.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return w.subdir(path, dst, local, image, c, old == nil)
	case unix.S_IFLNK:
		return w.symlink(path, dst, src, local, image, c, old != nil)
	}
	return w.file(path, dst, src, local, image, c, old)
}

func (w *writer) subdir(path string, dst *dirfd.Dir, local, image source.Dir, c *node, isNew bool) error {
	if isNew {
		if err := dst.Mkdir(c.name); err != nil {
			return err
		}
		w.stats.Others++
	}
	d, err := dst.Sub(c.name)
	if err != nil {
		return err
	}
	defer d.Close()
	l, err := subOrNil(local, c.name)
	if err != nil {
		return err
	}
	i, err := subOrNil(image, c.name)
	if err != nil {
		return err
	}
	defer closeAll(l, i)
	return w.dir(path, d, l, i, c)
}

func (w *writer) symlink(path string, dst *dirfd.Dir, src, local, image source.Dir, c *node, exists bool) error {
	target, err := src.Readlink(c.name)
	if err != nil {
		return err
	}
	if exists {
		have, err := dst.Readlink(c.name)
		if err != nil {
			return err
		}
		if have != target {
			if err := dst.Remove(c.name); err != nil {
				return err
			}
			exists = false
		}
	}
	if !exists {
		if err := dst.Symlink(target, c.name); err != nil {
			return err
		}
		w.stats.Others++
	}
	return w.attributes(path, dst, c.name, local, image, c.name, c)
}

func (w *writer) file(path string, dst *dirfd.Dir, src, local, image source.Dir, c *node, old *unix.Stat_t) error {
	if old != nil {
		same, err := w.written(dst, src, c, old)
		if err != nil {
			return err
		}
		if same {
			return w.attributes(path, dst, c.name, local, image, c.name, c)
		}
		if err := dst.Remove(c.name); err != nil {
			return err
		}
	}
	xattrs, err := w.xattrs(path, local, image, c.name, c)
	if err != nil {
		return err
	}
	in, mtime, size := io.NopCloser(bytes.NewReader(c.merged)), unix.Timespec{}, int64(len(c.merged))
	if c.merged == nil {
		if in, err = src.Open(c.name); err != nil {
			return err
		}
		mtime, size = c.st.Mtim, c.st.Size
	}
	defer in.Close()
	late := !w.o.Since.IsZero() && size > LargeFile
	meta := dirfd.Meta{
		UID: c.attrs.Uid, GID: c.attrs.Gid, Mode: c.attrs.Mode, Xattrs: xattrs, Mtime: mtime,
		ShareOnly: late && w.late+size > LateBytes,
	}
	shared, err := dst.WriteNew(in, c.name, meta)
	if errors.Is(err, dirfd.ErrNotShared) {
		return fault.New(fault.Conflict, "stage the deployment again: large files are copied then, not at shutdown",
			"%s (%d MB) changed after the deployment was staged, and no more than %d MB are copied at shutdown", path, size>>20, LateBytes>>20)
	}
	if err != nil {
		return err
	}
	w.stats.Files++
	if shared {
		w.stats.Shared++
		return nil
	}
	if late {
		w.late += size
	}
	w.stats.Bytes += size
	if size > w.stats.Largest {
		w.stats.Largest, w.stats.Name = size, path
	}
	return nil
}

// written reports whether dst has the file's bytes already.
func (w *writer) written(dst *dirfd.Dir, src source.Dir, c *node, old *unix.Stat_t) (bool, error) {
	if c.merged != nil {
		have, err := readFile(source.Disk(dst), c.name, old.Size)
		return err == nil && bytes.Equal(have, c.merged), err
	}
	if old.Size != c.st.Size {
		return false, nil
	}
	if c.st.Size > LargeFile && !w.o.Since.IsZero() && old.Mtim == c.st.Mtim &&
		time.Unix(c.st.Ctim.Unix()).Before(w.o.Since) {
		return true, nil
	}
	return sameContent(src, source.Disk(dst), c.name)
}

// attributes corrects owner, mode and extended attributes where they are not
// yet what they are to be. local and image are the directories that hold srcName
// on those sides.
func (w *writer) attributes(path string, dst *dirfd.Dir, name string, local, image source.Dir, srcName string, n *node) error {
	want, err := w.xattrs(path, local, image, srcName, n)
	if err != nil {
		return err
	}
	have, err := dst.Xattrs(name)
	if err != nil {
		return err
	}
	st, err := dst.Lstat(name)
	if err != nil {
		return err
	}
	if sameMeta(st, n.attrs) && slices.Equal(want, have) {
		return nil
	}
	w.stats.Others++
	return dst.SetMeta(name, n.attrs.Uid, n.attrs.Gid, n.attrs.Mode, want)
}

// xattrs returns what an entry of the new /etc is to have. The label is the
// local one where anything else is, and else what the policy says.
func (w *writer) xattrs(path string, local, image source.Dir, name string, n *node) ([]dirfd.Xattr, error) {
	from := image
	if n.attrsLocal {
		from = local
	}
	list, err := from.Xattrs(name)
	if err != nil || n.attrsLocal {
		return list, err
	}
	var label string
	switch {
	case n.local:
		all, err := local.Xattrs(name)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(all, func(x dirfd.Xattr) bool { return x.Name == dirfd.SELinux })
		if at < 0 {
			return withoutLabel(list), nil
		}
		label = all[at].Value
	case w.o.Labels == nil:
		return list, nil
	default:
		l, ok := w.o.Labels.Label(path, n.st.Mode)
		if !ok {
			return list, nil
		}
		label = l + "\x00" // the kernel keeps labels with it, as libostree sets them
	}
	list = append(withoutLabel(list), dirfd.Xattr{Name: dirfd.SELinux, Value: label})
	slices.SortFunc(list, func(a, b dirfd.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func subOrNil(d source.Dir, name string) (source.Dir, error) {
	st, err := lstat(d, name)
	if err != nil || !isDir(st) {
		return nil, err
	}
	return d.Sub(name)
}

func closeAll(dirs ...source.Dir) {
	for _, d := range dirs {
		if d != nil {
			_ = d.Close()
		}
	}
}
