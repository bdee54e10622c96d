package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/BurntSushi/toml"

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
	dst, overlaid, err := s.openNewEtc(images, d)
	if err != nil {
		return nil, stats, err
	}
	o.Whiteouts = overlaid
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
	s.merged = changes
	return changes, stats, s.refreshPolicy(ctx, images, d, changes)
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
	if local, err = s.openEtc(images, d); err != nil {
		return nil, nil, nil, err
	}
	return base, local, func() { _, _ = base.Close(), local.Close() }, nil
}

// OpenEtc opens the /etc of a deployment as its root shows it.
func (s *Sysroot) OpenEtc(ctx context.Context, d *Deployment) (source.Dir, error) {
	return s.openEtc(s.newImages(ctx), d)
}

func (s *Sysroot) openEtc(images *images, d *Deployment) (source.Dir, error) {
	if overlaid, err := images.etcOverlaid(d.Digest); err != nil || !overlaid {
		if err != nil {
			return nil, err
		}
		local, err := openDisk(s.root, d.etcDir())
		return local, source.Lacking(d.Name(), err)
	}
	lower, err := images.etc(d)
	if err != nil {
		return nil, err
	}
	upper, err := openDisk(s.root, path.Join(d.etcDir(), upperDir))
	if errors.Is(err, fs.ErrNotExist) {
		return lower, nil // it was never booted
	}
	if err != nil {
		return nil, err
	}
	return source.Over(upper, lower), nil
}

// upperDir is in the etc of a deployment whose /etc is an overlay of the image's.
const upperDir = "upper"

// configPath is where an image says how its initramfs mounts /etc.
const configPath = "usr/lib/composefs/setup-root-conf.toml"

// etcOverlaid reports whether an image's /etc is mounted as an overlay that
// keeps changes. What is not understood is for the initramfs to refuse.
func (i *images) etcOverlaid(digest string) (bool, error) {
	image, err := i.get(digest)
	if err != nil || image.Lookup(configPath) == nil {
		return false, err
	}
	text, err := image.ReadFile(configPath)
	if err != nil {
		return false, err
	}
	var c struct {
		Etc struct {
			Mount string `toml:"mount"`
		} `toml:"etc"`
	}
	if _, err := toml.Decode(string(text), &c); err != nil {
		return false, nil //nolint:nilerr // see above
	}
	return c.Etc.Mount == "overlay", nil
}

// openNewEtc opens the directory that a deployment's /etc is written to, and
// says whether what it lacks has to be hidden.
func (s *Sysroot) openNewEtc(images *images, d *Deployment) (dst *dirfd.Dir, overlaid bool, err error) {
	name := d.etcDir()
	if overlaid, err = images.etcOverlaid(d.Digest); err != nil {
		return nil, false, err
	}
	if overlaid {
		name = path.Join(name, upperDir)
		if err := s.root.MkdirAll(name, 0o755); err != nil {
			return nil, false, err
		}
	}
	dst, err = dirfd.Open(s.root, name)
	return dst, overlaid, err
}

// EtcChanges returns what the last Deploy, Stage or Finalize found changed in
// /etc, and what it did about it.
func (s *Sysroot) EtcChanges() []etcmerge.Change { return s.merged }

// updatedStamp is what systemd leaves in /etc and /var when what runs once after an
// update has run (ConditionNeedsUpdate=).
const updatedStamp = ".updated"

// markUpdated removes the stamp of /var; that of /etc is not merged. The
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
