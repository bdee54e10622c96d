package etcmerge

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Reset makes paths of an /etc that is in use what an image has. A file is
// replaced in one step: who reads it sees the old one or the whole new one.
type Reset struct {
	Ctx      context.Context
	Defaults source.Dir // the image's /etc
	Etc      *dirfd.Dir
	Labels   Labeler // of new files; nil for none
	// Remove takes away what the image has not.
	Remove bool
	// Done are the paths below /etc that were changed.
	Done []string
}

// Path resets a path below /etc and everything beneath it. Directories above it
// that are missing are made. What the image does not have is NotFound, unless it
// is to be removed.
func (r *Reset) Path(name string) error {
	parts := strings.Split(name, "/")
	if len(parts) > maxDepth {
		return tooDeep(name)
	}
	return r.walk(r.Defaults, r.Etc, parts, "")
}

// walk goes down to a path. src is nil where the image has no such directory.
func (r *Reset) walk(src source.Dir, dst *dirfd.Dir, parts []string, above string) error {
	name, rest := parts[0], parts[1:]
	full := strings.TrimPrefix(above+"/"+name, "/")
	if len(rest) == 0 {
		return r.entry(src, dst, name, full, true)
	}
	theirs, err := lstat(src, name)
	if err != nil {
		return err
	}
	ours, err := lstat(source.Disk(dst), name)
	if err != nil {
		return err
	}
	switch {
	case ours != nil && !isDir(ours):
		return fault.New(fault.Conflict, "reset that first", "/etc/%s is no directory", full)
	case ours == nil && !isDir(theirs):
		return missing(full)
	case ours == nil:
		if err := r.mkdir(src, dst, name, full, theirs); err != nil {
			return err
		}
	}
	sub, err := dst.Sub(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	var below source.Dir
	if isDir(theirs) {
		if below, err = src.Sub(name); err != nil {
			return err
		}
		defer below.Close()
	}
	return r.walk(below, sub, rest, full)
}

func missing(name string) error {
	return fault.New(fault.NotFound, "--remove takes away what only this host has", "the image has no /etc/%s", name)
}

func tooDeep(name string) error {
	return fault.New(fault.Conflict, "remove it, or move it away", "directories are nested deeper than %d at /etc/%.60s…", maxDepth, name)
}

// entry resets one entry; named says that it was asked for by its name.
func (r *Reset) entry(src source.Dir, dst *dirfd.Dir, name, full string, named bool) error {
	if err := r.Ctx.Err(); err != nil {
		return err
	}
	theirs, err := lstat(src, name)
	if err != nil {
		return err
	}
	ours, err := lstat(source.Disk(dst), name)
	if err != nil {
		return err
	}
	switch {
	case theirs == nil && ours == nil && named, theirs == nil && !r.Remove && named:
		return missing(full)
	case theirs == nil && !r.Remove, theirs != nil && !isPlain(theirs):
		return nil
	case theirs == nil:
		r.Done = append(r.Done, full)
		return dst.Remove(name)
	case isDir(theirs):
		return r.dir(src, dst, name, full, theirs, ours)
	}
	if ours != nil && !isDir(ours) {
		if same, err := sameEntry(src, source.Disk(dst), name, theirs, ours); err != nil || same {
			return err
		}
	}
	if isDir(ours) {
		if !r.Remove {
			return fault.New(fault.Conflict, "--remove takes the directory away", "/etc/%s is a directory, in the image it is none", full)
		}
		if err := dst.Remove(name); err != nil {
			return err
		}
	}
	r.Done = append(r.Done, full)
	meta, err := r.meta(src, name, full, theirs)
	if err != nil {
		return err
	}
	if isRegular(theirs) {
		in, err := src.Open(name)
		if err != nil {
			return err
		}
		defer in.Close()
		meta.Sync = true
		return dst.WriteFile(in, name, meta)
	}
	target, err := src.Readlink(name)
	if err != nil {
		return err
	}
	const fresh = ".kedge-reset.tmp"
	if err := dst.Remove(fresh); err != nil {
		return err
	}
	if err := dst.Symlink(target, fresh); err != nil {
		return err
	}
	if err := dst.SetMeta(fresh, meta.UID, meta.GID, meta.Mode, meta.Xattrs); err != nil {
		return err
	}
	return dst.Rename(fresh, name)
}

func (r *Reset) dir(src source.Dir, dst *dirfd.Dir, name, full string, theirs, ours *unix.Stat_t) error {
	if strings.Count(full, "/") > maxDepth {
		return tooDeep(full)
	}
	if ours != nil && !isDir(ours) {
		if err := dst.Remove(name); err != nil {
			return err
		}
		ours = nil
	}
	same := false
	if ours != nil {
		differ, err := xattrsDiffer(src, source.Disk(dst), name)
		if err != nil {
			return err
		}
		same = !differ && sameMeta(theirs, ours)
	}
	if !same {
		if err := r.mkdir(src, dst, name, full, theirs); err != nil {
			return err
		}
	}
	from, err := src.Sub(name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := dst.Sub(name)
	if err != nil {
		return err
	}
	defer to.Close()
	names, err := union(from, source.Disk(to))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := r.entry(from, to, n, full+"/"+n, false); err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a directory, or makes its attributes the image's.
func (r *Reset) mkdir(src source.Dir, dst *dirfd.Dir, name, full string, theirs *unix.Stat_t) error {
	meta, err := r.meta(src, name, full, theirs)
	if err != nil {
		return err
	}
	if err := dst.Mkdir(name); err != nil {
		return err
	}
	r.Done = append(r.Done, full)
	return dst.SetMeta(name, meta.UID, meta.GID, meta.Mode, meta.Xattrs)
}

func (r *Reset) meta(src source.Dir, name, full string, st *unix.Stat_t) (dirfd.Meta, error) {
	list, err := src.Xattrs(name)
	if err != nil {
		return dirfd.Meta{}, err
	}
	if r.Labels != nil {
		if label, ok := r.Labels.Label("/etc/"+full, st.Mode); ok {
			list = append(withoutLabel(list), dirfd.Xattr{Name: dirfd.SELinux, Value: label + "\x00"})
			slices.SortFunc(list, func(a, b dirfd.Xattr) int { return strings.Compare(a.Name, b.Name) })
		}
	}
	return dirfd.Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Xattrs: list, Mtime: st.Mtim}, nil
}
