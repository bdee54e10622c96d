package ostree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// CheckoutOptions are the options of a checkout.
type CheckoutOptions struct {
	// Copy copies every file instead of hardlinking it, and leaves the times of
	// the copies as they come: what a deployment's /etc is made of.
	Copy bool
}

// whiteoutPrefix marks a file object that a deployment shows as an overlayfs
// whiteout (a character device 0:0) named by the rest of its name.
const whiteoutPrefix = ".ostree-wh."

// Checkout makes the directory name beneath parent and fills it with a
// commit's tree. name "." fills parent itself, which must be empty.
//
// Files are hardlinks into a bare repository on the same file system; empty
// ones are copied, as libostree does, lest a popular one reach the limit of
// links. Directories get owner, mode, xattrs and the modification time 0 when
// their content is complete; until then nobody else can enter them. Nothing is
// synced: the caller does that, once, before anything points to the checkout.
// After an error or a cancelled context the caller removes what is there.
func (r *Repo) Checkout(ctx context.Context, commit Checksum, parent *os.Root, name string, opts CheckoutOptions) error {
	c, err := r.ReadCommit(commit)
	if err != nil {
		return err
	}
	if err := r.CheckoutTree(ctx, c.Tree, c.Meta, parent, name, opts); err != nil {
		return fmt.Errorf("check out %s to %s/%s: %w", commit, parent.Name(), name, err)
	}
	return nil
}

// CheckoutTree is Checkout for any directory of a commit.
func (r *Repo) CheckoutTree(ctx context.Context, dirtree, dirmeta Checksum, parent *os.Root, name string, opts CheckoutOptions) error {
	if name != "." {
		if err := parent.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	dst, err := parent.OpenFile(name, unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers())
	co := &checkout{repo: r, ctx: ctx, opts: opts, spare: g}
	err = co.fill(dst, dirtree, dirmeta, 0)
	if werr := g.Wait(); werr != nil {
		return werr
	}
	return err
}

type checkout struct {
	repo  *Repo
	ctx   context.Context
	opts  CheckoutOptions
	spare *errgroup.Group // takes subdirectories while it has workers to spare
	metas cached[Checksum, object.Meta]
}

// fill writes a directory's content and then its metadata. dst is open, and
// 0700 unless it is the caller's.
func (co *checkout) fill(dst *os.File, dirtree, dirmeta Checksum, depth int) error {
	if err := co.ctx.Err(); err != nil {
		return context.Cause(co.ctx)
	}
	if depth > maxDirDepth {
		return fault.New(fault.Corrupt, "", "dirtree %s: %w", dirtree, errTooDeep)
	}
	files, dirs, err := co.repo.ReadDirtree(dirtree)
	if err != nil {
		return err
	}
	meta, err := co.metas.get(dirmeta, func() (object.Meta, error) { return co.repo.ReadDirmeta(dirmeta) })
	if err != nil {
		return err
	}
	for _, e := range files {
		if err := co.file(dst, e); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	if err := co.subdirs(dst, dirs, depth); err != nil {
		return err
	}
	return co.finishDir(dst, meta)
}

func (co *checkout) subdirs(dst *os.File, dirs []object.DirEntry, depth int) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for _, e := range dirs {
		if err := unix.Mkdirat(int(dst.Fd()), e.Name, 0o700); err != nil {
			failed = errors.Join(failed, fmt.Errorf("make the directory %s: %w", e.Name, err))
			break
		}
		wg.Add(1)
		work := func() error {
			defer wg.Done()
			err := co.subdir(dst, e, depth+1)
			if err != nil {
				mu.Lock()
				failed = errors.Join(failed, fmt.Errorf("%s/%w", e.Name, err))
				mu.Unlock()
			}
			return nil // reported through failed, with its path
		}
		if !co.spare.TryGo(work) {
			_ = work()
		}
		mu.Lock()
		stop := failed != nil
		mu.Unlock()
		if stop {
			break
		}
	}
	wg.Wait()
	return failed
}

func (co *checkout) subdir(parent *os.File, e object.DirEntry, depth int) error {
	d, err := openDirAt(parent, e.Name)
	if err != nil {
		return err
	}
	defer d.Close()
	return co.fill(d, e.Tree, e.Meta, depth)
}

// finishDir opens the directory to others only now that it is complete.
func (co *checkout) finishDir(dst *os.File, m object.Meta) error {
	fd := int(dst.Fd())
	if err := co.repo.chown(fd, m); err != nil {
		return fmt.Errorf("change a directory's owner: %w", err)
	}
	if err := setXattrs(fd, m.Xattrs); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, m.Mode&0o7777); err != nil {
		return fmt.Errorf("change a directory's mode: %w", err)
	}
	if co.opts.Copy {
		return nil
	}
	return setTimes(fd, epoch)
}

