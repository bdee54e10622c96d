package boot

import (
	"fmt"
	"os"
	"path"
)

// MarkUnlocked tells libostree that /usr of the booted deployment has an overlay
// until the reboot (ostree-sysroot.c, _ostree_sysroot_get_runstate_path):
// "development" is writable, "transient" for who mounts it writable.
func (s *Sysroot) MarkUnlocked(d *Deployment, readOnly bool) error {
	name := "unlocked-development"
	if readOnly {
		name = "unlocked-transient"
	}
	dir := path.Join(runDir, "deployment-state", d.Name())
	if err := s.host.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("mark the deployment as unlocked: %w", err)
	}
	if err := s.host.WriteFile(path.Join(dir, name), nil, os.FileMode(0o644)); err != nil {
		return fmt.Errorf("mark the deployment as unlocked: %w", err)
	}
	return nil
}
