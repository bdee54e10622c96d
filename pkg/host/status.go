package host

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Status returns what is booted, staged, next and kept.
func (h *Host) Status(ctx context.Context) (*v1.Host, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, wrap("status", err)
	}
	out := v1.NewHost()
	s := &out.Status
	next, booted, rollback := list.next(), list.booted(), list.rollback()
	s.Kedge = &v1.KedgeStatus{Backend: h.store.Name(), Generation: h.backend.generation(h.cfg), FinalizeFailure: h.store.FinalizeFailure()}
	records := h.describeHealth(s.Kedge)
	for _, d := range list {
		entry := h.entry(d, d == next)
		entryHealth(records, d, entry.Kedge)
		switch d {
		case list.staged():
			s.Staged = entry
		case booted:
			s.Booted = entry
		case rollback:
			s.Rollback = entry
		default:
			s.OtherDeployments = append(s.OtherDeployments, *entry)
		}
	}
	if booted != nil && rollback != nil && rollback.index < booted.index {
		s.RollbackQueued, out.Spec.BootOrder = true, v1.BootOrderRollback
	}
	if d := list.followed(); d != nil && d.origin.ref != nil {
		ref := apiReference(*d.origin.ref)
		out.Spec.Image = &ref
	}
	if s.Booted != nil && s.Booted.Image != nil {
		t := v1.TypeBootcHost
		s.Type = &t
	}
	if h.Booted() {
		s.UsrOverlay = h.usrOverlay()
		s.ReadOnly = h.readOnlyMedium()
	}
	s.Kedge.Bootloader = h.bootloader()
	for _, problem := range h.store.Problems() {
		s.Kedge.Warnings = append(s.Kedge.Warnings, problem.Error())
	}
	s.Kedge.Warnings = append(s.Kedge.Warnings, h.store.Warnings(list)...)
	if n, err := unlisted(h.root, h.backend.deployments); err == nil && n > 0 && len(list) == 0 {
		s.Kedge.Warnings = append(s.Kedge.Warnings, unlistedText(n))
	}
	if h.Booted() {
		_, err := h.policy(ctx, list)
		s.Kedge.Warnings = append(s.Kedge.Warnings, policyWarnings(err)...)
	}
	return out, nil
}

func (h *Host) entry(d *deployment, next bool) *v1.BootEntry {
	e := &v1.BootEntry{
		Incompatible: d.origin.incompatible, Pinned: d.pinned, DownloadOnly: d.downloadOnly,
		Kedge: &v1.KedgeEntry{
			ID: d.id, Index: d.index, Next: next, Backend: h.store.Name(), Origin: d.origin.text,
			Kargs: d.kargs, Packages: h.packages(d), Initramfs: ownInitramfs(d), Degraded: d.degraded(), SignedHere: d.signedHere,
		},
	}
	h.store.Describe(d, e)
	if e.Kedge.Kargs == nil {
		e.Kedge.Kargs = []string{}
	}
	if e.Kedge.Origin == "" {
		e.Kedge.Origin = d.origin.refspec
	}
	if d.image != nil {
		e.Kedge.Version, e.Kedge.Digest = d.image.version, d.image.digest
	}
	if d.origin.record != nil {
		e.Kedge.BaseImage = d.status()
	}
	// bootc shows no image where it would lose changes by an upgrade.
	if !d.origin.incompatible {
		e.Image = d.status()
		if d.update != nil && e.Image != nil {
			e.CachedUpdate = d.update.status(*d.origin.ref)
		}
	}
	return e
}

// readOnlyMedium reports whether the sysroot is on something that cannot be
// written, as that of a live system.
func (h *Host) readOnlyMedium() bool {
	var st unix.Statfs_t
	if unix.Statfs(h.root.Name(), &st) != nil {
		return false
	}
	return st.Type == unix.SQUASHFS_MAGIC || st.Type == unix.ISOFS_SUPER_MAGIC || st.Type == unix.EROFS_SUPER_MAGIC_V1
}

