package boot

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
)

// A loader that does not read /boot has a one-way mirror of it: kernels under
// the names that they have there, and the entries of the list in use. The
// mirror's entries hold ostree=/ostree/boot.V/…, so that three things have an
// order:
//
//   - libostree's commit point, the rename of /boot/loader, comes before the
//     mirror's. A machine that dies between the two boots the old list once more,
//     whose farm is still there.
//   - A farm is filled only when no entry of the mirror leads through the version
//     that it is of: swapEntries brings the mirror up to date first.
//   - A farm is removed only when the mirror is that of the list: Cleanup does
//     that first.
//
// What ostree or another program changed meanwhile comes to the mirror with the
// next command of kedge that takes the lock.

// mirrorName begins the names and sort-keys of a sysroot's entries in a mirror.
func (s *Sysroot) mirrorName() string { return "ostree-" + s.opts.Token }

func (s *Sysroot) ownsLine(file string, _ *bls.Entry) bool {
	return strings.HasPrefix(file, s.mirrorName()+".")
}

func (s *Sysroot) mirrorMenu(items []loader.Item) loader.Menu {
	return loader.Menu{
		Owns: s.ownsLine, SortKey: s.mirrorName(), Items: items, KernelDir: "ostree",
		OwnKernel: func(name string) bool { _, _, ok := parseBootName(name); return ok },
	}
}

// mirrorItem makes the mirror's line of a deployment from its entry in /boot.
func (s *Sysroot) mirrorItem(d *Deployment, entry *bls.Entry, i, n int) loader.Item {
	e := entry.Clone()
	move := func(name string) string {
		if s.loader.Root() == nil {
			return name
		}
		return "/" + strings.TrimPrefix(strings.TrimPrefix(name, "/"), "boot/")
	}
	for _, key := range []string{"linux", "devicetree", "fdtdir"} {
		if v, ok := e.Get(key); ok {
			e.Set(key, move(v))
		}
	}
	initrds := slices.Clone(e.Initrds())
	for i, v := range initrds {
		initrds[i] = move(v)
	}
	e.SetInitrds(initrds)
	item := loader.Item{ID: d.Stateroot + "/" + d.Name(), Name: s.mirrorName(), Entry: e}
	item.Count(i, n, func() uint64 { return s.tries(d) }, s.again == item.ID)
	item.Good = s.good == item.ID
	item.Files = func() ([]loader.File, error) {
		var files []loader.File
		for _, name := range append([]string{e.Value("linux"), e.Value("devicetree"), e.Value("fdtdir")}, initrds...) {
			if name == "" {
				continue
			}
			name = strings.TrimPrefix(name, "/")
			list, err := treeFiles(s.boot, name, name)
			if err != nil {
				return nil, err
			}
			files = append(files, list...)
		}
		return files, nil
	}
	return item
}

// tries returns how often a deployment that the menu does not have, or that is to
// be tried again, is tried.
func (s *Sysroot) tries(d *Deployment) uint64 {
	if !slices.ContainsFunc(s.loader.BlessedBy(), func(name string) bool {
		_, err := s.root.Lstat(path.Join(d.Dir(), name))
		return err == nil
	}) {
		return 0
	}
	return s.opts.Tries
}

// treeFiles returns a file, or all those below a directory, to be written as
// another name.
func treeFiles(root *os.Root, name, as string) (files []loader.File, err error) {
	err = fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := root.Stat(p) // FAT has no symlinks: the file stands for its link
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return nil
		}
		to := path.Join(as, strings.TrimPrefix(p, name))
		files = append(files, loader.File{Path: to, Size: st.Size(), Open: func() (io.ReadCloser, error) { return root.Open(p) }})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the kernel: %w", err)
	}
	return files, nil
}

