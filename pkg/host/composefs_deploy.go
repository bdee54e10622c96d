package host

import (
	"context"

	"github.com/kedge-os/kedge/pkg/boot/imageroot"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// CheckVerity implements store.
func (s *composefsStore) CheckVerity(base *deployment, allow bool) error {
	if s.repo.Sealed() || allow {
		return nil
	}
	if base != nil {
		if b, err := s.native(base); err == nil && b.VerityOptional {
			return nil
		}
	}
	return errUnsealed
}

// InitStateroot implements store. There is one, and initialiseComposefs made it.
func (s *composefsStore) InitStateroot(string) error { return nil }

// Deploy implements store. The commit point is the staged marker's on the booted
// host, else imageroot.Write's.
func (s *composefsStore) Deploy(ctx context.Context, r deployRequest) (d *deployment, err error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.abandon(ctx, err)
		}
	}()
	// What is recorded as missing is missing: where the kernel vouches for every
	// object, the initramfs is to insist on it.
	req := imageroot.DeployRequest{Digest: r.root, Merge: s.sysroot.MergeFor(), VerityOptional: !s.repo.Sealed()}
	var base *imageroot.Deployment
	if r.base != nil {
		if base, err = s.native(r.base); err != nil {
			return nil, err
		}
		req.Origin = r.originFrom(base.Origin)
	}
	if r.ref != nil {
		req.Origin = originOf(req.Origin, *r.ref, r.packages)
	}
	if manifest := s.manifests[r.root]; manifest != "" {
		req.Origin.Set(groupImage, keyManifest, manifest)
	}
	req.Derived, req.Sign = readPackages(req.Origin) != nil, r.sign
	req.Kargs, req.ExactKargs = r.kargs, r.base != nil && r.kargs != nil
	// An image's own unified kernel image leaves nothing to continue but what runs.
	if base != nil && base.Staged && r.kargs == nil && (base.Type == imageroot.TypeBLS || base.MadeHere()) {
		if req.Kargs, err = s.kargsAsRunning(ctx, base, req.Merge); err != nil {
			return nil, err
		}
	}
	var fresh *imageroot.Deployment
	if s.Booted() {
		fresh, err = s.sysroot.Stage(ctx, imageroot.StageRequest{DeployRequest: req, Hold: r.hold})
	} else if fresh, err = s.sysroot.Deploy(ctx, req); err == nil {
		err = s.sysroot.Write(ctx, s.sysroot.With(fresh, imageroot.Retention{Merge: req.Merge}))
	}
	if err != nil {
		return nil, err
	}
	list, err := s.Deployments()
	if err != nil {
		return nil, err
	}
	// It is the default now, or staged, which comes before that.
	if len(list) == 0 || list[0].root != r.root {
		return nil, fault.New(fault.Internal, "", "the new deployment %s is not in the list", fresh.Name())
	}
	list[0].etcChanges, list[0].droppedPCRs = s.sysroot.EtcChanges(), s.sysroot.DroppedPCRs()
	return list[0], nil
}

// The origin's place for the image, bootc's.
const (
	groupImage  = "image"
	keyManifest = "manifest_digest"
)

// kargsAsRunning returns the arguments of a staged deployment as they would be
// on the image of the running one.
func (s *composefsStore) kargsAsRunning(ctx context.Context, staged, running *imageroot.Deployment) (karg.Args, error) {
	theirs, err := s.sysroot.ImageKargs(ctx, staged)
	if err != nil || running == nil {
		return staged.Kargs(), err
	}
	ours, err := s.sysroot.ImageKargs(ctx, running)
	return staged.Kargs().Rebase(theirs, ours), err
}

// Finalize implements store.
func (s *composefsStore) Finalize(ctx context.Context) (string, error) {
	done, err := s.sysroot.Finalize(ctx)
	if err != nil || done.Deployment == nil {
		return "", err
	}
	return done.Deployment.Name(), nil
}
