package imageroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/semodule"
	"github.com/kedge-os/kedge/pkg/fault"
)

// policyDir is where a root is put together for the program that rebuilds its
// SELinux policy.
const policyDir = stateDir + "/policy"

// refreshPolicy rebuilds a deployment's SELinux policy after local changes to it
// were merged. The program is the image's, and the image is mounted for it: on a
// thread with a mount namespace of its own, which ends with it, mounts and all.
func (s *Sysroot) refreshPolicy(ctx context.Context, images *images, d *Deployment, changes []etcmerge.Change) error {
	if !semodule.Needed(changes) {
		return nil
	}
	image, err := images.get(d.Digest)
	if err != nil {
		return err
	}
	if image.Lookup("usr/sbin/semodule") == nil && image.Lookup("usr/bin/semodule") == nil {
		return nil
	}
	if s.opts.Mount == nil {
		return fault.New(fault.Internal, "", "rebuild the SELinux policy: no way to mount the image")
	}
	overlaid, err := images.etcOverlaid(d.Digest)
	if err != nil {
		return err
	}
	if err := s.root.MkdirAll(policyDir, 0o700); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- s.refreshMounted(ctx, d, overlaid)
	}()
	err = <-done
	if rerr := s.root.Remove(policyDir); rerr != nil {
		s.log.Warn("a directory is left for the next time", "error", rerr)
	}
	return err
}

// refreshMounted puts the root together, and has its policy rebuilt.
func (s *Sysroot) refreshMounted(ctx context.Context, d *Deployment, overlaid bool) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a private mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	sysroot := s.root.Name()
	top := filepath.Join(sysroot, policyDir)
	if err := unix.Mount("tmpfs", top, "tmpfs", unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", top, err)
	}
	image, root := filepath.Join(top, "image"), filepath.Join(top, "root")
	for _, dir := range []string{image, root, root + "/usr", root + "/etc", root + "/var"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := s.opts.Mount(ctx, d.Digest, image); err != nil {
		return fmt.Errorf("mount the image: %w", err)
	}
	for from, to := range map[string]string{
		filepath.Join(image, "usr"):        "usr",
		filepath.Join(sysroot, d.etcDir()): "etc",
		filepath.Join(sysroot, varDir):     "var",
	} {
		if err := unix.Mount(from, filepath.Join(root, to), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", from, err)
		}
	}
	if overlaid {
		if err := s.mountEtc(filepath.Join(image, "etc"), path.Join(d.etcDir()), filepath.Join(root, "etc")); err != nil {
			return err
		}
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	return semodule.Refresh(ctx, r, s.log)
}

// mountEtc mounts an /etc that is an overlay on the image's.
func (s *Sysroot) mountEtc(lower, etc, target string) error {
	if err := s.root.Mkdir(path.Join(etc, "work"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	dir := filepath.Join(s.root.Name(), etc)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, filepath.Join(dir, upperDir), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay on the image's /etc: %w", err)
	}
	return nil
}