// publishedFile is where the status is for users that cannot read the sysroot.
const publishedFile = "run/kedge/status.json"

// Publish writes the status to /run/kedge/status.json. On a sysroot that is
// not booted it does nothing.
func (h *Host) Publish(ctx context.Context) error {
	if !h.Booted() {
		return nil
	}
	s, err := h.Status(ctx)
	if err != nil {
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	machine, err := os.OpenRoot(h.cfg.Machine)
	if err != nil {
		return wrap("publish the status", err)
	}
	defer machine.Close()
	if err := machine.MkdirAll(filepath.Dir(publishedFile), 0o755); err != nil {
		return wrap("publish the status", err)
	}
	return wrap("publish the status", atomicfile.Write(machine, publishedFile, append(data, '\n'), 0o644))
}

// publish is Publish after a commit point.
func (h *Host) publish(ctx context.Context) {
	if err := h.Publish(ctx); err != nil {
		h.cfg.Log.Warn("the status was not published", "error", err)
	}
}

// ReadStatusPackages is ReadStatus, and says of the next boot in which packages it
// differs from what runs; on a sysroot that is not booted, from where a rollback
// leads. It reads two package databases, which needs root.
func ReadStatusPackages(ctx context.Context, cfg Config) (*v1.Host, error) {
	h, err := Open(ctx, cfg.withDefaults())
	if err != nil {
		return nil, err
	}
	defer h.Close()
	s, err := h.Status(ctx)
	if err != nil {
		return nil, err
	}
	list, err := h.store.Deployments()
	if err != nil {
		return nil, wrap("status", err)
	}
	from, to := list.booted(), list.next()
	if from == nil {
		from = list.rollback()
	}
	if from == nil || to == nil || from == to || from.root == to.root {
		return s, nil
	}
	changes, err := h.diffPackages(ctx, from.root, to.root)
	if err != nil {
		return nil, wrap("status", err)
	}
	entries := []*v1.BootEntry{s.Status.Staged, s.Status.Booted, s.Status.Rollback}
	for i := range s.Status.OtherDeployments {
		entries = append(entries, &s.Status.OtherDeployments[i])
	}
	for _, e := range entries {
		if e != nil && e.Kedge.Next {
			e.Kedge.PackageChanges = changes
		}
	}
	return s, nil
}

// ReadStatus returns the status of a sysroot. Root reads the sysroot itself; a
// user who may not takes what was published, if that is still true.
func ReadStatus(ctx context.Context, cfg Config) (*v1.Host, error) {
	cfg = cfg.withDefaults()
	h, err := Open(ctx, cfg)
	if err == nil {
		defer h.Close()
		s, serr := h.Status(ctx)
		if serr == nil || !errors.Is(serr, fs.ErrPermission) {
			return s, serr
		}
		err = serr
	}
	if fault.KindOf(err) != fault.Denied {
		return nil, err
	}
	s, perr := published(cfg)
	if perr != nil {
		return nil, err
	}
	return s, nil
}

func published(cfg Config) (*v1.Host, error) {
	data, err := os.ReadFile(filepath.Join(cfg.Machine, publishedFile))
	if err != nil {
		return nil, err
	}
	var s v1.Host
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fault.New(fault.Corrupt, "", "read %s: %w", publishedFile, err)
	}
	if s.Status.Kedge == nil {
		return &s, nil
	}
	b, err := backendNamed(s.Status.Kedge.Backend)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "", "read %s: %w", publishedFile, err)
	}
	current := b.generation(cfg)
	if s.Status.Kedge.Generation != current && !strings.Contains(current, hidden) {
		s.Status.Kedge.Warnings = append(s.Status.Kedge.Warnings, "this status was published before the last change; run kedge status as root for the current one")
	}
	return &s, nil
}
