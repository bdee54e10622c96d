package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/kedge-os/kedge/internal/prepareroot"
	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// cfsName is the file of a deployment that ostree-prepare-root mounts where the
// image enables composefs.
const cfsName = ".ostree.cfs"

// metaCFSDigest is the key of a commit's metadata with the fs-verity digest that
// its composefs image has when every object is sealed (ostree commit
// --generate-composefs-metadata). ostree-ext writes none to merge commits.
const metaCFSDigest = "ostree.composefs.digest.v0"

// checkComposefs reads a tree's prepare-root.conf and refuses what the tree's
// own initramfs could not mount from this repository, while nothing of it is in
// there yet.
func (s *ostreeStore) checkComposefs(t *fstree.Tree, open openFunc) (prepareroot.Config, error) {
	conf, err := readPrepareRoot(t, open)
	if err != nil {
		return conf, err
	}
	switch {
	case conf.Invalid != "":
		return conf, fault.New(fault.Conflict, "set it to yes, maybe, no or verity in the image",
			"the image's prepare-root.conf has [composefs] enabled=%s, which means nothing: it would not boot", conf.Invalid)
	case conf.Composefs == prepareroot.Signed:
		return conf, fault.New(fault.Conflict, "use an image with enabled=verity or enabled=yes in its prepare-root.conf",
			"the image demands a signature over its composefs image ([composefs] enabled=signed) by a key that only its initramfs has: kedge cannot tell whether it would boot")
	case conf.Composefs == prepareroot.Verity:
		if err := s.repo.CheckVerity(); err != nil {
			return conf, fmt.Errorf("the image demands fs-verity ([composefs] enabled=verity): %w", err)
		}
	}
	return conf, nil
}

type openFunc = func(fstree.Digest) (io.ReadCloser, error)

// maxPrepareRoot is more than Parse takes.
const maxPrepareRoot = 2 << 20

// readPrepareRoot reads the prepare-root.conf that a tree's initramfs was made
// with, where that was made in the image. /usr/etc is what becomes /etc.
func readPrepareRoot(t *fstree.Tree, open openFunc) (prepareroot.Config, error) {
	for _, dir := range []string{"usr/etc/", "usr/lib/"} {
		n := t.Resolve(dir + prepareroot.File)
		if n == nil || !n.IsRegular() {
			continue
		}
		if n.Size == 0 {
			return prepareroot.Config{}, nil
		}
		r, err := open(n.Content)
		if err != nil {
			return prepareroot.Config{}, fmt.Errorf("read /%s%s: %w", dir, prepareroot.File, err)
		}
		defer r.Close()
		text, err := io.ReadAll(io.LimitReader(r, maxPrepareRoot))
		if err != nil {
			return prepareroot.Config{}, fmt.Errorf("read /%s%s: %w", dir, prepareroot.File, err)
		}
		return prepareroot.Parse(string(text))
	}
	return prepareroot.Config{}, nil
}

// open opens the content of a file of a commit's tree.
func (r *bootRepo) open(content fstree.Digest) (io.ReadCloser, error) {
	_, rc, err := r.repo.OpenFile(object.Checksum(content))
	return rc, err
}

// writeCFS writes the composefs image of a checkout, as libostree does for
// every deployment whatever the image enables (ostree-sysroot-deploy.c):
// prepare-root.conf is read in the initramfs, which may say otherwise. Objects
// that the kernel guards with fs-verity are bound by their digest, others by
// their name alone. For an image that demands fs-verity all are sealed first,
// those too that the repository has had for long.
func (r *bootRepo) writeCFS(ctx context.Context, sum object.Checksum, deployment *os.Root) error {
	commit, err := r.repo.ReadTree(ctx, sum)
	if err != nil {
		return err
	}
	conf, err := (*ostreeStore)(r).checkComposefs(commit, r.open)
	if err != nil {
		return err
	}
	demanded := conf.Composefs == prepareroot.Verity
	if demanded {
		if err := r.repo.EnsureVerity(ctx); err != nil {
			return err
		}
	}
	seal, err := r.sealed()
	if err != nil {
		return err
	}
	tree := r.cfsTree(commit, demanded)
	if err := ctx.Err(); err != nil {
		return err
	}
	var info composefs.ImageInfo
	write := func(w io.Writer) (err error) {
		b := bufio.NewWriterSize(w, 1<<20)
		if info, err = composefs.WriteImageWith(ctx, r.cfg.ComposefsTool, b, tree, composefs.Default); err != nil {
			return err
		}
		return b.Flush()
	}
	if err := create(deployment, cfsName, write); err != nil {
		return err
	}
	// Not CreateSealed, which lets no process start: write may be a program.
	if seal {
		if err := sealFile(deployment, cfsName); err != nil {
			return err
		}
	}
	if demanded {
		if err := r.compareCFS(sum, info.Digest); err != nil {
			return err
		}
	}
	return deployment.Chmod(cfsName, 0o644) // whatever the umask
}

