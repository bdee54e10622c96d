package host

import (
	"context"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/source"
)

// etcStore is the part of a store that knows where a deployment's /etc is.
type etcStore interface {
	// OpenEtc opens the /etc of a deployment to read it.
	OpenEtc(ctx context.Context, d *deployment) (source.Dir, error)
}

// OpenEtc implements store.
func (s *ostreeStore) OpenEtc(_ context.Context, d *deployment) (source.Dir, error) {
	b, err := s.native(d)
	if err != nil {
		return nil, err
	}
	dir, err := dirfd.Open(s.Root(), b.Dir()+"/etc")
	if err != nil {
		return nil, err
	}
	return source.Disk(dir), nil
}

// OpenEtc implements store.
func (s *composefsStore) OpenEtc(ctx context.Context, d *deployment) (source.Dir, error) {
	b, err := s.native(d)
	if err != nil {
		return nil, err
	}
	return s.sysroot.OpenEtc(ctx, b)
}
