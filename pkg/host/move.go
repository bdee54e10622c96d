package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// SwitchOptions are what Switch can be told.
type SwitchOptions struct {
	Image     string // as the command line has it
	Transport string // of an Image without one; "" is registry
	// Retain pins the deployment that was the default.
	Retain bool
	// DownloadOnly stages and does not let shutdown finalise it.
	DownloadOnly bool
	// EnforceSigpolicy demands a signature, at every upgrade too.
	EnforceSigpolicy bool
	// AllowMissingVerity is as in InstallOptions.
	AllowMissingVerity bool
}

// Switch makes another image what the next boot takes, and what upgrades
// follow.
func (h *Host) Switch(ctx context.Context, o SwitchOptions) (*v1.Result, error) {
	ref, err := reference(o.Image, o.Transport, o.EnforceSigpolicy)
	if err != nil {
		return nil, wrap("switch", err)
	}
	r, err := h.move(ctx, move{verb: "switch", fetch: ref, follow: ref, named: true, hold: o.DownloadOnly, retain: o.Retain, allowMissingVerity: o.AllowMissingVerity})
	return r, wrap("switch", err)
}

// UpgradeOptions are what Upgrade can be told.
type UpgradeOptions struct {
	Tag            string // follow this tag of the same repository
	DownloadOnly   bool
	FromDownloaded bool // release what DownloadOnly staged; no network
	// AllowMissingVerity is as in InstallOptions.
	AllowMissingVerity bool
}

// Upgrade moves to the newest digest behind the reference in the origin.
func (h *Host) Upgrade(ctx context.Context, o UpgradeOptions) (*v1.Result, error) {
	if o.FromDownloaded {
		r, err := h.release(ctx)
		return r, wrap("upgrade", err)
	}
	ref, err := h.followedRef(o.Tag)
	if err != nil {
		return nil, wrap("upgrade", err)
	}
	r, err := h.move(ctx, move{verb: "upgrade", fetch: ref, follow: ref, named: o.Tag != "", hold: o.DownloadOnly, allowMissingVerity: o.AllowMissingVerity})
	return r, wrap("upgrade", err)
}

// CheckUpgrade says whether an upgrade would change anything. It reads the
// manifest and the config; what it finds is noted for status, where this
// process may write.
func (h *Host) CheckUpgrade(ctx context.Context, tag string) (*v1.Result, error) {
	ref, err := h.followedRef(tag)
	if err != nil {
		return nil, wrap("upgrade", err)
	}
	list, err := h.store.Deployments()
	if err != nil {
		return nil, wrap("upgrade", err)
	}
	info, err := h.resolve(ctx, ref)
	if err != nil {
		return nil, wrap("upgrade", err)
	}
	r := &v1.Result{Operation: "upgrade", Image: info.status(ref)}
	target := list.followed()
	r.Changed = !isAt(target, ref, info.digest)
	if !r.Changed {
		r.ID = target.id
		return r, nil
	}
	r.PackageChanges = h.storedPackageChanges(ctx, list, target, info.digest)
	if unlock, err := h.lock(ctx); err == nil {
		defer unlock()
		if err := h.store.NoteUpdate(ctx, target, info); err != nil {
			h.cfg.Log.Warn("the update was not noted for status", "error", err)
		}
		h.publish(ctx)
	}
	if err := h.checkHeld(ctx, "upgrade", tag != "", target, info.digest); err != nil {
		return nil, wrap("upgrade", err)
	}
	return r, nil
}

func (h *Host) resolve(ctx context.Context, ref ocibridge.Reference) (*imageInfo, error) {
	src, err := ocibridge.Open(ctx, ref, h.cfg.Images)
	if err != nil {
		return nil, err
	}
	defer h.cfg.closeQuietly(src)
	return sourceInfo(src)
}

// followedRef returns the reference that upgrades follow, at another tag if
// one is given.
func (h *Host) followedRef(tag string) (ref ocibridge.Reference, err error) {
	d, err := h.followed()
	if err != nil {
		return ref, err
	}
	if d.origin.ref == nil {
		hint := "kedge switch IMAGE makes it follow one"
		if d.origin.text != "" {
			return ref, fault.New(fault.Corrupt, hint, "the origin of %s has a reference that cannot be read: %q", d.id, d.origin.text)
		}
		return ref, fault.New(fault.Conflict, hint, "the deployment %s follows no container image", d.id)
	}
	if tag == "" {
		return *d.origin.ref, nil
	}
	return d.origin.ref.WithTag(tag)
}

