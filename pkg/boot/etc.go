package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// settleEtc brings a checkout to the shape that the merge begins with: the
// defaults in usr/etc and an etc directory that is ours to fill.
func settleEtc(root *os.Root) error {
	_, err := root.Lstat("usr/etc")
	defaults := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names, err := dirfd.ReadNames(root, "etc")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case len(names) > 0 && defaults:
		return fault.New(fault.Corrupt, "the image has to be repaired: its defaults belong into one of the two", "the tree has both /etc and /usr/etc")
	case len(names) > 0:
		// A tree that was committed with its defaults in /etc.
		if err := root.Rename("etc", "usr/etc"); err != nil {
			return err
		}
		defaults = true
	}
	if !defaults {
		return nil
	}
	if err := root.Mkdir("etc", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// mergeEtc fills a deployment's etc from its usr/etc and merge's changes, which
// it returns.
func (s *Sysroot) mergeEtc(ctx context.Context, root *os.Root, merge *Deployment, o etcmerge.WriteOptions) (changes []etcmerge.Change, stats etcmerge.Stats, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("merge /etc: %w", err)
		}
	}()
	image, err := openSource(root, "usr/etc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, stats, nil
	}
	if err != nil {
		return nil, stats, err
	}
	defer image.Close()
	dst, err := dirfd.Open(root, "etc")
	if err != nil {
		return nil, stats, err
	}
	defer dst.Close()
	base, local, done, err := s.etcOf(merge)
	if err != nil {
		return nil, stats, err
	}
	defer done()
	policy, err := readPolicy(root, local)
	if err != nil {
		return nil, stats, err
	}
	s.merged, stats, err = etcmerge.Apply(ctx, etcmerge.Sides{Base: base, Local: local, Image: image, Policy: policy}, dst, o, s.log)
	return s.merged, stats, err
}

// readPolicy reads what the image in root and the machine say about paths.
func readPolicy(root *os.Root, local source.Dir) (etcmerge.Policy, error) {
	top, err := openSource(root, ".")
	if err != nil {
		return etcmerge.Policy{}, err
	}
	defer top.Close()
	return etcmerge.ReadPolicy(top, local)
}

func openSource(root *os.Root, name string) (source.Dir, error) {
	d, err := dirfd.Open(root, name)
	if err != nil {
		return nil, err
	}
	return source.Disk(d), nil
}

// etcOf opens the defaults and the etc of a deployment; both are nil for none.
func (s *Sysroot) etcOf(d *Deployment) (base, local source.Dir, done func(), err error) {
	if d == nil {
		return nil, nil, func() {}, nil
	}
	if base, err = openSource(s.root, path.Join(d.Dir(), "usr/etc")); err != nil {
		return nil, nil, nil, source.Lacking(d.Name(), err)
	}
	if local, err = openSource(s.root, path.Join(d.Dir(), "etc")); err != nil {
		_ = base.Close()
		return nil, nil, nil, source.Lacking(d.Name(), err)
	}
	return base, local, func() { _, _ = base.Close(), local.Close() }, nil
}

// EtcChanges returns what the last Deploy, Stage or Finalize found changed in
// /etc, and what it did about it.
func (s *Sysroot) EtcChanges() []etcmerge.Change { return s.merged }
