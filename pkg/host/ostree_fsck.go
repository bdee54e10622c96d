package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Fsck implements store. It reads every object that is reached.
func (s *ostreeStore) Fsck(ctx context.Context) (*v1.Check, repairFunc, error) {
	report, err := s.repo.Fsck(ctx, ostree.FsckOptions{})
	if err != nil {
		return nil, nil, err
	}
	c := &v1.Check{Objects: report.Objects, Deployments: len(s.sysroot.Deployments()), Problems: []string{}}
	for _, d := range report.Damage {
		c.Problems = append(c.Problems, damageText(d))
	}
	for _, commit := range report.Partial {
		c.Problems = append(c.Problems, fmt.Sprintf("commit %s is marked as incomplete", commit))
	}
	if n := len(report.Unsealed); n > 0 {
		c.Problems = append(c.Problems, fmt.Sprintf("%d file objects lack the fs-verity seal that the repository's configuration demands; the first is %s", n, report.Unsealed[0]))
	}
	for _, err := range s.Problems() {
		c.Problems = append(c.Problems, err.Error())
	}
	var lacking []*boot.Deployment
	for _, d := range s.sysroot.Deployments() {
		if err := s.sysroot.CheckKernel(d); err != nil {
			c.Problems = append(c.Problems, fmt.Sprintf("deployment %s: %v", d.Name(), err))
			lacking = append(lacking, d)
		}
		for _, dir := range []string{"usr", "etc"} {
			if _, err := s.Root().Stat(d.Dir() + "/" + dir); err != nil {
				c.Problems = append(c.Problems, fmt.Sprintf("deployment %s: %v", d.Name(), err))
			}
		}
		if err := (*bootRepo)(s).checkCFS(ctx, d); err != nil {
			c.Problems = append(c.Problems, fmt.Sprintf("deployment %s demands fs-verity: %v", d.Name(), err))
		}
		if _, err := s.Root().Stat(d.OriginPath()); errors.Is(err, fs.ErrNotExist) {
			c.Problems = append(c.Problems, fmt.Sprintf("deployment %s has no origin: it follows no image", d.Name()))
		}
	}
	damaged := len(report.Damage)+len(report.Partial)+len(report.Unsealed) > 0
	if !damaged && len(lacking) == 0 {
		return c, nil, nil
	}
	return c, func(ctx context.Context, list deployments, fetch fetchFunc) (err error) {
		if damaged {
			err = s.repair(ctx, report, list, fetch)
		}
		return errors.Join(err, restoreKernels(ctx, s.sysroot.RestoreKernel, lacking))
	}, nil
}

func damageText(d ostree.Damage) string {
	s := fmt.Sprintf("object %s is %s", d.Object, d.Kind)
	if len(d.Commits) > 0 {
		s += fmt.Sprintf(", needed by commit %s", d.Commits[0])
	}
	if n := len(d.Commits); n > 1 {
		s += fmt.Sprintf(" and %d more", n-1)
	}
	if d.Err != nil {
		s += ": " + d.Err.Error()
	}
	return s
}