// move is a change to another image.
type move struct {
	verb   string
	fetch  ocibridge.Reference // where the image is read from
	follow ocibridge.Reference // what the origin records
	hold   bool
	retain bool
	named  bool // the image or its tag was given

	allowMissingVerity bool
}

// move fetches an image and deploys it. The lock is taken only after the
// manifest was read, so that a slow registry keeps nobody out, and everything
// that was decided before is decided on what is on disk then.
func (h *Host) move(ctx context.Context, m move) (*v1.Result, error) {
	src, err := ocibridge.Open(ctx, m.fetch, h.cfg.Images)
	if err != nil {
		return nil, err
	}
	defer h.cfg.closeQuietly(src)
	info, err := sourceInfo(src)
	if err != nil {
		return nil, err
	}
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	base := list.followed()
	if err := h.changeable(list); err != nil {
		return nil, err
	}
	if m.hold && !h.Booted() {
		return nil, fault.New(fault.Usage, "leave --download-only out", "%s is not booted: nothing can be staged there", h.cfg.Sysroot)
	}
	at := isAt(base, m.follow, info.digest) && base.downloadOnly == m.hold && !m.retain
	again := m.verb == "upgrade" && base.degraded()
	if at && !again {
		return h.alreadyAt(ctx, m.verb, list, base)
	}
	if err := h.checkHeld(ctx, m.verb, m.named, base, info.digest); err != nil {
		return nil, err
	}
	if err := h.store.CheckVerity(base, m.allowMissingVerity); err != nil {
		return nil, err
	}
	if err := h.roomFor(ctx, list, info); err != nil {
		return nil, err
	}
	root, err := h.store.Import(ctx, src, m.follow, "")
	if err != nil {
		return nil, err
	}
	h.cfg.Progress.Step(v1.TaskStaging, "Deploying the image")
	layered, err := h.layer(ctx, layerBase{m.follow, root, info}, base.origin.wants, layerOptions{before: base, update: true})
	if err != nil {
		return nil, err
	}
	if at && layered.root == base.root {
		r, err := h.alreadyAt(ctx, m.verb, list, base)
		if err == nil {
			r.Warnings = append(r.Warnings, layered.warnings...)
		}
		return r, err
	}
	if layered.record != nil {
		if err := h.checkHeldLock(ctx, m.verb, m.named, base, info.digest, layered.record.lock); err != nil {
			return nil, err
		}
	}
	if current := list.current(); m.retain && current != nil {
		if err := h.store.SetPinned(current, true); err != nil {
			return nil, err
		}
	}
	r, err := h.deploy(ctx, m.verb, list, deployRequest{
		root: layered.root, ref: &m.follow, packages: layered.record, base: base, stateroot: base.stateroot, hold: m.hold, allowMissingVerity: m.allowMissingVerity,
	})
	if err == nil {
		r.Packages = layered.change(base)
		r.Warnings = append(append(r.Warnings, layered.warnings...), h.missingWarnings(list, root)...)
		r.Warnings = append(r.Warnings, h.kernelWarnings(ctx, root)...)
	}
	return r, err
}

// alreadyAt answers a move to what the host is at. Where a rollback waits for
// the reboot, switch and deploy call it off: the image was asked for by name.
// An upgrade does not bring back what was rolled back.
func (h *Host) alreadyAt(ctx context.Context, verb string, list deployments, d *deployment) (*v1.Result, error) {
	if err := h.store.Settle(ctx); err != nil {
		return nil, err
	}
	if verb == "upgrade" || d.staged || d == list.next() {
		return &v1.Result{Operation: verb, Image: d.status(), ID: d.id, Staged: d.staged, DownloadOnly: d.downloadOnly}, nil
	}
	if err := h.store.SetDefault(ctx, d); err != nil {
		return nil, err
	}
	h.changed(ctx, verb, list, d)
	return result(verb, d), nil
}

