package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
)

// fillFarm makes ostree/boot.V.S with a link for each deployment.
func (s *Sysroot) fillFarm(version, sub int, list []*Deployment) error {
	farm := fmt.Sprintf("ostree/boot.%d.%d", version, sub)
	if err := s.root.RemoveAll(farm); err != nil {
		return err
	}
	if err := s.root.Mkdir(farm, 0o755); err != nil {
		return err
	}
	for _, d := range list {
		dir := path.Join(farm, d.Stateroot, d.Bootcsum)
		if err := s.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		target := path.Join("../../../deploy", d.Stateroot, "deploy", d.Name())
		if err := s.root.Symlink(target, path.Join(dir, fmt.Sprint(d.BootSerial))); err != nil {
			return err
		}
	}
	return nil
}

// pointFarm makes ostree/boot.V lead to boot.V.S, in one step.
func (s *Sysroot) pointFarm(version, sub int) error {
	name := fmt.Sprintf("ostree/boot.%d", version)
	tmp := name + ".tmp"
	if err := replaceLink(s.root, fmt.Sprintf("boot.%d.%d", version, sub), tmp); err != nil {
		return err
	}
	return s.root.Rename(tmp, name)
}

// replaceLink makes a symlink; what has the name goes away first.
func replaceLink(root *os.Root, target, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.Symlink(target, name)
}

func refName(version, sub, i int) string { return fmt.Sprintf("ostree/%d/%d/%d", version, sub, i) }

// writeRefs adds the refs that keep the commits of a list.
func (s *Sysroot) writeRefs(ctx context.Context, version, sub int, list []*Deployment) error {
	if s.opts.Repo == nil || len(list) == 0 {
		return nil
	}
	refs := make(map[string]string, len(list))
	for i, d := range list {
		refs[refName(version, sub, i)] = d.Checksum
	}
	if err := s.opts.Repo.SetRefs(ctx, refs); err != nil {
		return fmt.Errorf("write the refs of the deployments: %w", err)
	}
	return nil
}
