package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/imageroot"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// An image's unified kernel image names the tree without /boot, where it is
// itself. So it is no file of the root, and what is known of it is the object that
// it is in, which its layer keeps: a file in ukiDir, named after the root, names
// that object.
const ukiDir = composefsState + "/uki"

// importedUKI is the unified kernel image of an image that is being imported.
type importedUKI struct {
	object composefs.Digest
	root   composefs.Digest // that it boots
}

// readUKI reads the unified kernel image in a tree; nil for none.
func (s *composefsStore) readUKI(im *composefs.Import, t *fstree.Tree) (*importedUKI, error) {
	n, err := uki.Find(t)
	if n == nil || err != nil {
		return nil, err
	}
	f, object, err := im.OpenObject(n.Content)
	if err != nil {
		return nil, fmt.Errorf("open the unified kernel image: %w", err)
	}
	defer f.Close()
	u, err := uki.Decode(f, n.Size)
	if err != nil {
		return nil, err
	}
	text, _, ok := imageroot.ImageOf(u.Cmdline)
	if !ok {
		return nil, fault.New(fault.Conflict, "rebuild it with composefs=DIGEST; kedge container digest tells the digest",
			"the command line of the unified kernel image names no image")
	}
	root, err := composefs.ParseDigest(text)
	if err != nil {
		return nil, err
	}
	if root.Algorithm() != s.repo.Algorithm() {
		return nil, fault.New(fault.Conflict, "rebuild the unified kernel image with the digest that kedge container digest tells",
			"the unified kernel image names a digest of another algorithm than the repository has: %.12s…", text)
	}
	old, err := s.notedUKI(text)
	if err != nil {
		return nil, err
	}
	if old != "" && old != object && slices.ContainsFunc(s.sysroot.Deployments(), func(d *imageroot.Deployment) bool { return d.Digest == text }) {
		return nil, imageroot.ErrOtherUKI
	}
	return &importedUKI{object: object, root: root}, nil
}

// noteUKI keeps what is known of the unified kernel image of a root.
func (s *composefsStore) noteUKI(root, object composefs.Digest) error {
	if err := s.Root().MkdirAll(ukiDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(s.Root(), path.Join(ukiDir, root.String()), []byte(object.String()+"\n"), 0o644)
}

// notedUKI returns the object that has the unified kernel image of a root; "" where
// the root has none.
func (s *composefsStore) notedUKI(root string) (composefs.Digest, error) {
	text, err := s.Root().ReadFile(path.Join(ukiDir, root))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	object, err := composefs.ParseDigest(strings.TrimSpace(string(text)))
	if err != nil {
		return "", fault.New(fault.Corrupt, "remove it, then run kedge fsck --repair", "read %s/%s: %w", ukiDir, root, err)
	}
	return object, nil
}

// UKI implements imageroot.Repo.
func (f *imageFiles) UKI(_ context.Context, root string) (imageroot.UKIFile, error) {
	s := (*composefsStore)(f)
	object, err := s.notedUKI(root)
	if object == "" || err != nil {
		return nil, err
	}
	file, err := s.repo.OpenObject(object)
	if err != nil {
		return nil, fmt.Errorf("open the unified kernel image of %.12s: %w", root, err)
	}
	return file, nil
}

// dropUKIs forgets the unified kernel images of roots that went.
func (s *composefsStore) dropUKIs() error {
	names, err := dirfd.ReadNames(s.Root(), ukiDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if d, err := composefs.ParseDigest(name); err == nil && s.repo.HasImage(d) {
			continue
		}
		if err := s.Root().Remove(path.Join(ukiDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// BootsUKI implements store.
func (s *composefsStore) BootsUKI(ctx context.Context, root string) (bool, error) {
	return s.sysroot.BootsUKI(ctx, root)
}

// BootsUKI implements store: what boots there is told by the kernel argument
// ostree=, which differs from deployment to deployment.
func (s *ostreeStore) BootsUKI(context.Context, string) (bool, error) { return false, nil }
