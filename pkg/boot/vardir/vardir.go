// Package vardir fills a machine's /var from an image's, once: what is in a var
// that is not empty is the machine's and is never merged.
package vardir

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/source"
)

// marker stands in a var that is being filled; a run that was killed is taken
// up again.
const marker = ".kedge-seeding"

// Seed fills an empty dst with everything in src but sockets, fifos and
// devices. tmpfiles says that the image has systemd-tmpfiles rules, which make
// the usual directories; else those that src lacks are made here. seeded is
// false where dst was not empty.
func Seed(ctx context.Context, src source.Dir, dst *dirfd.Dir, tmpfiles bool) (seeded bool, err error) {
	have, err := dst.Names()
	if err != nil || len(have) > 0 && !slices.Contains(have, marker) {
		return false, err
	}
	// The marker says until the end that the copy is not complete.
	if err := dst.Remove(marker); err != nil {
		return false, err
	}
	if err := dst.Mkdir(marker); err != nil {
		return false, err
	}
	if err := copyDir(ctx, src, dst); err != nil {
		return false, err
	}
	if !tmpfiles {
		if err := makeUsual(src, dst); err != nil {
			return false, err
		}
	}
	return true, dst.Remove(marker)
}

func copyDir(ctx context.Context, src source.Dir, dst *dirfd.Dir) error {
	names, err := src.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := copyEntry(ctx, src, dst, n); err != nil {
			return err
		}
	}
	return nil
}

func copyEntry(ctx context.Context, src source.Dir, dst *dirfd.Dir, name string) error {
	st, err := src.Lstat(name)
	if err != nil {
		return err
	}
	xattrs, err := src.Xattrs(name)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		in, err := src.Open(name)
		if err != nil {
			return err
		}
		defer in.Close()
		return dst.WriteFile(in, name, dirfd.Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Xattrs: xattrs, Mtime: st.Mtim})
	case unix.S_IFLNK:
		target, err := src.Readlink(name)
		if err != nil {
			return err
		}
		if err := dst.Remove(name); err != nil {
			return err
		}
		if err := dst.Symlink(target, name); err != nil {
			return err
		}
	case unix.S_IFDIR:
		if err := copySub(ctx, src, dst, name); err != nil {
			return err
		}
	default:
		return nil
	}
	return dst.SetMeta(name, st.Uid, st.Gid, st.Mode, xattrs)
}

func copySub(ctx context.Context, src source.Dir, dst *dirfd.Dir, name string) error {
	if err := dst.Mkdir(name); err != nil {
		return err
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
	return copyDir(ctx, from, to)
}

// makeUsual makes what systemd-tmpfiles would make and src does not have, for
// images without it. What is there of it already may lack its mode.
func makeUsual(src source.Dir, dst *dirfd.Dir) error {
	for _, d := range []struct {
		name string
		mode uint32
	}{{"tmp", 0o1777}, {"lib", 0o755}, {"log", 0o755}} {
		if _, err := src.Lstat(d.name); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := dst.Mkdir(d.name); err != nil {
			return err
		}
		if err := dst.SetMeta(d.name, 0, 0, unix.S_IFDIR|d.mode, nil); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{{"run", "../run"}, {"lock", "../run/lock"}} {
		if there, err := dst.Exists(l[0]); err != nil {
			return err
		} else if !there {
			if err := dst.Symlink(l[1], l[0]); err != nil {
				return err
			}
		}
	}
	return nil
}
