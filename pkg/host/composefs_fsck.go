package host

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/imageroot"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Fsck implements store. It measures every object anew, parallel, and reads
// every image and stream.
func (s *composefsStore) Fsck(ctx context.Context) (*v1.Check, repairFunc, error) {
	report, err := s.repo.Fsck(ctx, 0)
	if err != nil {
		return nil, nil, err
	}
	c := &v1.Check{Objects: report.Objects, Deployments: len(s.sysroot.Deployments()), Problems: []string{}}
	problem := func(format string, args ...any) { c.Problems = append(c.Problems, fmt.Sprintf(format, args...)) }
	for _, d := range report.Damage {
		problem("%s", d)
	}
	for _, err := range s.Problems() {
		problem("%v", err)
	}
	lacking := false
	var kernels []*imageroot.Deployment
	for _, b := range s.sysroot.Deployments() {
		d, err := composefs.ParseDigest(b.Digest)
		if err != nil {
			return nil, nil, err
		}
		if !s.repo.HasImage(d) {
			problem("deployment %s: its image is not in the repository", b.Name())
			lacking = true
		}
		if _, err := s.Root().Stat(b.Dir() + "/etc"); err != nil {
			problem("deployment %s: %v", b.Name(), err)
		}
		if err := s.sysroot.CheckKernel(ctx, b); err != nil {
			problem("deployment %s: %v", b.Name(), err)
			kernels = append(kernels, b)
		}
		if b.ManifestDigest() == "" {
			problem("deployment %s has no origin: it follows no image", b.Name())
			continue
		}
		if _, err := s.repo.ReadImage(b.ManifestDigest()); err != nil {
			problem("deployment %s: %v", b.Name(), err)
			lacking = true
		}
	}
	damaged := len(report.Damage) > 0 || lacking
	if !damaged && len(kernels) == 0 {
		return c, nil, nil
	}
	return c, func(ctx context.Context, list deployments, fetch fetchFunc) (err error) {
		if damaged {
			err = s.repair(ctx, report.Replaceable(), list, fetch)
		}
		return errors.Join(err, restoreKernels(ctx, s.sysroot.RestoreKernel, kernels))
	}, nil
}

// repair imports the images of all deployments again; of each only the layers
// are fetched that objects belong to which are damaged then.
func (s *composefsStore) repair(ctx context.Context, damaged []composefs.Digest, list deployments, fetch fetchFunc) error {
	var failed []error
	done := map[string]bool{}
	for _, d := range list {
		if done[d.manifest] {
			continue
		}
		done[d.manifest] = true
		if err := s.importAgain(ctx, d, damaged, fetch); err != nil {
			failed = append(failed, fmt.Errorf("deployment %s: %w", d.id, err))
		}
	}
	clear(s.files)
	return errors.Join(failed...)
}

func (s *composefsStore) importAgain(ctx context.Context, d *deployment, damaged []composefs.Digest, fetch fetchFunc) error {
	src, err := fetch(ctx, d)
	if err != nil {
		return err
	}
	defer s.cfg.closeQuietly(src)
	if damaged, err = s.repo.Damaged(ctx, damaged); err != nil {
		return err
	}
	w, err := s.importImage(ctx, src, damaged, d.imageDigest() != d.manifest)
	if err != nil {
		return err
	}
	if got := w.Boot.Digest.String(); got != d.root {
		return fault.New(fault.Corrupt, "", "its image comes to the root %s now", got)
	}
	return nil
}
