package etcmerge

import (
	"context"
	"errors"
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
func Apply(ctx context.Context, base, local, image source.Dir, dst *dirfd.Dir, o WriteOptions, log *slog.Logger) ([]Change, Stats, error) {
	m, err := Plan(ctx, base, local, image)
	if err != nil {
		return nil, Stats{}, err
	}
	stats, err := m.Write(ctx, dst, o)
	if err != nil {
		return nil, stats, err
	}
	log.Info("merged /etc", "changes", len(m.Changes), "files", stats.Files, "bytes", stats.Bytes, "shared", stats.Shared)
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
		if _, keep := slices.BinarySearchFunc(n.children, name, func(c *node, s string) int { return strings.Compare(c.name, s) }); !keep {
			if err := dst.Remove(name); err != nil {
				return err
			}
			w.stats.Removed++
		}
	}
	for _, c := range n.children {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.child(path+"/"+c.name, dst, local, image, c); err != nil {
			return err
		}
	}
	src := image
	if n.local {
		src = local
	}
	return w.attributes(path, dst, ".", src, ".", n)
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
		return w.symlink(path, dst, src, c, old != nil)
	}
	return w.file(path, dst, src, c, old)
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

func (w *writer) symlink(path string, dst *dirfd.Dir, src source.Dir, c *node, exists bool) error {
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
	return w.attributes(path, dst, c.name, src, c.name, c)
}

func (w *writer) file(path string, dst *dirfd.Dir, src source.Dir, c *node, old *unix.Stat_t) error {
	if old != nil {
		same, err := w.written(dst, src, c, old)
		if err != nil {
			return err
		}
		if same {
			return w.attributes(path, dst, c.name, src, c.name, c)
		}
		if err := dst.Remove(c.name); err != nil {
			return err
		}
	}
	xattrs, err := w.xattrs(path, src, c.name, c)
	if err != nil {
		return err
	}
	in, err := src.Open(c.name)
	if err != nil {
		return err
	}
	defer in.Close()
	late := !w.o.Since.IsZero() && c.st.Size > LargeFile
	meta := dirfd.Meta{
		UID: c.st.Uid, GID: c.st.Gid, Mode: c.st.Mode, Xattrs: xattrs, Mtime: c.st.Mtim,
		ShareOnly: late && w.late+c.st.Size > LateBytes,
	}
	shared, err := dst.WriteNew(in, c.name, meta)
	if errors.Is(err, dirfd.ErrNotShared) {
		return fault.New(fault.Conflict, "stage the deployment again: large files are copied then, not at shutdown",
			"%s (%d MB) changed after the deployment was staged, and no more than %d MB are copied at shutdown", path, c.st.Size>>20, LateBytes>>20)
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
		w.late += c.st.Size
	}
	w.stats.Bytes += c.st.Size
	if c.st.Size > w.stats.Largest {
		w.stats.Largest, w.stats.Name = c.st.Size, path
	}
	return nil
}

// written reports whether dst has the file's bytes already.
func (w *writer) written(dst *dirfd.Dir, src source.Dir, c *node, old *unix.Stat_t) (bool, error) {
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
// yet the source's.
func (w *writer) attributes(path string, dst *dirfd.Dir, name string, src source.Dir, srcName string, n *node) error {
	want, err := w.xattrs(path, src, srcName, n)
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
	if sameMeta(st, n.st) && slices.Equal(want, have) {
		return nil
	}
	w.stats.Others++
	return dst.SetMeta(name, n.st.Uid, n.st.Gid, n.st.Mode, want)
}

// xattrs returns what an entry of the new /etc is to have.
func (w *writer) xattrs(path string, src source.Dir, name string, n *node) ([]dirfd.Xattr, error) {
	list, err := src.Xattrs(name)
	if err != nil || n.local || w.o.Labels == nil {
		return list, err
	}
	label, ok := w.o.Labels.Label(path, n.st.Mode)
	if !ok {
		return list, nil
	}
	// The kernel keeps labels with their final NUL, as libostree sets them.
	list = append(withoutLabel(list), dirfd.Xattr{Name: dirfd.SELinux, Value: label + "\x00"})
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
