package boot

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
)

// writeOrigin replaces a deployment's origin file.
func (s *Sysroot) writeOrigin(d *Deployment, lab Labeler) error {
	if err := atomicfile.Write(s.root, d.OriginPath(), d.Origin.Encode(), 0o644); err != nil {
		return fmt.Errorf("write the origin: %w", err)
	}
	if lab == nil {
		return nil
	}
	dir, err := dirfd.Open(s.root, deployDir(d.Stateroot))
	if err != nil {
		return err
	}
	defer dir.Close()
	return setLabel(dir, d.Name()+".origin", "/etc/ostree/remotes.d/dummy.conf", lab, unix.S_IFREG|0o644)
}

// SetOrigin replaces what a deployment was asked for.
func (s *Sysroot) SetOrigin(d *Deployment, origin *keyfile.File) error {
	if err := s.requireLock("write an origin"); err != nil {
		return err
	}
	c := *d
	c.Origin = origin.Clone()
	if err := s.writeOrigin(&c, nil); err != nil {
		return err
	}
	d.Origin = c.Origin
	return s.bumpMtime()
}
