package sdboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// named are the paths that an entry names, without a slash before them. fdtdir
// is a directory.
func named(e *bls.Entry) (paths []string) {
	for _, key := range []string{"linux", "efi", "uki", "devicetree", "fdtdir"} {
		if v, ok := e.Get(key); ok {
			paths = append(paths, v)
		}
	}
	paths = append(paths, e.Initrds()...)
	for i, p := range paths {
		paths[i] = strings.TrimPrefix(path.Clean("/"+p), "/")
	}
	return paths
}

// missing returns the files of items that are not on the partition. What an
// entry of the menu names was flushed before the entry was shown; only whether
// it is there still is looked at. Other files are compared byte by byte.
func (l *Loader) missing(items []loader.Item) ([]loader.File, error) {
	all, _, err := l.read(func(string, *bls.Entry) bool { return true })
	if err != nil {
		return nil, err
	}
	live := map[string]bool{}
	for _, f := range all {
		if !f.live {
			continue
		}
		for _, p := range named(f.Entry) {
			if _, err := l.root.Lstat(p); err == nil {
				live[p] = true
			}
		}
	}
	var list []loader.File
	seen := map[string]bool{}
	for _, item := range items {
		if item.Files == nil || !slices.ContainsFunc(named(item.Entry), func(p string) bool { return !live[p] }) {
			continue
		}
		files, err := item.Files()
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if seen[f.Path] || live[f.Path] {
				continue
			}
			seen[f.Path] = true
			same, err := l.holds(f)
			if err != nil {
				return nil, err
			}
			if !same {
				list = append(list, f)
			}
		}
	}
	return list, nil
}

// holds reports whether a file is on the partition, whole.
func (l *Loader) holds(f loader.File) (bool, error) {
	have, err := l.root.Open(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer have.Close()
	st, err := have.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() != f.Size {
		return false, err
	}
	src, err := f.Open()
	if err != nil {
		return false, err
	}
	defer src.Close()
	return loader.SameBytes(src, have)
}

// Space implements loader.Loader.
func (l *Loader) Space(items []loader.Item) (need, free int64, err error) {
	files, err := l.missing(items)
	if err != nil {
		return 0, 0, err
	}
	return l.space(files)
}

func (l *Loader) space(files []loader.File) (need, free int64, err error) {
	block, free, err := bootdir.Space(l.root)
	if err != nil {
		return 0, 0, err
	}
	for _, f := range files {
		need += (f.Size + block - 1) / block * block
		if st, err := l.root.Lstat(f.Path); err == nil {
			free += st.Size() / block * block // it makes way
		}
	}
	return need, free, nil
}

// Prepare implements loader.Loader.
func (l *Loader) Prepare(ctx context.Context, items []loader.Item) (err error) {
	files, err := l.missing(items)
	if err != nil || len(files) == 0 {
		return err
	}
	need, free, err := l.space(files)
	if err != nil {
		return err
	}
	if !bootdir.Fits(need, free) {
		return fault.New(fault.NoSpace, "free space there (kedge cleanup removes old deployments) and run the command again; nothing was changed",
			"install the kernel: %d bytes are needed on the EFI system partition %s and %d are free", need, l.root.Name(), free)
	}
	var written []string
	defer func() {
		if err == nil {
			return
		}
		// What another program filled meanwhile, or a signal: no part of a kernel
		// stays.
		for _, name := range written {
			_ = l.root.Remove(name)
		}
		err = fmt.Errorf("install the kernel: %w", err)
	}()
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		written = append(written, f.Path)
		if err := l.write(f); err != nil {
			return err
		}
	}
	return l.sync()
}

// makeRoomy makes a directory that entries or kernels come to, so that it need not
// grow while something boots from it.
func (l *Loader) makeRoomy(dir string) error {
	grown, err := bootdir.MakeRoomy(l.root, dir)
	if err == nil && grown {
		err = l.sync()
	}
	return err
}

// kernelsDir is where the kernels of all deployments are: unified ones, or a directory
// for each.
func kernelsDir(file string) string {
	if strings.HasPrefix(file, "EFI/Linux/") {
		return "EFI/Linux"
	}
	top, _, _ := strings.Cut(file, "/")
	return top
}

func (l *Loader) write(f loader.File) error {
	if err := l.makeRoomy(kernelsDir(f.Path)); err != nil {
		return err
	}
	if err := l.root.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
		return err
	}
	if err := l.root.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	src, err := f.Open()
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := l.root.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(dst, src)
	if err == nil && n != f.Size {
		err = fault.New(fault.Corrupt, "kedge fsck finds damaged objects", "%d of %d bytes of %s could be read", n, f.Size, f.Path)
	}
	if err == nil && !l.opts.NoSync {
		err = dst.Sync()
	}
	err = errors.Join(err, dst.Close())
	if errors.Is(err, unix.ENOSPC) {
		err = fault.New(fault.NoSpace, "free space there and run the command again; nothing that boots was changed", "%w", err)
	}
	return err
}

// Sweep implements loader.Loader. A kernel that any entry names stays, also one
// of another system, and where an entry cannot be read all of them do.
func (l *Loader) Sweep(ctx context.Context, m loader.Menu, keep func(string) bool) error {
	all, _, err := l.read(m.Owns)
	if err != nil {
		return err
	}
	names, err := dirfd.ReadNames(l.root, m.KernelDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if files, err := dirfd.ReadNames(l.root, entriesDir); err == nil {
		readable := func(n string) bool { return slices.ContainsFunc(all, func(f found) bool { return f.File == n }) }
		if slices.ContainsFunc(files, func(n string) bool { return strings.HasSuffix(n, ".conf") && !readable(n) }) {
			l.log.Warn("kernels are not removed: a boot entry cannot be read", "partition", l.root.Name())
			return nil
		}
	}
	removed := false
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := path.Join(m.KernelDir, name) + "/"
		boots := func(f found) bool {
			return slices.ContainsFunc(named(f.Entry), func(p string) bool { return strings.HasPrefix(p+"/", dir) })
		}
		if !m.OwnKernel(name) || keep != nil && keep(name) || slices.ContainsFunc(all, boots) {
			continue
		}
		l.log.Debug("remove kernel", "directory", dir)
		if err := l.root.RemoveAll(path.Join(m.KernelDir, name)); err != nil {
			return err
		}
		removed = true
	}
	if removed {
		return l.sync()
	}
	return nil
}