// repair deletes what is damaged, imports the images again that need it, and
// gives their deployments the new files in place of the old ones. Until all is
// there, commits are marked as incomplete.
func (s *ostreeStore) repair(ctx context.Context, report *ostree.FsckResult, list deployments, fetch fetchFunc) error {
	broken := map[string]bool{} // commits
	for _, c := range report.Partial {
		broken[c.String()] = true
	}
	bad := map[object.Checksum]bool{} // files
	for _, d := range report.Damage {
		for _, c := range d.Commits {
			broken[c.String()] = true
		}
		if d.Object.Type == object.TypeFile {
			bad[d.Object.Checksum] = true
		}
	}
	if len(report.Unsealed) > 0 {
		if err := s.repo.Seal(ctx); err != nil {
			return err
		}
	}
	affected := s.affected(list, broken)
	keep, err := s.deployedCommits()
	if err != nil {
		return err
	}
	if err := s.repo.Discard(ctx, report, keep); err != nil {
		return err
	}
	// The oldest first: a reference names the newest image that was imported.
	var failed []error
	for _, d := range slices.Backward(affected) {
		if err := s.importAgain(ctx, d, fetch); err != nil {
			failed = append(failed, fmt.Errorf("deployment %s: %w", d.id, err))
		}
	}
	for c := range broken {
		sum, err := object.ParseChecksum(c)
		if err != nil {
			return err
		}
		if err := s.repo.MarkPartial(sum, false); err != nil {
			return err
		}
	}
	again, err := s.repo.Fsck(ctx, ostree.FsckOptions{Mark: true})
	if err != nil {
		return err
	}
	for _, d := range again.Damage {
		delete(bad, d.Object.Checksum)
	}
	for _, b := range s.sysroot.Deployments() {
		if broken[b.Checksum] {
			failed = append(failed, s.relink(ctx, b, bad))
		}
	}
	return errors.Join(failed...)
}

// affected returns the deployments whose commit, or a layer of whose image, is
// broken.
func (s *ostreeStore) affected(list deployments, broken map[string]bool) (affected deployments) {
	for _, d := range list {
		hit := broken[d.root]
		if d.image != nil {
			for _, l := range d.image.layers {
				c, err := s.repo.ResolveRev(ostree.LayerRef(l.digest))
				hit = hit || err != nil || broken[c.String()]
			}
		}
		if hit {
			affected = append(affected, d)
		}
	}
	return affected
}

// importAgain brings the image of a deployment anew; it comes to the same
// commit. The ref of the image stays where it was.
func (s *ostreeStore) importAgain(ctx context.Context, d *deployment, fetch fetchFunc) error {
	src, err := fetch(ctx, d)
	if err != nil {
		return err
	}
	defer s.cfg.closeQuietly(src)
	ref := ostree.ImageRef(d.origin.ref.Image())
	before, noRef := s.repo.ResolveRev(ref)
	base := ""
	if d.imageDigest() != d.manifest {
		if base, _, err = s.Base(d); err != nil {
			return err
		}
	}
	got, err := s.Import(ctx, src, *d.origin.ref, base)
	if err != nil {
		return err
	}
	if noRef == nil && before.String() != got {
		if err := (*bootRepo)(s).SetRefs(ctx, map[string]string{ref: before.String()}); err != nil {
			return err
		}
	}
	if got != d.root {
		return fmt.Errorf("its image comes to the commit %s now", got)
	}
	return nil
}

// relink gives a deployment the repository's files in place of its own, which
// were damaged with them: both were one.
func (s *ostreeStore) relink(ctx context.Context, b *boot.Deployment, bad map[object.Checksum]bool) error {
	tree, err := s.commitTree(ctx, b.Checksum)
	if err != nil {
		return err
	}
	return tree.Walk(func(name string, n *fstree.Inode) error {
		if !n.IsRegular() || n.Size == 0 || !bad[object.Checksum(n.Content)] {
			return ctx.Err()
		}
		if err := s.relinkFile(path.Join(b.Dir(), name), object.Checksum(n.Content)); err != nil {
			return fmt.Errorf("put back /%s of %s: %w", name, b.Name(), err)
		}
		return nil
	})
}

// relinkFile makes name a hardlink of a file object, in one step.
func (s *ostreeStore) relinkFile(name string, c object.Checksum) error {
	o := object.Name{Checksum: c, Type: object.TypeFile}
	tmp := path.Join(path.Dir(name), ".kedge-"+path.Base(o.Path(false))[:16]+".tmp")
	if err := s.Root().Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.Root().Link(path.Join(repoDir, "objects", o.Path(false)), tmp); err != nil {
		return err
	}
	return s.Root().Rename(tmp, name)
}
