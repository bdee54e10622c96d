package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Podman runs podman on a store of the lab's own, beside the user's.
type Podman struct {
	root, runroot string
}

// NewPodman uses a store in dir; images in it stay for the next run.
func NewPodman(dir string) (*Podman, error) {
	p := &Podman{root: filepath.Join(dir, "root"), runroot: filepath.Join(dir, "run")}
	return p, os.MkdirAll(p.root, 0o700)
}

// Run calls podman and returns what it printed.
func (p *Podman) Run(ctx context.Context, args ...string) (string, error) {
	out, err := Command(ctx, "podman", append([]string{"--root", p.root, "--runroot", p.runroot}, args...)...)
	return strings.TrimSpace(out), err
}

// Load makes the image tagged tag of an OCI layout known as name.
func (p *Podman) Load(ctx context.Context, layoutDir, tag, name string) error {
	if _, err := p.Run(ctx, "image", "exists", name); err == nil {
		return nil
	}
	id, err := p.Run(ctx, "pull", "--quiet", "oci:"+layoutDir+":"+tag)
	if err != nil {
		return err
	}
	_, err = p.Run(ctx, "tag", lastLines(id, 1), name)
	return err
}

// Build builds the Containerfile in dir, which is its context too, and pushes
// the result to ref, which lies in a registry without TLS. The chroot isolation
// works without cgroups.
func (p *Podman) Build(ctx context.Context, dir, ref string, options ...string) error {
	args := append([]string{"build", "--isolation=chroot", "--pull=never", "--layers=false", "--format=oci", "-t", ref}, options...)
	if _, err := p.Run(ctx, append(args, dir)...); err != nil {
		return err
	}
	if _, err := p.Run(ctx, "push", "--quiet", "--tls-verify=false", ref); err != nil {
		return fmt.Errorf("pushing %s: %w", ref, err)
	}
	return nil
}

// Store returns the directories of podman's --root and --runroot.
func (p *Podman) Store() (root, runroot string) { return p.root, p.runroot }

// Remove deletes the store. podman mounts a part of it on itself and leaves that.
func (p *Podman) Remove(ctx context.Context) error {
	overlay := filepath.Join(p.root, "overlay")
	if mounted, err := mountinfo.Mounted(overlay); err == nil && mounted {
		if _, err := Command(ctx, "umount", "-l", overlay); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(p.root), os.RemoveAll(p.runroot))
}