// checkCFS looks for what keeps a deployment that demands fs-verity from
// booting, or from being what its commit says.
func (r *bootRepo) checkCFS(ctx context.Context, d *boot.Deployment) error {
	sum, err := object.ParseChecksum(d.Checksum)
	if err != nil {
		return err
	}
	commit, err := r.repo.ReadTree(ctx, sum)
	if err != nil {
		return nil // the check of the objects tells what is missing
	}
	conf, err := readPrepareRoot(commit, r.open)
	if err != nil || conf.Composefs < prepareroot.Verity {
		return err
	}
	f, err := (*ostreeStore)(r).Root().Open(path.Join(d.Dir(), cfsName))
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := fsverity.Measure(f)
	if err != nil {
		return err
	}
	want, err := composefs.WriteImage(io.Discard, r.cfsTree(commit, false), composefs.Default)
	if err == nil && got != want.Digest {
		err = fmt.Errorf("%s has the digest %s, that of its commit is %s", cfsName, got, want.Digest)
	}
	return err
}

// sealed reports whether the repository's configuration wants .ostree.cfs
// sealed and the file system can do it.
func (r *bootRepo) sealed() (bool, error) {
	wanted, err := r.repo.Config().Verity()
	if err != nil || wanted == ostree.VerityOff {
		return false, err
	}
	err = r.repo.CheckVerity()
	if wanted == ostree.VerityMaybe && errors.Is(err, fsverity.ErrNoVerity) {
		return false, nil
	}
	return err == nil, err
}

func create(dir *os.Root, name string, write func(io.Writer) error) (err error) {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	return write(f)
}

func sealFile(dir *os.Root, name string) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fsverity.Seal(f, fsverity.SHA256)
	return err
}

// compareCFS compares the digest of a composefs image with that in the commit's
// metadata, where there is one, as libostree does (ostree-repo-checkout.c).
func (r *bootRepo) compareCFS(sum object.Checksum, got composefs.Digest) error {
	c, err := r.repo.ReadCommit(sum)
	if err != nil {
		return err
	}
	if want, ok := c.Metadata.Bytes(metaCFSDigest); ok && string(want) != string(got) {
		return fault.New(fault.Corrupt, "the image was not made as its commit says; build it anew",
			"the composefs image has the digest %s and not the %x of the commit's metadata", got, want)
	}
	return nil
}

// cfsTree returns what a deployment's composefs image is made of. With demanded every
// object is sealed: EnsureVerity has seen to that, except where another program
// has added objects since.
func (r *bootRepo) cfsTree(commit *fstree.Tree, demanded bool) composefs.Source {
	m := measurer{repo: r.repo, demanded: demanded}
	return composefs.ViewOSTree(commit, func(n *fstree.Inode) (composefs.Digest, error) { return m.measure(object.Checksum(n.Content)) })
}

// measurer asks the kernel for fs-verity digests of objects.
type measurer struct {
	repo     *ostree.Repo
	demanded bool // seal what is not
	none     bool // the file system has no fs-verity
}

// measure returns the digest of an object, "" where the kernel guards it not.
func (m *measurer) measure(c object.Checksum) (composefs.Digest, error) {
	if m.none {
		return "", nil
	}
	_, content, err := m.repo.OpenFile(c)
	if err != nil {
		return "", err
	}
	defer content.Close()
	f, ok := content.(*os.File)
	if !ok { // not bare: nothing that a deployment links to
		return "", nil
	}
	if m.demanded {
		return fsverity.Seal(f, fsverity.SHA256)
	}
	d, err := fsverity.Measure(f)
	switch {
	case errors.Is(err, fsverity.ErrNoVerity):
		m.none = true
		return "", nil
	case errors.Is(err, fsverity.ErrNotSealed):
		return "", nil
	}
	return d, err
}
