package host

import (
	"context"
	"fmt"
	"os"
	"path"

	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Deploy implements store. The commit point is the staged marker's on the booted
// host, else boot.Write's.
func (s *ostreeStore) Deploy(ctx context.Context, r deployRequest) (d *deployment, err error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.abandon(ctx, err)
		}
	}()
	req := boot.DeployRequest{Stateroot: r.stateroot, Commit: r.root, Merge: s.sysroot.MergeFor(r.stateroot)}
	var base *boot.Deployment
	if r.base != nil {
		if base, err = s.native(r.base); err != nil {
			return nil, err
		}
		req.Origin = r.originFrom(base.Origin)
	}
	if r.ref != nil {
		req.Origin = originOf(req.Origin, *r.ref, r.packages)
	}
	req.Kargs, req.ExactKargs = r.kargs, r.base != nil && r.kargs != nil
	if base != nil && base.Staged && r.kargs == nil {
		if req.Kargs, err = s.kargsAsRunning(base, req.Merge); err != nil {
			return nil, err
		}
	}
	if s.Booted() {
		staged, err := s.sysroot.Stage(ctx, boot.StageRequest{DeployRequest: req, Hold: r.hold})
		if err != nil {
			return nil, err
		}
		return s.reload(staged)
	}
	fresh, err := s.sysroot.Deploy(ctx, req)
	if err != nil {
		return nil, err
	}
	list := s.sysroot.With(fresh, boot.Retention{Merge: req.Merge})
	if err := s.sysroot.Write(ctx, list); err != nil {
		return nil, err
	}
	return s.reload(fresh)
}

// kargsAsRunning returns the arguments of a staged deployment as they would be
// on the image of the running one, which package boot starts from: what was
// asked of the staged deployment stays, what its image brought goes.
func (s *ostreeStore) kargsAsRunning(staged, running *boot.Deployment) (karg.Args, error) {
	theirs, err := s.sysroot.ImageKargs(staged)
	if err != nil || running == nil {
		return staged.Kargs(), err
	}
	ours, err := s.sysroot.ImageKargs(running)
	return staged.Kargs().Rebase(theirs, ours), err
}

// reload finds a deployment that was just made in the list on disk.
func (s *ostreeStore) reload(fresh *boot.Deployment) (*deployment, error) {
	list, err := s.Deployments()
	if err != nil {
		return nil, err
	}
	d := list.find(func(d *deployment) bool {
		return d.stateroot == fresh.Stateroot && d.root == fresh.Checksum && d.serial == fresh.Serial
	})
	if d == nil {
		return nil, fault.New(fault.Internal, "", "the new deployment %s is not in the list", fresh.Name())
	}
	d.etcChanges = s.sysroot.EtcChanges()
	return d, nil
}

// OpenDeployment implements store.
func (s *ostreeStore) OpenDeployment(d *deployment) (root, vardir *os.Root, err error) {
	dir := path.Join("ostree/deploy", d.stateroot)
	if root, err = s.Root().OpenRoot(path.Join(dir, "deploy", fmt.Sprintf("%s.%d", d.root, d.serial))); err != nil {
		return nil, nil, err
	}
	if vardir, err = s.Root().OpenRoot(path.Join(dir, "var")); err != nil {
		_ = root.Close()
	}
	return root, vardir, err
}

// Finalize implements store.
func (s *ostreeStore) Finalize(ctx context.Context) (string, error) {
	done, err := s.sysroot.Finalize(ctx)
	if err != nil || done.Deployment == nil {
		return "", err
	}
	return done.Deployment.Stateroot + "/" + done.Deployment.Name(), nil
}
