package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
)

// Label gives what the sysroot itself is made of, above and beside its
// deployments, the SELinux labels of a deployment's policy: /, /boot and /ostree.
// A machine without SELinux makes these without labels, and what boots from there
// has one. Labels that are there stay; without a policy, or on a file system that
// takes no labels, nothing happens.
func (s *Sysroot) Label(ctx context.Context, d *Deployment) error {
	if err := s.requireLock("label"); err != nil {
		return err
	}
	root, err := s.root.OpenRoot(d.Dir())
	if err != nil {
		return err
	}
	defer root.Close()
	policy, err := labels(root)
	if err != nil || policy == nil {
		return err
	}
	l := &sysrootLabeler{ctx: ctx, policy: policy}
	top, err := dirfd.Open(s.root, ".")
	if err != nil {
		return err
	}
	defer top.Close()
	if err := l.sysroot(top, s.boot); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("label the sysroot: %w", err)
	}
	return nil
}

type sysrootLabeler struct {
	ctx    context.Context
	policy Labeler
}

// sysroot labels the root directory and what of it is the sysroot's or the file
// system's own, and the boot directory.
func (l *sysrootLabeler) sysroot(top *dirfd.Dir, boot *os.Root) error {
	if err := l.one(top, ".", "/", unix.S_IFDIR|0o755); err != nil {
		return err
	}
	for _, name := range []string{"ostree", "lost+found"} {
		if err := l.tree(top, name, "/"+name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if boot == nil {
		return nil
	}
	dir, err := dirfd.Open(boot, ".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return l.tree(dir, ".", "/boot")
}

// notOurs are files that have the labels of what they become, the root and /var
// of a system, and objects whose checksums cover their labels.
var notOurs = regexp.MustCompile(`^/ostree/(deploy/[^/]+/(var|deploy/[0-9a-f]{64}\.[0-9]+)|repo/objects/../[0-9a-f]+\.file)$`)

// tree labels an entry and what is below it, within one file system.
func (l *sysrootLabeler) tree(dir *dirfd.Dir, name, path string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		return nil // a kernel that is linked to its object
	}
	if err := l.one(dir, name, path, st.Mode); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	sub, err := dir.Sub(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	names, err := sub.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if notOurs.MatchString(path + "/" + n) {
			continue
		}
		child, err := sub.Lstat(n)
		if err != nil {
			return err
		}
		if child.Dev != st.Dev {
			continue
		}
		if err := l.tree(sub, n, path+"/"+n); err != nil {
			return err
		}
	}
	return nil
}

// one labels an entry that has no label.
func (l *sysrootLabeler) one(dir *dirfd.Dir, name, path string, mode uint32) error {
	have, err := dir.Xattrs(name)
	if err != nil || slices.ContainsFunc(have, isLabel) {
		return err
	}
	return setLabel(dir, name, path, l.policy, mode)
}

// isLabel leaves out what the kernel shows for a file without a label.
func isLabel(x dirfd.Xattr) bool {
	return x.Name == dirfd.SELinux && !strings.Contains(x.Value, ":unlabeled_t")
}
