package etcmerge

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/source"
)

// sameMeta compares type, permissions and owner.
func sameMeta(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid
}

// sameEntry compares two entries of the same name that are not both
// directories: metadata, contents, symlink targets, extended attributes other
// than the label.
func sameEntry(a, b source.Dir, name string, sa, sb *unix.Stat_t) (bool, error) {
	if same, err := sameAttributes(a, b, name, sa, sb); err != nil || !same {
		return false, err
	}
	return sameBody(a, b, name, sa, sb)
}

// sameBody compares type, contents and symlink targets of two entries that are
// not both directories.
func sameBody(a, b source.Dir, name string, sa, sb *unix.Stat_t) (bool, error) {
	if sa.Mode&unix.S_IFMT != sb.Mode&unix.S_IFMT {
		return false, nil
	}
	switch sa.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		ta, err := a.Readlink(name)
		if err != nil {
			return false, err
		}
		tb, err := b.Readlink(name)
		return err == nil && ta == tb, err
	case unix.S_IFREG:
		if sa.Size != sb.Size {
			return false, nil
		}
		if sa.Ino != 0 && sa.Dev == sb.Dev && sa.Ino == sb.Ino || sa.Size == 0 {
			return true, nil
		}
		return sameContent(a, b, name)
	}
	return true, nil
}

// sameAttributes compares owner, permissions and extended attributes other than
// the label; those of a symlink are its owner.
func sameAttributes(a, b source.Dir, name string, sa, sb *unix.Stat_t) (bool, error) {
	if !sameMeta(sa, sb) {
		return false, nil
	}
	if !isRegular(sa) {
		return true, nil
	}
	differ, err := xattrsDiffer(a, b, name)
	return !differ && err == nil, err
}

// sameContent reports whether two regular files of one name hold the same bytes.
func sameContent(a, b source.Dir, name string) (bool, error) {
	fa, err := a.Open(name)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := b.Open(name)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	same, err := dirfd.SameBytes(fa, fb)
	if err != nil {
		return false, fmt.Errorf("compare %s: %w", name, err)
	}
	return same, nil
}

// xattrsDiffer compares extended attributes without the label.
func xattrsDiffer(a, b source.Dir, name string) (bool, error) {
	xa, err := a.Xattrs(name)
	if err != nil {
		return false, err
	}
	xb, err := b.Xattrs(name)
	if err != nil {
		return false, err
	}
	return !slices.Equal(withoutLabel(xa), withoutLabel(xb)), nil
}

func withoutLabel(list []dirfd.Xattr) []dirfd.Xattr {
	return slices.DeleteFunc(list, func(x dirfd.Xattr) bool { return x.Name == dirfd.SELinux })
}
