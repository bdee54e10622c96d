package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/boot/vardir"
	"github.com/kedge-os/kedge/pkg/fault"
)

// DeployRequest is what a new deployment is made from.
type DeployRequest struct {
	Digest string // of an image that is in the repository
	// Origin is what was asked for: [origin] container-image-reference and
	// [image] manifest_digest. The group [boot] is set here.
	Origin *keyfile.File
	// Merge is the deployment whose /etc and kernel arguments are continued;
	// nil for the first of a sysroot. See MergeFor.
	Merge *Deployment
	// Kargs are the machine's arguments; nil means those of Merge. What the
	// image brings itself (kargs.d) is set off against Merge's image and applied
	// to them, unless ExactKargs.
	Kargs      karg.Args
	ExactKargs bool
	// VerityOptional lets it boot where the file system has no fs-verity.
	VerityOptional bool
	// Derived: the image is another one with packages on it, and the unified kernel
	// image that came with that one.
	Derived bool
	// Sign returns what signs a unified kernel image that has to be made for the
	// deployment; nil, or nil for none: then nothing is deployed that needs one.
	Sign func() (uki.Signer, error)
}

// images are the images that one operation reads.
type images struct {
	ctx  context.Context
	repo Repo
	root *os.Root // the sysroot
	open map[string]*source.Image
}

func (s *Sysroot) newImages(ctx context.Context) *images {
	return &images{ctx: ctx, repo: s.opts.Repo, root: s.root, open: map[string]*source.Image{}}
}

func (i *images) get(digest string) (*source.Image, error) {
	if image := i.open[digest]; image != nil {
		return image, nil
	}
	tree, err := i.repo.Tree(i.ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("read the image %.12s: %w", digest, err)
	}
	i.open[digest] = source.NewImage(i.ctx, tree, i.repo.Open)
	return i.open[digest], nil
}

// Deploy makes a deployment that nothing points to yet: its state directory
// with /etc and origin, and /var on a sysroot's first. It becomes bootable by
// Write; until then it is garbage that Cleanup removes.
//
// Where the image's state directory is in use by an entry of the list, that is
// left as it is until Write: if the new deployment continues that very /etc
// there is nothing to make, else the new one waits in kedge's own directory.
func (s *Sysroot) Deploy(ctx context.Context, r DeployRequest) (*Deployment, error) {
	if err := s.requireLock("deploy"); err != nil {
		return nil, err
	}
	d, err := s.deploy(ctx, s.newImages(ctx), r)
	if err != nil {
		return nil, fmt.Errorf("deploy %.12s: %w", r.Digest, err)
	}
	return d, nil
}

// clockStep is more than the kernel's clock for inode times lags behind.
const clockStep = 10 * time.Millisecond

func (s *Sysroot) deploy(ctx context.Context, images *images, r DeployRequest) (*Deployment, error) {
	if !digestForm.MatchString(r.Digest) {
		return nil, fault.New(fault.Usage, "", "%q is not the digest of an image", r.Digest)
	}
	if r.Merge != nil && r.Merge.Staged {
		return nil, fault.New(fault.Internal, "", "a staged deployment has no settled /etc to continue")
	}
	if err := s.keepFromGC(ctx); err != nil {
		return nil, err
	}
	image, err := images.get(r.Digest)
	if err != nil {
		return nil, err
	}
	k, err := s.chooseKernel(images, r.Digest)
	if err != nil {
		return nil, err
	}
	d := &Deployment{
		Digest: r.Digest, Origin: r.Origin.Clone(), Entry: &bls.Entry{}, Type: TypeBLS,
		VerityOptional: r.VerityOptional, merging: s.opts.Clock().Add(-clockStep),
	}
	if k.unified {
		k, err = s.seal(d, k, images, r)
	} else {
		err = s.setKargs(d, images, r)
	}
	if err != nil {
		return nil, err
	}
	if err := s.describe(d, image, k); err != nil {
		return nil, err
	}
	err = s.makeState(ctx, images, d, r.Merge)
	if err == nil {
		return d, nil
	}
	// What is staged of the same image is brought up to date again when it is
	// finalised.
	if !d.sameState(s.Staged()) {
		if rerr := s.removeState(d); rerr != nil {
			s.log.Warn("a deployment that failed is left for the next cleanup", "deployment", d.Name(), "error", rerr)
		}
	}
	return nil, err
}

// setKargs computes the machine's arguments for the new image.
func (s *Sysroot) setKargs(d *Deployment, images *images, r DeployRequest) error {
	args := r.Kargs
	if args == nil && r.Merge != nil {
		// With composefs=, so that it keeps its place.
		args = r.Merge.options()
	}
	if !r.ExactKargs {
		fresh, err := s.imageKargs(images, d.Digest)
		if err != nil {
			return err
		}
		var old karg.Args
		if r.Merge != nil {
			if old, err = s.imageKargs(images, r.Merge.Digest); err != nil {
				return fmt.Errorf("of the deployment that is replaced: %w", err)
			}
		}
		args = args.Rebase(old, fresh)
	}
	d.Entry.Set("options", args.Without(kargLongName).Set(imageKarg(d.Digest, d.VerityOptional)).String())
	return nil
}