// kernelItem is the line of a deployment whose kernel is not in /boot yet, as far
// as its space is concerned.
func (s *Sysroot) kernelItem(d *Deployment) (loader.Item, error) {
	root, err := s.root.OpenRoot(d.Dir())
	if err != nil {
		return loader.Item{}, err
	}
	defer root.Close()
	k, err := locateKernel(root)
	if err != nil {
		return loader.Item{}, err
	}
	e := &bls.Entry{}
	dst := path.Join("ostree", d.bootName())
	e.Set("linux", "/"+path.Join(dst, k.kernel.dst))
	if k.initramfs != nil {
		e.SetInitrds([]string{"/" + path.Join(dst, k.initramfs.dst)})
	}
	return loader.Item{Entry: e, Files: func() ([]loader.File, error) {
		sources := k.files()
		if k.dtbDir {
			sources = append(sources, kernelFile{src: "dtb", dst: "dtb"})
		}
		var files []loader.File
		for _, f := range sources {
			list, err := treeFiles(s.root, path.Join(d.Dir(), k.dir, f.src), path.Join(dst, f.dst))
			if err != nil {
				return nil, err
			}
			files = append(files, list...)
		}
		return files, nil
	}}, nil
}

// mirror brings the loader's menu to the list in use.
func (s *Sysroot) mirror(ctx context.Context) error {
	var items []loader.Item
	list := slices.DeleteFunc(s.Deployments(), func(d *Deployment) bool { return d.Staged })
	for i, d := range list {
		items = append(items, s.mirrorItem(d, d.Entry, i, len(list)))
	}
	if len(items) == 0 {
		return nil
	}
	err := s.loader.Prepare(ctx, items)
	if err == nil {
		err = s.loader.Commit(ctx, s.mirrorMenu(items))
	}
	if err != nil {
		return fmt.Errorf("bring the menu of %s up to date: %w", s.loader.Name(), err)
	}
	return nil
}

// updateLoader brings the loader's program up to date from the default's tree.
func (s *Sysroot) updateLoader() {
	d := s.first(func(d *Deployment) bool { return !d.Staged })
	if d == nil {
		return
	}
	loader.Refresh(s.loader, s.log, func() error {
		root, err := s.root.OpenRoot(d.Dir())
		if err != nil {
			return err
		}
		defer root.Close()
		_, err = s.loader.Update(root.FS())
		return err
	})
}

// readMirror takes over from the loader's menu what boot loaders count, and what
// is wrong there.
func (s *Sysroot) readMirror() {
	lines, problems, err := s.loader.Lines(s.ownsLine)
	if err != nil {
		problems = append(problems, err)
	}
	for _, p := range problems {
		s.problem(p)
	}
	for _, d := range s.list {
		i := slices.IndexFunc(lines, func(l loader.Line) bool { return l.ID == d.Stateroot+"/"+d.Name() })
		if i >= 0 {
			d.counter = lines[i].Counter
		}
	}
}

// Bless has the loader not count the booted deployment any more: a boot of it was
// good. It is for loaders that leave that to kedge.
func (s *Sysroot) Bless(ctx context.Context) error {
	if err := s.requireLock("bless the boot"); err != nil {
		return err
	}
	d, err := s.requireBooted("bless a boot")
	if err != nil {
		return err
	}
	s.good = d.Stateroot + "/" + d.Name()
	return s.mirror(ctx)
}

// sweepMirror removes the kernels of the mirror that nothing boots.
func (s *Sysroot) sweepMirror(ctx context.Context) error {
	return s.loader.Sweep(ctx, s.mirrorMenu(nil), func(name string) bool { return bootsKernel(s.list, name) })
}

// mirrorSpace returns what a list needs in the mirror, what is free there, and
// what would be if it had no other kernels of this sysroot.
func (s *Sysroot) mirrorSpace(list []*Deployment) (need, free, gain int64, err error) {
	var items []loader.Item
	for _, d := range list {
		item, err := s.kernelItem(d)
		if err != nil {
			return 0, 0, 0, err
		}
		items = append(items, item)
	}
	if need, free, err = s.loader.Space(items); err != nil || s.loader.Root() == nil {
		return 0, 0, 0, err
	}
	// What is not of this list may be another system's.
	gain, err = prunableKernels(s.loader.Root(), func(name string) bool {
		return bootsKernel(list, name) || !bootsKernel(s.list, name)
	})
	return need, free, gain, err
}
