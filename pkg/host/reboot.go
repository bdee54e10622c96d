package host

import (
	"context"
	"os/exec"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Reboot asks systemd to reboot the machine in the usual way, through which
// the staged deployment is finalised.
func Reboot(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "systemctl", "reboot").CombinedOutput()
	if err != nil {
		return fault.New(fault.Conflict, "the change is in place: reboot when it suits", "reboot: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// unitLockWait is how long a unit waits for another writer; a person is told at
// once that there is one.
const unitLockWait = 2 * time.Minute

func (h *Host) lockPatiently(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, unitLockWait)
	defer cancel()
	return h.lock(ctx)
}

// Finalize puts in place what kedge staged. kedge's unit runs it at shutdown.
func (h *Host) Finalize(ctx context.Context) error {
	unlock, err := h.lockPatiently(ctx)
	if err != nil {
		return wrap("finalize", err)
	}
	defer unlock()
	list, err := h.store.Deployments()
	if err != nil {
		return wrap("finalize", err)
	}
	var gone []goodbye
	if d := list.staged(); d != nil {
		var stay deployments
		stay, gone = h.keeper(ctx, list).behind(list, d.stateroot)
		h.store.Retain(stay)
	}
	id, err := h.store.Finalize(ctx)
	if err != nil || id == "" {
		return wrap("finalize", err)
	}
	h.recordFinalized(list, id)
	h.recordMissing(list, gone)
	return nil
}

// BootComplete is what kedge's unit runs after boot: it says in the journal why
// the last finalisation failed, settles what a boot loader gave up, removes what
// is left to do, and publishes the status.
func (h *Host) BootComplete(ctx context.Context) error {
	if failure := h.store.FinalizeFailure(); failure != "" {
		h.cfg.Log.Error("the staged deployment was not put in place at the last shutdown; this is the old one", "why", failure)
	}
	unlock, err := h.lockPatiently(ctx)
	if err != nil {
		return wrap("complete the boot", err)
	}
	defer unlock()
	list, err := h.store.Deployments()
	if err != nil {
		return wrap("complete the boot", err)
	}
	if err := h.settleFallback(ctx, list); err != nil {
		h.cfg.Log.Error("the deployment that failed is still the default; kedge rollback changes that", "error", err)
	}
	if _, err := h.store.Sweep(ctx); err != nil {
		h.cfg.Log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
	}
	if _, _, err := h.relieve(ctx, h.keeper(ctx, list)); err != nil {
		h.cfg.Log.Warn("older deployments were not removed; kedge cleanup does it", "error", err)
	}
	return h.Publish(ctx)
}

func (h *Host) recordFinalized(before deployments, id string) {
	entry := historyOf(verbFinalize, before.staged())
	entry.ID, entry.Result = id, "done"
	if d := before.current(); d != nil {
		entry.Previous = d.id
	}
	h.record(entry)
}