// deploy makes the deployment and does what follows every change.
func (h *Host) deploy(ctx context.Context, verb string, before deployments, r deployRequest) (*v1.Result, error) {
	k := h.keeper(ctx, before)
	stay, gone := k.behind(before, r.stateroot)
	h.store.Retain(stay)
	r.sign = func() (uki.Signer, error) { return h.ukiSigner(ctx) }
	d, err := h.store.Deploy(ctx, r)
	if err != nil {
		return nil, err
	}
	h.changed(ctx, verb, before, d, gone...)
	if _, _, err := h.relieve(context.WithoutCancel(ctx), k); err != nil {
		h.cfg.Log.Warn("older deployments were not removed; kedge cleanup does it", "error", err)
	}
	res := result(verb, d)
	res.Warnings = k.warnings()
	if d.droppedPCRs {
		res.Warnings = append(res.Warnings, "the unified kernel image made here has no signatures of PCR values, as the image's has: a TPM does not unseal for it what is bound to them (systemd-cryptenroll --tpm2-public-key)")
	}
	res.Etc = conflictsOf(etcChanges(d.etcChanges))
	return res, nil
}

// someOf lists the first of many names.
func someOf(names []string) string {
	const most = 5
	if n := len(names); n > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), n-most)
	}
	return strings.Join(names, ", ")
}

// changed does what follows a commit point: history, holds, clean-up, published
// status. Nothing of it can fail the operation, and Ctrl-C stops none of it. gone
// are those of the deployments before of which it is known why they went.
func (h *Host) changed(ctx context.Context, verb string, before deployments, d *deployment, gone ...goodbye) {
	ctx = context.WithoutCancel(ctx)
	entry := historyOf(verb, d)
	if prev := before.next(); prev != nil {
		entry.Previous = prev.id
	}
	h.record(entry)
	h.recordMissing(before, gone)
	h.chosen(ctx, verb, before, d)
	_, err := h.store.Sweep(ctx)
	if list, lerr := h.store.Deployments(); lerr == nil {
		err = errors.Join(err, h.sweepPackages(list))
	}
	if err != nil {
		h.cfg.Log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
	}
	h.publish(ctx)
}

func result(verb string, d *deployment) *v1.Result {
	return &v1.Result{
		Operation: verb, Changed: true, Staged: d.staged, DownloadOnly: d.downloadOnly,
		ID: d.id, Image: d.status(),
	}
}

// isAt reports whether a deployment is that image and follows that reference.
func isAt(d *deployment, follow ocibridge.Reference, digest string) bool {
	return d != nil && d.image != nil && d.imageDigest() == digest && d.packagesDone() && d.origin.ref != nil && *d.origin.ref == follow
}

// changeable refuses hosts on which a new deployment would lose what another
// program was told to keep.
func (h *Host) changeable(list deployments) error {
	base := list.followed()
	if base == nil {
		return h.nothingDeployed()
	}
	if s := list.staged(); s != nil && s.foreign {
		return fault.New(fault.Conflict, "reboot into it, or discard it: kedge cleanup --staged (also: ostree admin undeploy 0, rpm-ostree cleanup -p)",
			"the staged deployment %s was staged by another program and would be lost", s.id)
	}
	if h.Booted() && !h.hasFinalizer() {
		return fault.New(fault.Conflict, "kedge self install puts kedge's units on this host",
			"this host has no %s, which puts a staged deployment in place at shutdown", units.Finalize)
	}
	if len(base.origin.changes) > 0 {
		return fault.New(fault.Conflict, "undo them first (rpm-ostree reset), reboot, and run the command again",
			"the deployment %s has client-side changes that would be lost: %s", base.id, strings.Join(base.origin.changes, ", "))
	}
	return nil
}

// hasFinalizer reports whether the running machine has kedge's unit.
func (h *Host) hasFinalizer() bool {
	for _, dir := range []string{unitDir, "usr/lib/systemd/system", "run/systemd/system"} {
		if _, err := os.Stat(filepath.Join(h.cfg.Machine, dir, units.Finalize)); err == nil {
			return true
		}
	}
	return false
}

// release lets shutdown finalise what DownloadOnly staged.
func (h *Host) release(ctx context.Context) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d := list.staged()
	switch {
	case d == nil:
		return nil, fault.New(fault.NotFound, "kedge upgrade --download-only stages one", "nothing was downloaded")
	case !d.downloadOnly:
		return &v1.Result{Operation: "upgrade", Staged: true, ID: d.id, Image: d.status()}, nil
	}
	if err := h.store.Release(); err != nil {
		return nil, err
	}
	d.downloadOnly = false
	h.changed(ctx, "upgrade", list, d)
	return result("upgrade", d), nil
}
