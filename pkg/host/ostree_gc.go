package host

import (
	"context"
	"fmt"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Sweep implements store. It removes what no deployment needs: checkouts,
// kernels and boot entries of removed deployments, images without a deployment,
// their layers. Objects are looked through, which takes the longest, only where
// something went that had some. On a sysroot that is not booted it labels what
// the operation made: the machine may know nothing of SELinux.
func (s *ostreeStore) Sweep(ctx context.Context) (swept, error) {
	done, err := s.sweep(ctx, sweepOptions{prune: s.change.interrupted})
	if err != nil || s.Booted() {
		return done, err
	}
	if list := s.sysroot.Deployments(); len(list) > 0 {
		err = s.sysroot.Label(ctx, list[0])
	}
	return done, err
}

// SweepAll is Sweep that always looks through the objects, and that gives back
// what interrupted imports left too.
func (s *ostreeStore) SweepAll(ctx context.Context) (swept, error) {
	if err := s.begin(); err != nil {
		return swept{}, err
	}
	return s.sweep(ctx, sweepOptions{prune: true, staged: true})
}

type sweepOptions struct {
	prune  bool // look through the objects, whatever was removed
	staged bool // give back what interrupted imports left
}

func (s *ostreeStore) sweep(ctx context.Context, o sweepOptions) (swept, error) {
	if err := s.sysroot.Cleanup(ctx); err != nil {
		return swept{}, err
	}
	images, err := s.dropImages(ctx)
	if err != nil {
		return swept{}, fmt.Errorf("remove images without a deployment: %w", err)
	}
	state, err := s.state()
	if err != nil {
		return swept{}, err
	}
	defer state.Close()
	layers, err := s.repo.PruneContainers(ctx, state)
	if err != nil {
		return swept{}, fmt.Errorf("remove layers without an image: %w", err)
	}
	if o.staged {
		if err := s.dropStaged(ctx); err != nil {
			return swept{}, err
		}
	}
	if !o.prune && images+layers == 0 {
		s.change.swept = true
		return swept{}, nil
	}
	keep, err := s.deployedCommits()
	if err != nil {
		return swept{}, err
	}
	done, err := s.repo.Prune(ctx, ostree.PruneOptions{Keep: keep, Depth: -1})
	if err != nil {
		return swept{}, fmt.Errorf("remove objects that nothing needs: %w", err)
	}
	s.change.swept = true
	return swept{objects: done.Pruned, bytes: done.Freed}, nil
}

func (s *ostreeStore) deployedCommits() (list []ostree.Checksum, err error) {
	for _, d := range s.sysroot.Deployments() {
		sum, err := object.ParseChecksum(d.Checksum)
		if err != nil {
			return nil, err
		}
		list = append(list, sum)
	}
	return list, nil
}

// dropImages removes the refs of images that no deployment was made from.
func (s *ostreeStore) dropImages(ctx context.Context) (int, error) {
	refs, err := s.repo.Refs(ostree.ImageRefPrefix)
	if err != nil {
		return 0, err
	}
	deployed, err := s.bases()
	if err != nil {
		return 0, err
	}
	if err := s.keepBases(ctx, deployed); err != nil {
		return 0, err
	}
	for _, d := range s.sysroot.Deployments() {
		deployed[d.Checksum] = true
	}
	n := 0
	for ref, commit := range refs {
		if deployed[commit.String()] {
			continue
		}
		name, err := ostree.UnescapeRef(strings.TrimPrefix(ref, ostree.ImageRefPrefix+"/"))
		if err != nil {
			s.cfg.Log.Warn("a ref is not that of an image", "ref", ref, "error", err)
			continue
		}
		if _, err := s.repo.RemoveContainer(ctx, name); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// dropStaged gives back what imports staged and did not finish.
func (s *ostreeStore) dropStaged(ctx context.Context) error {
	im, err := s.repo.NewImport(ctx, ostree.ImportOptions{})
	if err != nil {
		return err
	}
	if err := im.Discard(); err != nil {
		return err
	}
	return s.repo.CleanTmp(true)
}

// Images implements store.
func (s *ostreeStore) Images(list deployments) ([]v1.StoredImage, error) {
	stored, err := s.repo.Containers()
	if err != nil {
		s.cfg.Log.Warn("an image cannot be read", "error", err)
	}
	images := []v1.StoredImage{}
	seen := map[string]bool{}
	add := func(name, commit string, i *imageInfo) {
		if seen[commit] {
			return
		}
		seen[commit] = true
		out := v1.StoredImage{Image: name, Digest: i.digest, Version: i.version, Layers: len(i.layers), Size: i.size(), Deployments: []string{}}
		for _, d := range list {
			if d.root == commit {
				out.Deployments = append(out.Deployments, d.id)
			}
		}
		images = append(images, out)
	}
	for _, c := range stored {
		info, err := parseImage(c.Image.ManifestDigest, c.Image.Manifest, c.Image.Config)
		if err != nil {
			s.cfg.Log.Warn("an image cannot be read", "image", c.Reference, "error", err)
			continue
		}
		add(strings.TrimPrefix(c.Reference, "docker://"), c.Image.Commit.String(), info)
	}
	for _, d := range list {
		if d.image != nil && d.origin.ref != nil {
			add(d.origin.ref.String(), d.root, d.image)
		}
	}
	return images, nil
}

// FindImage implements store.
func (s *ostreeStore) FindImage(name string) (string, error) {
	stored, err := s.repo.Containers()
	if err != nil {
		s.cfg.Log.Warn("an image cannot be read", "error", err)
	}
	for _, c := range stored {
		if strings.TrimPrefix(c.Reference, "docker://") == name || trimDigest(c.Image.ManifestDigest) == trimDigest(name) {
			return c.Image.Commit.String(), nil
		}
	}
	bases, err := s.bases()
	if err != nil {
		return "", err
	}
	for commit := range bases {
		if i, err := s.image(commit); err == nil && i != nil && trimDigest(i.digest) == trimDigest(name) {
			return commit, nil
		}
	}
	return "", fault.New(fault.NotFound, "kedge status and kedge image list show what there is", "there is no deployment or image %q", name)
}

// Exists implements store.
func (s *ostreeStore) Exists(root, name string) (bool, error) {
	sum, err := object.ParseChecksum(root)
	if err != nil {
		return false, err
	}
	c, err := s.repo.ReadCommit(sum)
	if err != nil {
		return false, err
	}
	parts := strings.Split(name, "/")
	tree := c.Tree
	for i, part := range parts {
		files, dirs, err := s.repo.ReadDirtree(tree)
		if err != nil {
			return false, err
		}
		found := false
		for _, d := range dirs {
			if d.Name == part {
				tree, found = d.Tree, true
			}
		}
		for _, f := range files {
			found = found || f.Name == part && i == len(parts)-1
		}
		if !found {
			return false, nil
		}
	}
	return true, nil
}
