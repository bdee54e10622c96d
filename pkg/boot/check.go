package boot

import (
	"context"
	"fmt"

	"github.com/kedge-os/kedge/pkg/boot/bootdir"
)

// CheckKernel looks for what the boot entry of a deployment names. A staged one has
// none yet.
func (s *Sysroot) CheckKernel(d *Deployment) error {
	if d.Staged {
		return nil
	}
	boot, err := s.bootDir()
	if err != nil {
		return err
	}
	return bootdir.CheckEntry(boot, d.Entry)
}

// RestoreKernel puts the kernel of a deployment back where files of it are missing.
func (s *Sysroot) RestoreKernel(ctx context.Context, d *Deployment) error {
	if err := s.requireLock("restore a kernel"); err != nil {
		return err
	}
	root, err := s.root.OpenRoot(d.Dir())
	if err != nil {
		return err
	}
	defer root.Close()
	k, err := FindKernel(root)
	if err != nil {
		return fmt.Errorf("deployment %s: %w", d.Name(), err)
	}
	return s.placeKernel(ctx, d, k)
}
