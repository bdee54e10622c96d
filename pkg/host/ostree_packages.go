package host

import (
	"context"
	"os"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// baseRefs keep the commits that packages were put on, from bootc's garbage
// collection too (ostree-ext, BASE_IMAGE_PREFIX).
const baseRefs = ostree.BaseImageRefPrefix + "/kedge/"

// Base implements store: the image's commit is the parent of one with packages,
// kedge's and rpm-ostree's alike.
func (s *ostreeStore) Base(d *deployment) (string, *imageInfo, error) {
	if d.image != nil && d.imageDigest() == d.image.digest {
		return d.root, d.image, nil
	}
	sum, err := object.ParseChecksum(d.root)
	if err != nil {
		return "", nil, err
	}
	c, err := s.repo.ReadCommit(sum)
	if err != nil {
		return "", nil, err
	}
	if !c.Parent.IsZero() {
		i, err := s.image(c.Parent.String())
		if err == nil && i != nil {
			return c.Parent.String(), i, nil
		}
	}
	return "", nil, fault.New(fault.NotFound, "kedge upgrade fetches it", "the image that the packages of %s were put on is not here", d.id)
}

// Mount implements store: a checkout of hardlinks.
func (s *ostreeStore) Mount(ctx context.Context, root, dir string) (string, error) {
	sum, err := object.ParseChecksum(root)
	if err != nil {
		return "", err
	}
	target, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer target.Close()
	return "usr/etc", s.repo.Checkout(ctx, sum, target, ".", ostree.CheckoutOptions{})
}

// bases returns the commits that the packages of deployments were put on.
func (s *ostreeStore) bases() (map[string]bool, error) {
	list := map[string]bool{}
	for _, b := range s.sysroot.Deployments() {
		if readPackages(b.Origin) == nil {
			continue
		}
		sum, err := object.ParseChecksum(b.Checksum)
		if err != nil {
			return nil, err
		}
		c, err := s.repo.ReadCommit(sum)
		if err != nil {
			return nil, err
		}
		if !c.Parent.IsZero() {
			list[c.Parent.String()] = true
		}
	}
	return list, nil
}

// keepBases makes the refs of bases those of the commits in list.
func (s *ostreeStore) keepBases(ctx context.Context, list map[string]bool) error {
	have, err := s.repo.Refs(baseRefs)
	if err != nil {
		return err
	}
	change := map[string]string{}
	for ref := range have {
		if !list[strings.TrimPrefix(ref, baseRefs)] {
			change[ref] = ""
		}
	}
	for commit := range list {
		if _, ok := have[baseRefs+commit]; !ok {
			change[baseRefs+commit] = commit
		}
	}
	if len(change) == 0 {
		return nil
	}
	return (*bootRepo)(s).SetRefs(ctx, change)
}
