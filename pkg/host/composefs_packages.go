package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kedge-os/kedge/internal/setuproot"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Base implements store.
func (s *composefsStore) Base(d *deployment) (string, *imageInfo, error) {
	digest := d.imageDigest()
	i, err := s.image(digest)
	if errors.Is(err, fs.ErrNotExist) || err == nil && i == nil {
		return "", nil, fault.New(fault.NotFound, "kedge upgrade fetches it", "the image that the packages of %s were put on is not here", d.id)
	}
	if err != nil {
		return "", nil, err
	}
	root := d.root
	if digest != d.manifest {
		if root, err = s.FindImage(digest); err != nil {
			return "", nil, err
		}
	}
	s.manifests[root] = digest
	return root, i, nil
}

// Mount implements store.
func (s *composefsStore) Mount(_ context.Context, root, dir string) (string, error) {
	d, err := composefs.ParseDigest(root)
	if err != nil {
		return "", err
	}
	image, err := s.repo.OpenImage(d)
	if err != nil {
		return "", fmt.Errorf("open image %s: %w", root, err)
	}
	defer image.Close()
	// By its path: what was opened before is of another mount namespace, and the
	// kernel takes no layers from there.
	objects, err := os.Open(filepath.Join(s.Root().Name(), composefsDir, "objects"))
	if err != nil {
		return "", err
	}
	defer objects.Close()
	return "", setuproot.MountImage(image, objects, dir, s.repo.Sealed())
}
