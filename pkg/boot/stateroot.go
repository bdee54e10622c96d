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
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/boot/vardir"
	"github.com/kedge-os/kedge/pkg/fault"
)

// InitStateroot makes a stateroot: its directory and an empty var. One that is
// there already is a Conflict.
func (s *Sysroot) InitStateroot(name string) error {
	if err := CheckStateroot(name); err != nil {
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
	names, err := dirfd.ReadNames(s.root, "ostree/deploy")
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
	if err := CheckStateroot(name); err != nil {
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
	_, err = deployment.Lstat("usr/lib/tmpfiles.d")
	_, err = vardir.Seed(ctx, source.Disk(src), dst, !errors.Is(err, fs.ErrNotExist))
	return err
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
