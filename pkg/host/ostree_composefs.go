package host

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"

	"github.com/kedge-os/kedge/pkg/boot/keyfile"
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

// writeCFS writes the composefs image of a checkout, as libostree does for
// every deployment whatever the image enables (ostree-sysroot-deploy.c):
// prepare-root.conf is read in the initramfs, which may say otherwise. Objects
// that the kernel guards with fs-verity are bound by their digest, others by
// their name alone.
func (r *bootRepo) writeCFS(ctx context.Context, sum object.Checksum, deployment *os.Root) (err error) {
	if err := refuseVerity(deployment); err != nil {
		return err
	}
	commit, err := r.repo.ReadTree(ctx, sum)
	if err != nil {
		return err
	}
	m := measurer{repo: r.repo}
	tree, err := composefs.FromOSTree(commit, func(_ string, n *fstree.Inode) (composefs.OSTreeFile, error) {
		c := object.Checksum(n.Content)
		digest, err := m.measure(c)
		return composefs.OSTreeFile{Checksum: c, Verity: digest}, err
	})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := deployment.OpenFile(cfsName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := composefs.WriteImage(w, tree, composefs.Default); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Chmod(0o644) // whatever the umask
}

// measurer asks the kernel for fs-verity digests of objects.
type measurer struct {
	repo *ostree.Repo
	none bool // the file system has no fs-verity
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

// refuseVerity refuses an image whose initramfs will demand that .ostree.cfs
// and every object are sealed with fs-verity: this store seals none, and the
// host would not boot.
func refuseVerity(deployment *os.Root) error {
	// The later file replaces the earlier one whole (ostree-prepare-root(1));
	// /usr/etc is what becomes /etc.
	for _, dir := range []string{"usr/etc", "usr/lib"} {
		name := path.Join(dir, "ostree/prepare-root.conf")
		data, err := deployment.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		conf, err := keyfile.Parse(string(data))
		if err != nil {
			return fault.New(fault.Corrupt, "repair it in the image", "read %s: %w", name, err)
		}
		switch v, _ := conf.Get("composefs", "enabled"); v {
		case "signed", "verity":
			return fault.New(fault.Conflict, "use an image with enabled=yes in its "+name,
				"the image demands fs-verity ([composefs] enabled=%s), which kedge's ostree backend does not set up: it would not boot", v)
		}
		return nil
	}
	return nil
}