func (s *Sysroot) imageKargs(images *images, digest string) (karg.Args, error) {
	image, err := images.get(digest)
	if err != nil {
		return nil, err
	}
	return karg.LoadDir(image, s.opts.Arch)
}

// ImageKargs returns the arguments that a deployment's image brings itself, in its
// kargs.d or its unified kernel image.
func (s *Sysroot) ImageKargs(ctx context.Context, d *Deployment) (karg.Args, error) {
	return s.kargsOf(s.newImages(ctx), d)
}

// inUse reports whether an entry of the list, or the running machine, has the
// state directory of a deployment.
func (s *Sysroot) inUse(d *Deployment) bool {
	return s.booted != nil && s.booted.digest == d.Digest ||
		s.first(func(o *Deployment) bool { return !o.Staged && o.sameState(d) }) != nil
}

// makeState makes the state directory of a deployment, or what is to become of
// one that is in use.
func (s *Sysroot) makeState(ctx context.Context, images *images, d, merge *Deployment) error {
	staged := s.Staged()
	s.merged = nil
	d.pending = s.inUse(d)
	if !d.sameState(staged) {
		if err := s.removeState(d); err != nil {
			return err
		}
	}
	d.Origin.Delete(kedgeGroup, pinnedKey)
	if old := s.first(func(o *Deployment) bool { return !o.Staged && o.sameState(d) }); old != nil && old.Pinned() {
		d.Origin.Set(kedgeGroup, pinnedKey, "true")
	}
	if !d.pending || !d.sameState(merge) {
		if err := s.root.MkdirAll(d.etcDir(), 0o755); err != nil {
			return err
		}
		if _, _, err := s.mergeEtc(ctx, images, d, merge, etcmerge.WriteOptions{}); err != nil {
			return err
		}
	}
	if d.pending {
		if err := s.root.MkdirAll(d.pendingDir(), 0o755); err != nil {
			return err
		}
	} else {
		if err := s.seedVar(ctx, images, d); err != nil {
			return fmt.Errorf("fill /var: %w", err)
		}
		if err := s.root.Symlink(varLink, path.Join(d.Dir(), "var")); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return atomicfile.Write(s.root, d.stagedOrigin(), d.Origin.Encode(), 0o644)
}

// seedVar fills an empty /var from the image's.
func (s *Sysroot) seedVar(ctx context.Context, images *images, d *Deployment) error {
	if err := s.root.MkdirAll(varDir, 0o755); err != nil {
		return err
	}
	image, err := images.get(d.Digest)
	if err != nil {
		return err
	}
	src, err := image.Dir("var")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dst, err := dirfd.Open(s.root, varDir)
	if err != nil {
		return err
	}
	defer dst.Close()
	seeded, err := vardir.Seed(ctx, src, dst, image.Lookup("usr/lib/tmpfiles.d") != nil)
	if err != nil || !seeded {
		return err
	}
	return copyMeta(src, dst)
}

// copyMeta gives a directory the owner, mode and attributes of another.
func copyMeta(src source.Dir, dst *dirfd.Dir) error {
	st, err := src.Lstat(".")
	if err != nil {
		return err
	}
	xattrs, err := src.Xattrs(".")
	if err != nil {
		return err
	}
	return dst.SetMeta(".", st.Uid, st.Gid, st.Mode, xattrs)
}

// removeState removes what was made for a deployment that is not in the list.
func (s *Sysroot) removeState(d *Deployment) error {
	if err := s.removePending(d); err != nil {
		return err
	}
	if s.inUse(d) {
		return nil
	}
	dir, err := dirfd.Open(s.root, deployDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Remove(d.Digest)
}

// removePending removes what waits for a deployment, the origin first: without
// it nothing is taken to wait.
func (s *Sysroot) removePending(d *Deployment) error {
	if err := s.root.Remove(path.Join(d.pendingDir(), d.Digest+".origin")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.root.RemoveAll(d.pendingDir())
}

// SetOrigin replaces what a deployment was asked for; of all entries with its
// image.
func (s *Sysroot) SetOrigin(d *Deployment, origin *keyfile.File) error {
	if err := s.requireLock("write an origin"); err != nil {
		return err
	}
	if err := atomicfile.Write(s.root, d.stagedOrigin(), origin.Encode(), 0o644); err != nil {
		return fmt.Errorf("write the origin: %w", err)
	}
	for _, o := range s.list {
		if o.sameState(d) && o.pending == d.pending {
			o.Origin = origin.Clone()
		}
	}
	d.Origin = origin.Clone()
	return s.bumpMtime()
}

// bumpMtime tells programs that watch state/deploy that the list changed.
func (s *Sysroot) bumpMtime() error {
	now := time.Now()
	if err := s.root.Chtimes(deployDir, now, now); err != nil {
		return fmt.Errorf("set the time of %s: %w", deployDir, err)
	}
	return nil
}

// openDisk opens a directory of the sysroot to copy from.
func openDisk(root *os.Root, name string) (source.Dir, error) {
	d, err := dirfd.Open(root, name)
	if err != nil {
		return nil, err
	}
	return source.Disk(d), nil
}
