package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/fault"
)

// InitStateroot makes a stateroot: its directory and an empty var. One that is
// there already is a Conflict.
func (s *Sysroot) InitStateroot(name string) error {
	if err := checkStateroot(name); err != nil {
		return err
	}
	if err := s.requireLock("make a stateroot"); err != nil {
		return err
	}
	dir := path.Join("ostree/deploy", name)
	err := s.root.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = s.root.Mkdir(path.Join(dir, "var"), 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "choose another name, or use the stateroot as it is", "the stateroot %s exists already", name)
	}
	if err != nil {
		return fmt.Errorf("make the stateroot %s: %w", name, err)
	}
	return s.bumpMtime()
}

// Stateroots returns the names of the stateroots.
func (s *Sysroot) Stateroots() ([]string, error) {
	names, err := readNames(s.root, "ostree/deploy")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, n := range names {
		if st, err := s.root.Lstat(path.Join("ostree/deploy", n)); err == nil && st.IsDir() {
			list = append(list, n)
		}
	}
	return list, nil
}

func (s *Sysroot) requireStateroot(name string) error {
	if err := checkStateroot(name); err != nil {
		return err
	}
	if _, err := s.root.Stat(path.Join("ostree/deploy", name)); errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "", "no stateroot %s", name)
	} else if err != nil {
		return err
	}
	// One that was begun and not finished has no var yet.
	err := s.root.Mkdir(path.Join("ostree/deploy", name, "var"), 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// bumpMtime tells programs that watch ostree/deploy that the list changed.
func (s *Sysroot) bumpMtime() error {
	now := time.Now()
	if err := s.root.Chtimes("ostree/deploy", now, now); err != nil {
		return fmt.Errorf("set the time of ostree/deploy: %w", err)
	}
	return nil
}

// seedVar fills an empty var of the stateroot from the image's, once; what is
// in a var that is not empty is the machine's and is never merged.
func (s *Sysroot) seedVar(ctx context.Context, d *Deployment, deployment *os.Root) error {
	src, err := dirfd.Open(deployment, "var")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := dirfd.Open(s.root, path.Join("ostree/deploy", d.Stateroot, "var"))
	if err != nil {
		return err
	}
	defer dst.Close()
	have, err := dst.Names()
	if err != nil || len(have) > 0 && !isSeedOf(have) {
		return err
	}
	// The marker says until the end that the copy is not complete.
	if err := dst.Remove(seedMarker); err != nil {
		return err
	}
	if err := dst.Mkdir(seedMarker); err != nil {
		return err
	}
	if err := copyVar(ctx, src, dst); err != nil {
		return err
	}
	if _, err := deployment.Lstat("usr/lib/tmpfiles.d"); errors.Is(err, fs.ErrNotExist) {
		if err := legacyVar(src, dst); err != nil {
			return err
		}
	}
	return dst.Remove(seedMarker)
}

// seedMarker stands in a var that is being filled; a run that was killed is
// taken up again.
const seedMarker = ".kedge-seeding"

func isSeedOf(names []string) bool {
	for _, n := range names {
		if n == seedMarker {
			return true
		}
	}
	return false
}

// copyVar copies a tree with everything but sockets and fifos.
func copyVar(ctx context.Context, src, dst *dirfd.Dir) error {
	names, err := src.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		st, err := src.Lstat(n)
		if err != nil {
			return err
		}
		xattrs, err := src.Xattrs(n)
		if err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			err = dst.CopyFile(src, n, n, dirfd.Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Xattrs: xattrs, Mtime: st.Mtim})
		case unix.S_IFLNK:
			if err = copySymlink(src, dst, n); err == nil {
				err = dst.SetMeta(n, st.Uid, st.Gid, st.Mode, xattrs)
			}
		case unix.S_IFDIR:
			if err = copyVarDir(ctx, src, dst, n); err == nil {
				err = dst.SetMeta(n, st.Uid, st.Gid, st.Mode, xattrs)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyVarDir(ctx context.Context, src, dst *dirfd.Dir, name string) error {
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
	return copyVar(ctx, from, to)
}

// legacyVar makes what systemd-tmpfiles would make and src does not have, for
// images without it. What is there of it already may lack its mode.
func legacyVar(src, dst *dirfd.Dir) error {
	for _, d := range []struct {
		name string
		mode uint32
	}{{"tmp", 0o1777}, {"lib", 0o755}, {"log", 0o755}} {
		if seeded, err := src.Exists(d.name); err != nil {
			return err
		} else if seeded {
			continue
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

// labelVar gives every file of the stateroot's var its label, once; a stamp
// says that it was done.
func (s *Sysroot) labelVar(d *Deployment, labels Labeler) error {
	const stamp = ".ostree-selabeled"
	dir, err := dirfd.Open(s.root, path.Join("ostree/deploy", d.Stateroot, "var"))
	if err != nil {
		return err
	}
	defer dir.Close()
	if done, err := dir.Exists(stamp); done || err != nil {
		return err
	}
	if labels != nil {
		if err := setLabel(dir, ".", "/var", labels, unix.S_IFDIR|0o755); err != nil {
			return err
		}
		err := dir.Walk(func(d *dirfd.Dir, name, path string, st *unix.Stat_t) error {
			return setLabel(d, name, "/var/"+path, labels, st.Mode)
		})
		if err != nil {
			return err
		}
	}
	f, err := s.root.OpenFile(path.Join("ostree/deploy", d.Stateroot, "var", stamp), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil || labels == nil {
		return err
	}
	return setLabel(dir, stamp, "/var/"+stamp, labels, unix.S_IFREG|0o644)
}

func setLabel(dir *dirfd.Dir, name, path string, labels Labeler, mode uint32) error {
	label, ok := labels.Label(path, mode)
	if !ok {
		return nil
	}
	return dir.SetXattr(name, dirfd.Xattr{Name: dirfd.SELinux, Value: label + "\x00"})
}
