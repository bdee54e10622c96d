package host

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/assess"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// identity is what a deployment is made of.
func identity(d *deployment) v1.Identity {
	i := v1.Identity{Image: d.root, Kargs: d.kargs}
	if d.image != nil {
		i.Image = d.imageDigest()
	}
	if r := d.origin.record; r != nil {
		i.Packages = r.lock
	}
	return i
}

// localKargs are the arguments of a deployment that its image does not bring.
func (h *Host) localKargs(ctx context.Context, d *deployment) []string {
	image, err := h.store.ImageKargs(ctx, d)
	if err != nil {
		h.cfg.Log.Warn("the image's own kernel arguments cannot be told from others", "deployment", d.id, "error", err)
		return d.kargs
	}
	return karg.Args(d.kargs).Rebase(image, nil)
}

// quarantined describes a deployment that is to be held.
func (h *Host) quarantined(ctx context.Context, d *deployment, f failure) v1.Quarantined {
	q := v1.Quarantined{
		Identity: identity(d), LocalKargs: h.localKargs(ctx, d), ID: d.id, Origin: d.origin.text,
		Time: h.cfg.Clock().UTC(), Reason: f.reason, Check: f.check, Detail: f.detail,
	}
	if d.image != nil {
		q.Version = d.image.version
	}
	return q
}

// failure is why a deployment is given up.
type failure struct {
	reason, check, detail string
	// exhausted: the boot loader gave it up.
	exhausted bool
}

// failureOf returns why a deployment is known to fail: a check did, or its tries
// are used up; nil where it is not. A boot that only broke off, as in a power
// cut, leaves neither. The boot loader takes a try off before it starts a root:
// what runs with none left is at its last one.
func failureOf(r *assess.Records, d *deployment) *failure {
	exhausted := d.counter != nil && d.counter.Left == 0 && !d.booted
	if v := r.Verdict(identity(d)); v != nil && v.State == v1.HealthFailed {
		return &failure{v1.HeldCheck, v.Check, v.Reason, exhausted}
	}
	if exhausted {
		return &failure{v1.HeldExhausted, "", fmt.Sprintf("none of %d boots was found good", d.counter.Done), true}
	}
	return nil
}

// settleFallback is called after a boot. Where the machine runs something else
// than the default, because that is known to fail, it quarantines what failed and
// makes what runs the default. Where the default is not known to fail, somebody
// chose another line of the boot menu, and all stays.
//
// The quarantine is recorded before the default changes, for afterwards nothing
// tells any more that there was a failure.
func (h *Host) settleFallback(ctx context.Context, list deployments) error {
	booted := list.booted()
	first := list.find(func(d *deployment) bool { return !d.staged })
	if booted == nil || first == booted {
		return nil
	}
	r := h.records()
	f := failureOf(r, first)
	// The verdict may be of what runs as well, which a boot loader took for want
	// of anything better.
	if f == nil || assess.Same(identity(first), identity(booted)) {
		return nil
	}
	by := v1.ByMenu
	if f.exhausted {
		by = v1.ByLoader
	}
	record := h.rollbackRecord(first, booted, by, *f)
	var gone []v1.Quarantined
	for _, d := range list {
		if d == booted {
			break
		}
		if f := failureOf(r, d); f != nil && !d.staged {
			gone = append(gone, h.quarantined(ctx, d, *f))
		}
	}
	if err := h.updateRecords(func(r *assess.Records) {
		for _, q := range slices.Backward(gone) {
			r.Hold(q)
		}
		r.Rollback = record
	}); err != nil {
		return err
	}
	h.cfg.Log.Error("the default deployment failed; what runs is the default again", "failed", first.id, "why", record.Reason, "detail", record.Detail, "by", by)
	if err := h.store.SetDefault(ctx, booted); err != nil {
		return err
	}
	entry := historyOf("rollback", booted)
	entry.Previous, entry.Detail = first.id, fmt.Sprintf("by the %s: %s: %s", by, record.Reason, record.Detail)
	h.record(entry)
	return nil
}

func (h *Host) rollbackRecord(from, to *deployment, by string, f failure) *v1.RollbackRecord {
	r := &v1.RollbackRecord{Time: h.cfg.Clock().UTC(), By: by, From: from.id, To: to.id, Reason: f.reason, Check: f.check, Detail: f.detail}
	if from.image != nil {
		r.FromDigest, r.FromVersion = from.image.digest, from.image.version
	}
	return r
}

// checkHeld refuses a move to an image that failed on this host, or that was
// rolled back from by hand, unless it was asked for by its name.
// With packages that is known only when they have been resolved (checkHeldLock).
func (h *Host) checkHeld(ctx context.Context, verb string, named bool, base *deployment, digest string) error {
	if base == nil || !base.origin.wants.empty() {
		return nil
	}
	return h.checkHeldLock(ctx, verb, named, base, digest, "")
}

