package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// StageRequest is what a staged deployment is made from.
type StageRequest struct {
	DeployRequest
	// RetainAll keeps every deployment when this one becomes the default.
	RetainAll bool
	// Hold keeps it from being finalised until SetHold(false).
	Hold bool
}

// Stage makes a deployment on the booted sysroot that becomes the default at
// shutdown: checkout, kernel and a first merge of /etc are done now and made
// durable, so that Finalize has little left to do. One that was staged before
// is replaced. /etc conflicts that cannot be merged are refused here.
//
// The commit point is the rename of libostree's marker in /run. The marker is
// written locked, so that libostree and bootc show and keep the deployment but
// never finalise it; with it, for libostree before 2023.8, a file of its own.
func (s *Sysroot) Stage(ctx context.Context, r StageRequest) (*Deployment, error) {
	if err := s.requireLock("stage"); err != nil {
		return nil, err
	}
	if err := s.stage(ctx, r); err != nil {
		return nil, fmt.Errorf("stage %.12s: %w", r.Commit, err)
	}
	if err := s.bumpMtime(); err != nil {
		s.log.Warn("after the commit", "error", err)
	}
	if err := s.Load(); err != nil {
		return nil, err
	}
	return s.Staged(), nil
}

func (s *Sysroot) stage(ctx context.Context, r StageRequest) error {
	if _, err := s.requireBooted("stage a deployment"); err != nil {
		return err
	}
	if start := s.opts.StartFinalizer; start != nil {
		if err := start(ctx); err != nil {
			return err
		}
	}
	before := s.Staged()
	d, kernel, err := s.deploy(ctx, r.DeployRequest)
	if err != nil {
		return err
	}
	list, err := s.fitting(d, Retention{Merge: r.Merge, All: r.RetainAll})
	if err != nil {
		return err
	}
	if err := s.makeRoom(ctx, list); err != nil {
		return err
	}
	if before != nil && s.first(before.same) == nil {
		before = nil
	}
	if err := s.placeKernel(ctx, d, kernel); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.syncRoot(); err != nil {
		return err
	}
	if err := s.writeMarker(d, r); err != nil {
		return err
	}
	if before != nil {
		if err := s.removeDeployment(before); err != nil {
			s.log.Warn("after the commit", "error", err)
		}
	}
	return nil
}

// placeKernel installs the kernel of a new deployment.
func (s *Sysroot) placeKernel(ctx context.Context, d *Deployment, k *Kernel) error {
	root, err := s.root.OpenRoot(d.Dir())
	if err != nil {
		return err
	}
	defer root.Close()
	lab, err := d.labels(root)
	if err != nil {
		return err
	}
	if err := s.installKernel(k, root, d, lab); err != nil {
		return err
	}
	boot, err := s.bootDir()
	if err != nil {
		return err
	}
	if err := s.syncfs(boot); err != nil {
		return err
	}
	item, err := s.kernelItem(d)
	if err != nil {
		return err
	}
	return s.loader.Prepare(ctx, []loader.Item{item})
}

func (s *Sysroot) writeMarker(d *Deployment, r StageRequest) error {
	marker := object.Dict{
		{Key: targetKey, Value: encodeRef(d)},
		{Key: lockedKey, Value: object.Bool(true)},
	}
	if r.Merge != nil {
		marker.Set(mergeKey, encodeRef(r.Merge))
	}
	options, _ := d.Entry.Get("options")
	marker.Set(kargsKey, object.Texts(karg.Parse(options)...))
	extra := map[string]string{}
	for _, k := range d.Entry.Extra() {
		extra[k], _ = d.Entry.Get(k)
	}
	if len(extra) > 0 {
		marker.Set(extrasKey, object.Map(extra))
	}
	marker.Set(kedgeKey, object.Uint64(uint64(d.merging.UnixNano())))
	if r.RetainAll {
		marker.Set(retainKey, object.Bool(true))
	}
	if r.Hold {
		marker.Set(holdKey, object.Bool(true))
	}
	if err := s.host.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	// First the file that older versions look for: at no instant is there a
	// marker that one of them would finalise.
	f, err := s.host.OpenFile(lockedFile, os.O_CREATE|os.O_WRONLY, 0o640)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	return atomicfile.Write(s.host, markerFile, marker.Encode(), 0o644)
}

// SetHold holds the staged deployment back from finalisation, or lets it go.
func (s *Sysroot) SetHold(hold bool) error {
	if err := s.requireLock("hold the staged deployment"); err != nil {
		return err
	}
	d := s.Staged()
	if d == nil || !d.Ours {
		return fault.New(fault.NotFound, "", "kedge has staged no deployment")
	}
	marker, err := s.readMarker()
	if err != nil {
		return err
	}
	if hold {
		marker.Set(holdKey, object.Bool(true))
	} else {
		marker.Delete(holdKey)
	}
	if err := atomicfile.Write(s.host, markerFile, marker.Encode(), 0o644); err != nil {
		return err
	}
	d.Held = hold
	return s.bumpMtime()
}

// StartFinalizer starts kedge's unit, which finalises at shutdown; for
// Options.StartFinalizer on a machine with systemd.
func StartFinalizer(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "systemctl", "start", "--quiet", units.Finalize).CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "", "start %s: systemctl is not installed", units.Finalize)
	}
	return fault.New(fault.Conflict, "kedge self install puts kedge's units on this host",
		"start %s, which finalises at shutdown: %s", units.Finalize, strings.TrimSpace(string(out)))
}
