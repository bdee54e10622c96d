package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// mergeEtc fills a deployment's etc from its image's and merge's changes, which
// it returns. Files of the image have the labels that the image was given from
// its own policy; local files keep theirs.
func (s *Sysroot) mergeEtc(ctx context.Context, images *images, d, merge *Deployment, o etcmerge.WriteOptions) (changes []etcmerge.Change, stats etcmerge.Stats, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("merge /etc: %w", err)
		}
	}()
	image, err := images.etc(d)
	if err != nil {
		return nil, stats, err
	}
	dst, err := dirfd.Open(s.root, d.etcDir())
	if err != nil {
		return nil, stats, err
	}
	defer dst.Close()
	base, local, done, err := s.etcOf(images, merge)
	if err != nil {
		return nil, stats, err
	}
	defer done()
	policy, err := images.policy(d.Digest, local)
	if err != nil {
		return nil, stats, err
	}
	if changes, stats, err = etcmerge.Apply(ctx, etcmerge.Sides{Base: base, Local: local, Image: image, Policy: policy}, dst, o, s.log); err != nil {
		return nil, stats, err
	}
	return changes, stats, dst.Remove(updatedStamp)
}

// etc opens the /etc of a deployment's image.
func (i *images) etc(d *Deployment) (source.Dir, error) {
	image, err := i.get(d.Digest)
	if err != nil {
		return nil, err
	}
	dir, err := image.Dir("etc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Conflict, "the image has to be repaired", "the image has no /etc")
	}
	return dir, err
}

// policy reads what an image and the machine say about paths in /etc.
func (i *images) policy(digest string, local source.Dir) (etcmerge.Policy, error) {
	image, err := i.get(digest)
	if err != nil {
		return etcmerge.Policy{}, err
	}
	top, err := image.Dir(".")
	if err != nil {
		return etcmerge.Policy{}, err
	}
	return etcmerge.ReadPolicy(top, local)
}

// etcOf opens the defaults and the etc of a deployment; both are nil for none.
func (s *Sysroot) etcOf(images *images, d *Deployment) (base, local source.Dir, done func(), err error) {
	if d == nil {
		return nil, nil, func() {}, nil
	}
	if base, err = images.etc(d); err != nil {
		return nil, nil, nil, err
	}
	if local, err = openDisk(s.root, d.etcDir()); err != nil {
		return nil, nil, nil, err
	}
	return base, local, func() { _, _ = base.Close(), local.Close() }, nil
}

// EtcChanges returns the local changes to a deployment's /etc, and what the
// image with that digest did to the same paths; with "", its own image stands
// for it. It writes nothing.
func (s *Sysroot) EtcChanges(ctx context.Context, d *Deployment, digest string) ([]etcmerge.Change, error) {
	images := s.newImages(ctx)
	base, local, done, err := s.etcOf(images, d)
	if err != nil {
		return nil, fmt.Errorf("compare /etc: %w", err)
	}
	defer done()
	fresh := base
	var policy etcmerge.Policy
	if digest != "" {
		if policy, err = images.policy(digest, local); err != nil {
			return nil, fmt.Errorf("compare /etc: %w", err)
		}
		if fresh, err = images.etc(&Deployment{Digest: digest}); err != nil {
			return nil, fmt.Errorf("compare /etc: %w", err)
		}
	}
	m, err := etcmerge.Plan(ctx, etcmerge.Sides{Base: base, Local: local, Image: fresh, Policy: policy})
	if err != nil {
		return nil, fmt.Errorf("compare /etc: %w", err)
	}
	return slices.DeleteFunc(m.Changes, func(c etcmerge.Change) bool { return c.Path == updatedStamp }), nil
}

// updatedStamp is what systemd leaves in /etc when what runs once after an
// update has run (ConditionNeedsUpdate=).
const updatedStamp = ".updated"

// markUpdated removes the stamp of /var, as mergeEtc does that of /etc. The
// booted /var is the mounted one, which may be a file system of its own.
func (s *Sysroot) markUpdated() error {
	root, name := s.root, path.Join(varDir, updatedStamp)
	if s.booted != nil {
		root, name = s.host, "var/"+updatedStamp
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
