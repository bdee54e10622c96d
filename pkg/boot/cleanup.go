package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
)

// Cleanup removes what the list in use does not reach: deployments, kernels,
// entries and farms of the version not in use, and what a writer that died
// left behind. It settles the refs that keep the deployments' commits; objects
// are the repository's to prune afterwards. It never touches the booted
// deployment, and can be stopped and run again at any point.
func (s *Sysroot) Cleanup(ctx context.Context) error {
	if err := s.requireLock("clean up"); err != nil {
		return err
	}
	steps := []func(context.Context) error{s.mirror, s.cleanVersions, s.cleanDeployments, s.cleanBoot, s.sweepMirror, s.settleRefs}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return fmt.Errorf("clean up the sysroot: %w", err)
		}
	}
	return nil
}

// cleanVersions removes the entries and farms that are not in use.
func (s *Sysroot) cleanVersions(context.Context) error {
	other := 1 - s.version
	farms := []string{
		fmt.Sprintf("ostree/boot.%d", other),
		fmt.Sprintf("ostree/boot.%d.0", other),
		fmt.Sprintf("ostree/boot.%d.1", other),
		fmt.Sprintf("ostree/boot.%d.%d", s.version, 1-s.sub),
		"ostree/boot.0.tmp", "ostree/boot.1.tmp",
	}
	for _, name := range farms {
		if err := s.root.RemoveAll(name); err != nil {
			return err
		}
	}
	if s.boot == nil {
		return nil
	}
	for _, name := range []string{loaderDir(other), "loader.tmp"} {
		if err := s.boot.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sysroot) cleanDeployments(ctx context.Context) error {
	stateroots, err := s.Stateroots()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, d := range s.list {
		keep[d.Dir()] = true
	}
	for _, name := range stateroots {
		if err := s.cleanStateroot(ctx, name, keep); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sysroot) cleanStateroot(ctx context.Context, stateroot string, keep map[string]bool) error {
	dir := deployDir(stateroot)
	if err := atomicfile.Sweep(s.root, dir); err != nil {
		return err
	}
	names, err := dirfd.ReadNames(s.root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		deployment := strings.TrimSuffix(n, ".origin")
		checksum, serial, ok := parseDeployName(deployment)
		if !ok || keep[path.Join(dir, deployment)] {
			continue
		}
		if err := s.removeDeployment(&Deployment{Stateroot: stateroot, Checksum: checksum, Serial: serial}); err != nil {
			return err
		}
	}
	return s.cleanBacking(stateroot, keep)
}

func (s *Sysroot) cleanBacking(stateroot string, keep map[string]bool) error {
	dir := path.Join("ostree/deploy", stateroot, "backing")
	names, err := dirfd.ReadNames(s.root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, n := range names {
		if _, _, ok := parseDeployName(n); !ok || keep[path.Join(deployDir(stateroot), n)] {
			continue
		}
		if err := s.root.RemoveAll(path.Join(dir, n)); err != nil {
			return err
		}
	}
	return err
}

// removeDeployment removes a deployment's directories and origin, the
// checkout last: while it is there the rest is found again.
func (s *Sysroot) removeDeployment(d *Deployment) error {
	st, err := statOf(s.root, d.Dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if st != nil && s.booted != nil && st.Dev == s.booted.dev && st.Ino == s.booted.ino {
		return nil
	}
	if err := s.root.RemoveAll(d.backing()); err != nil {
		return err
	}
	if err := s.root.Remove(d.OriginPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.log.Debug("remove deployment", "stateroot", d.Stateroot, "deployment", d.Name())
	dir, err := dirfd.Open(s.root, deployDir(d.Stateroot))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Remove(d.Name())
}

// cleanBoot removes kernels and overlay initrds that no deployment boots.
func (s *Sysroot) cleanBoot(context.Context) error {
	if s.boot == nil {
		return nil
	}
	kernels, initrds := map[string]bool{}, map[string]bool{}
	for _, d := range s.list {
		kernels[d.bootName()] = true
		for _, name := range overlays(d) {
			initrds[path.Base(name)] = true
		}
	}
	err := removeExcept(s.boot, "ostree", func(name string) bool {
		_, _, ok := parseBootName(name)
		return !ok || kernels[name]
	})
	if err != nil {
		return err
	}
	return removeExcept(s.boot, "ostree/initramfs-overlays", func(name string) bool { return initrds[name] })
}

// removeExcept removes the entries of a directory that keep does not name.
func removeExcept(root *os.Root, dir string, keep func(string) bool) error {
	names, err := dirfd.ReadNames(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if !keep(n) {
			if err := root.RemoveAll(path.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleRefs makes the refs below ostree/0 and ostree/1 those of the list.
func (s *Sysroot) settleRefs(ctx context.Context) error {
	if s.opts.Repo == nil {
		return nil
	}
	want := map[string]string{}
	for i, d := range s.list {
		want[refName(s.version, s.sub, i)] = d.Checksum
	}
	change := map[string]string{}
	for _, prefix := range []string{"ostree/0/", "ostree/1/"} {
		have, err := s.opts.Repo.Refs(prefix)
		if err != nil {
			return err
		}
		for name, commit := range have {
			if w, ok := want[name]; !ok {
				change[name] = ""
			} else if w == commit {
				delete(want, name)
			}
		}
	}
	for name, commit := range want {
		change[name] = commit
	}
	if len(change) == 0 {
		return nil
	}
	return s.opts.Repo.SetRefs(ctx, change)
}