// checkHeldLock is checkHeld for an image with the packages of a lock.
func (h *Host) checkHeldLock(ctx context.Context, verb string, named bool, base *deployment, digest, lock string) error {
	if verb == "deploy" {
		return nil
	}
	r := h.records()
	if !slices.ContainsFunc(r.Quarantine, func(q v1.Quarantined) bool { return q.Identity.Image == digest }) {
		return nil
	}
	target := identity(base)
	target.Image, target.Packages = digest, lock
	q := r.HeldTarget(target, h.localKargs(ctx, base), !named)
	if q == nil {
		return nil
	}
	what := strings.TrimSpace(fmt.Sprintf("%s %s", q.Version, digest))
	if q.Reason == v1.HeldByHand {
		return fault.New(fault.Held, "kedge deploy takes it all the same, kedge health quarantine clear lets upgrade take it again; a newer image is not held",
			"%s is held: it was rolled back by hand at %s", what, q.Time.UTC().Format(time.DateTime))
	}
	return fault.New(fault.Held, "kedge health status shows what failed; kedge deploy takes it all the same, kedge health quarantine clear lets it go; a newer image is not held",
		"%s is in quarantine: it failed on this host at %s: %s: %s", what, q.Time.UTC().Format(time.DateTime), q.Reason, q.Detail)
}

// chosen keeps the records in step with a choice somebody made: what is to boot
// next is not held by hand any more and is judged anew; what was rolled back is
// held; and a hold by hand ends when the host moves on to another image.
func (h *Host) chosen(ctx context.Context, verb string, before deployments, d *deployment) {
	from := before.current()
	back := verb == "rollback" && from != nil && from.id != d.id
	var held v1.Quarantined
	if back {
		f := failure{reason: v1.HeldByHand}
		if known := failureOf(h.records(), from); known != nil {
			f = *known
		}
		held = h.quarantined(ctx, from, f)
	}
	err := h.updateRecords(func(r *assess.Records) {
		r.Release(func(q v1.Quarantined) bool {
			return q.Reason == v1.HeldByHand && (assess.Same(q.Identity, identity(d)) || verb == "upgrade" || verb == "switch")
		})
		if v := r.Verdict(identity(d)); v != nil && v.State == v1.HealthFailed {
			r.Forget(identity(d))
		}
		switch {
		case back:
			r.Hold(held)
			r.Rollback = h.rollbackRecord(from, d, v1.ByUser, failure{reason: held.Reason, check: held.Check, detail: held.Detail})
		case r.Rollback != nil && r.Rollback.By == v1.ByUser && r.Rollback.From == d.id:
			r.Rollback = nil // undone
		}
	})
	if err != nil {
		h.cfg.Log.Warn("what is held from upgrades was not recorded", "error", err)
	}
}

// Quarantine lists what upgrade and switch do not stage again by themselves.
func (h *Host) Quarantine(context.Context) ([]v1.Quarantined, error) {
	r, err := assess.Load(h.root, h.store.StateDir())
	if err != nil {
		return nil, wrap("health quarantine list", err)
	}
	return append([]v1.Quarantined{}, r.Quarantine...), nil
}

// ClearQuarantine lets go what the names say, which are keys, digests of images
// or deployments; without names, all. It returns what went. A name of nothing is
// NotFound, and then nothing goes.
func (h *Host) ClearQuarantine(ctx context.Context, names ...string) ([]v1.Quarantined, error) {
	gone := []v1.Quarantined{}
	err := assess.Update(h.root, h.store.StateDir(), func(r *assess.Records) error {
		for _, name := range names {
			if !slices.ContainsFunc(r.Quarantine, func(q v1.Quarantined) bool { return named(q, name) }) {
				return fault.New(fault.NotFound, "kedge health quarantine list shows what is held", "nothing that is held is called %q", name)
			}
		}
		gone = append(gone, r.Release(func(q v1.Quarantined) bool {
			// What failed has a verdict beside it, which would bring it back.
			all := len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return named(q, name) })
			if all {
				r.Forget(q.Identity)
			}
			return all
		})...)
		return nil
	})
	if err != nil {
		return nil, wrap("health quarantine clear", err)
	}
	for _, q := range gone {
		h.record(v1.HistoryEntry{Verb: "quarantine clear", Result: "done", ID: q.ID, Image: q.Origin, Digest: q.Identity.Image, Version: q.Version, Detail: q.Reason})
	}
	h.publish(ctx)
	return gone, nil
}

func named(q v1.Quarantined, name string) bool {
	return q.Key == name || q.ID == name || trimDigest(q.Identity.Image) == trimDigest(name)
}

// describeHealth adds to a status what is remembered of boots.
func (h *Host) describeHealth(s *v1.KedgeStatus) *assess.Records {
	r := h.records()
	auto := h.autoRollback()
	s.AutoRollback, s.LastRollback, s.Quarantine = &auto, r.Rollback, r.Quarantine
	return r
}

// entryHealth adds to an entry what is remembered of its boots.
func entryHealth(r *assess.Records, d *deployment, e *v1.KedgeEntry) {
	e.Health = r.Verdict(identity(d))
	if q := r.Held(identity(d)); q != nil {
		e.Held = q.Reason
	}
	if c := d.counter; c != nil {
		e.Tries = &v1.Tries{Left: c.Left, Done: c.Done}
	}
}
