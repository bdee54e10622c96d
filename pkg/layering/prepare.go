package layering

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The session's directories: a preparation above the base (mount points and
// helpers, never a part of the layer), what resolving needs on top of it, the
// transaction's own changes, and the layer made of them.
const (
	prepUpper = "prep"
	netUpper  = "net"
	txUpper   = "tx"
	layerFile = "layer.tar"
)

// stack mounts the base with the uppers of earlier steps (the topmost first)
// and, where upper is not empty, a new one. It returns the mount point.
func (s *Session) stack(upper string, below ...string) (string, error) {
	name := upper
	if name == "" {
		name = "ro"
	}
	target := s.path("mnt", name)
	mount := func(part, target, base string) error {
		var lowers []string
		for _, b := range below {
			lowers = append(lowers, s.path(b, part))
		}
		dir := ""
		if upper != "" {
			dir = s.path(upper, part)
		}
		return overlay(target, dir, append(lowers, base)...)
	}
	if err := mount("root", target, s.base.Root); err != nil {
		return "", err
	}
	if s.base.Etc == "" {
		return target, nil
	}
	return target, mount("etc", target+"/etc", s.base.Etc)
}

func unstack(target string) error {
	return os.NewSyscallError("umount", unix.Unmount(target, unix.MNT_DETACH))
}

// prepare makes the preparation: what a package manager and scriptlets expect
// of a root that has booted.
func (s *Session) prepare(ctx context.Context) error {
	mnt, err := s.stack(prepUpper)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(mnt)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range []string{"var/lib", "var/cache", "var/log", "var/spool", "var/tmp", "usr/lib/opt", "run", "tmp", "boot", "sys", "proc", "dev"} {
		if err := mkdirAll(root, d); err != nil {
			return err
		}
	}
	// Top-level links into /var (/home, /root, /srv …) lead somewhere on a host
	// that has booted.
	for _, name := range []string{"home", "root", "srv", "mnt", "media", "usr/local"} {
		if to, ok := insideVar(root, name); ok {
			if err := mkdirAll(root, to); err != nil {
				return err
			}
		}
	}
	// /opt of a package is bound to /usr/lib/opt, whatever the image has there.
	if st, err := root.Lstat("opt"); err == nil && !st.IsDir() {
		if err := root.Remove("opt"); err != nil {
			return err
		}
	}
	if err := mkdirAll(root, "opt"); err != nil {
		return err
	}
	if err := s.engine.helpers(root); err != nil {
		return err
	}
	if _, err := root.Stat("usr/bin/systemd-tmpfiles"); err == nil {
		b := &box{s: s, root: mnt, writable: true}
		// Lines that cannot be obeyed here (users that are made at boot) are for the boot.
		if _, err := b.run(ctx, command{argv: []string{"systemd-tmpfiles", "--create", "--prefix=/var"}}); err != nil {
			return err
		}
	}
	return unstack(mnt)
}

// insideVar returns the target of a symlink into /var, as a path in the root.
func insideVar(root *os.Root, name string) (string, bool) {
	to, err := root.Readlink(name)
	if err != nil {
		return "", false
	}
	if !path.IsAbs(to) {
		to = path.Join("/", path.Dir(name), to)
	}
	to = strings.TrimPrefix(path.Clean(to), "/")
	return to, strings.HasPrefix(to, "var/")
}

// mkdirAll makes a directory and its parents where there are none.
func mkdirAll(root *os.Root, name string) error {
	err := root.MkdirAll(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if st, serr := root.Stat(name); serr == nil && st.IsDir() {
			return nil
		}
	}
	return err
}

// readFile reads a file of the root; a missing one is empty.
func readFile(root *os.Root, name string) (string, error) {
	b, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// hostFiles of Options.HostEtc are seen when resolving and fetching: where the
// repositories are, how they are signed, and with which credentials.
var hostFiles = []string{
	"apt/sources.list", "apt/sources.list.d", "apt/keyrings", "apt/trusted.gpg.d", "apt/auth.conf", "apt/auth.conf.d",
	"yum.repos.d", "dnf/vars", "yum/vars", "pki/rpm-gpg", "pki/entitlement", "pki/consumer", "rhsm", "hosts",
}

// hostEtc copies what resolving needs of the host into a preparation of its
// own, which the transaction never sees.
func (s *Session) hostEtc() (err error) {
	if _, err := os.Stat(s.path(netUpper)); err == nil {
		return nil
	}
	defer func() {
		if err != nil { // not the half of it
			err = errors.Join(err, os.RemoveAll(s.path(netUpper)))
		}
	}()
	mnt, err := s.stack(netUpper, prepUpper)
	if err != nil {
		return err
	}
	defer func() { _ = unstack(mnt) }()
	root, err := os.OpenRoot(mnt)
	if err != nil {
		return err
	}
	defer root.Close()
	resolv, err := os.ReadFile(s.opt.Resolv)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Often a link to a file that systemd-resolved makes.
	if err := root.RemoveAll("etc/resolv.conf"); err != nil {
		return err
	}
	if err := root.WriteFile("etc/resolv.conf", resolv, 0o644); err != nil {
		return err
	}
	if s.opt.HostEtc == "" {
		return nil
	}
	host, err := os.OpenRoot(s.opt.HostEtc)
	if err != nil {
		return err
	}
	defer host.Close()
	for _, name := range hostFiles {
		if err := copyInto(host, name, root, "etc/"+name); err != nil {
			return err
		}
	}
	return nil
}

// copyInto replaces a file or directory of root by another root's. Symlinks
// are followed within from.
func copyInto(from *os.Root, name string, root *os.Root, to string) error {
	st, err := from.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := root.RemoveAll(to); err != nil {
		return err
	}
	if err := mkdirAll(root, path.Dir(to)); err != nil {
		return err
	}
	if !st.IsDir() {
		b, err := from.ReadFile(name)
		if err != nil {
			return err
		}
		return root.WriteFile(to, b, st.Mode().Perm())
	}
	if err := root.Mkdir(to, st.Mode().Perm()); err != nil {
		return err
	}
	dir, err := from.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := copyInto(from, path.Join(name, n), root, path.Join(to, n)); err != nil {
			return err
		}
	}
	return nil
}

// moveDatabase moves a package database from /var to /usr and leaves a link.
func moveDatabase(root *os.Root, from, to string) error {
	if err := mkdirAll(root, path.Dir(to)); err != nil {
		return err
	}
	if err := root.RemoveAll(to); err != nil {
		return err
	}
	// The rename crosses no file system; an overlay without redirected
	// directories refuses it for a directory of a lower one, so files are copied.
	if err := copyInto(root, from, root, to); err != nil {
		return err
	}
	if err := root.RemoveAll(from); err != nil {
		return err
	}
	return root.Symlink(strings.Repeat("../", strings.Count(from, "/"))+to, from)
}
