package host

import (
	"context"
	"path"
	"path/filepath"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/usroverlay"
	"github.com/kedge-os/kedge/pkg/fault"
)

// UsrOverlay mounts an overlay on /usr of the running machine, which is gone
// with the reboot; read-only, it is for processes that mount it writable for
// themselves. It has to run in the machine's own mount namespace.
func (h *Host) UsrOverlay(ctx context.Context, readOnly bool) (*v1.UsrOverlay, error) {
	o, err := h.mountUsrOverlay(ctx, readOnly)
	return o, wrap("usroverlay", err)
}

func (h *Host) mountUsrOverlay(ctx context.Context, readOnly bool) (*v1.UsrOverlay, error) {
	if !h.Booted() {
		return nil, fault.New(fault.Conflict, "run it on the host itself", "%s is not booted: there is no /usr to write", h.cfg.Sysroot)
	}
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	usr := filepath.Join(h.cfg.Machine, "usr")
	mounted, overlay, _, err := usroverlay.Mounted(usr)
	switch {
	case err != nil:
		return nil, err
	case overlay:
		return nil, fault.New(fault.Conflict, "a reboot takes it away", "/usr has an overlay already")
	case mounted:
		return nil, fault.New(fault.Conflict, "", "something else is mounted on /usr")
	}
	d := list.booted()
	if err := usroverlay.Mount(usr, filepath.Join(h.cfg.Machine, "run/kedge"), h.store.UsrLayers(ctx, d), readOnly); err != nil {
		return nil, err
	}
	if err := h.store.MarkUnlocked(d, readOnly); err != nil {
		h.cfg.Log.Warn("the overlay is mounted, and other programs are not told", "error", err)
	}
	h.publish(ctx)
	return h.usrOverlay(), nil
}

// usrOverlay finds an overlay that was mounted on /usr after boot.
func (h *Host) usrOverlay() *v1.UsrOverlay {
	_, overlay, readOnly, err := usroverlay.Mounted(filepath.Join(h.cfg.Machine, "usr"))
	if err != nil || !overlay {
		return nil
	}
	o := &v1.UsrOverlay{AccessMode: "readWrite", Persistence: "transient"}
	if readOnly {
		o.AccessMode = "readOnly"
	}
	if list, err := h.store.Deployments(); err == nil && list.booted() != nil && list.booted().origin.hotfix {
		o.Persistence = "persistent"
	}
	return o
}

// UsrLayers implements store: libostree's own place, beside the deployment. The
// lower layer is the checkout and not what is mounted, which may be an overlay on
// an image already.
func (s *ostreeStore) UsrLayers(_ context.Context, d *deployment) usroverlay.Layers {
	b, err := s.native(d)
	if err != nil {
		return usroverlay.Layers{}
	}
	return usroverlay.Layers{
		Disk: s.Root().Name(), Lower: path.Join(b.Dir(), "usr"),
		Upper: path.Join("ostree/deploy", b.Stateroot, "backing", b.Name(), "usr-transient"),
	}
}

// MarkUnlocked implements store, in the place where libostree looks.
func (s *ostreeStore) MarkUnlocked(d *deployment, readOnly bool) error {
	b, err := s.native(d)
	if err != nil {
		return err
	}
	return s.sysroot.MarkUnlocked(b, readOnly)
}

// UsrLayers implements store: what is written is in memory, as with bootc.
func (s *composefsStore) UsrLayers(ctx context.Context, d *deployment) usroverlay.Layers {
	return usroverlay.Layers{Image: func(dir string) error {
		_, err := s.Mount(ctx, d.root, dir)
		return err
	}}
}

// MarkUnlocked implements store. bootc looks at the mount.
func (s *composefsStore) MarkUnlocked(*deployment, bool) error { return nil }