// chown sets the owner. The modes for ordinary users have files that belong to
// whoever checks them out.
func (r *Repo) chown(fd int, m object.Meta) error {
	if os.Geteuid() != 0 && r.mode != Bare {
		return nil
	}
	return unix.Fchown(fd, int(m.UID), int(m.GID))
}

func setXattrs(fd int, list []fstree.Xattr) error {
	for _, a := range list {
		if err := unix.Fsetxattr(fd, a.Name, []byte(a.Value), 0); err != nil {
			return fmt.Errorf("set the extended attribute %s: %w", a.Name, err)
		}
	}
	return nil
}

func (co *checkout) file(dst *os.File, e object.FileEntry) error {
	n := object.Name{Checksum: e.Checksum, Type: object.TypeFile}
	white, isWhite := strings.CutPrefix(e.Name, whiteoutPrefix)
	if isWhite {
		if err := object.CheckName(white); err != nil {
			return err
		}
	}
	if co.repo.mode == Bare && !co.opts.Copy && !isWhite {
		empty, err := co.isEmpty(n)
		if err != nil {
			return err
		}
		if !empty {
			err := unix.Linkat(int(co.repo.objects.Fd()), n.Path(false), int(dst.Fd()), e.Name, 0)
			switch {
			case errors.Is(err, unix.ENOENT):
				return co.repo.objectError(n, err)
			case !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EXDEV):
				return err
			}
		}
	}
	m, content, err := co.repo.OpenFile(e.Checksum)
	if err != nil {
		return err
	}
	defer content.Close()
	switch {
	case m.IsSymlink():
		return co.symlink(dst, e.Name, m)
	case isWhite:
		return co.whiteout(dst, white, m)
	}
	return co.copy(dst, e.Name, m, content)
}

// isEmpty reports whether an object is a regular file without content.
func (co *checkout) isEmpty(n object.Name) (bool, error) {
	if m, ok := co.repo.recentFile(n.Checksum); ok {
		return m.Size == 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(co.repo.objects.Fd()), n.Path(false), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, co.repo.objectError(n, err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0, nil
}

func (co *checkout) symlink(dst *os.File, name string, m FileMeta) error {
	if err := unix.Symlinkat(m.Target, int(dst.Fd()), name); err != nil {
		return err
	}
	return co.pathMeta(dst, name, m)
}

func (co *checkout) whiteout(dst *os.File, name string, m FileMeta) error {
	if err := unix.Mknodat(int(dst.Fd()), name, unix.S_IFCHR|m.Mode&0o7777, 0); err != nil {
		return err
	}
	if err := co.pathMeta(dst, name, m); err != nil {
		return err
	}
	return unix.Fchmodat(int(dst.Fd()), name, m.Mode&0o7777, 0)
}

// pathMeta sets owner and xattrs of what cannot be opened.
func (co *checkout) pathMeta(dst *os.File, name string, m FileMeta) error {
	if os.Geteuid() == 0 || co.repo.mode == Bare {
		if err := unix.Fchownat(int(dst.Fd()), name, int(m.UID), int(m.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	for _, a := range m.Xattrs {
		if err := unix.Lsetxattr(procPath(dst, name), a.Name, []byte(a.Value), 0); err != nil {
			return fmt.Errorf("set the extended attribute %s: %w", a.Name, err)
		}
	}
	return nil
}

// copy writes a file without a name first, so that nobody sees half of it or
// runs it before it has its metadata.
func (co *checkout) copy(dst *os.File, name string, m FileMeta, content io.Reader) error {
	tmp, err := newTemp(dst, 0o600)
	if err != nil {
		return err
	}
	defer tmp.discard()
	if src, ok := content.(*os.File); !ok || unix.IoctlFileClone(tmp.fd(), int(src.Fd())) != nil {
		if _, err := io.Copy(tmp.File, content); err != nil {
			return err
		}
	}
	if err := co.repo.chown(tmp.fd(), m.Meta); err != nil {
		return err
	}
	if err := unix.Fchmod(tmp.fd(), m.Mode&0o7777); err != nil {
		return err
	}
	if err := setXattrs(tmp.fd(), m.Xattrs); err != nil {
		return err
	}
	if !co.opts.Copy {
		if err := setTimes(tmp.fd(), epoch); err != nil {
			return err
		}
	}
	return tmp.link(dst, name)
}
