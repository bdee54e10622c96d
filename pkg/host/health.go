package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/assess"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/fault"
)

// What the units of a boot tell each other, beneath the machine's root. It is
// gone with the boot.
const (
	runDir     = "run/kedge"
	reportFile = runDir + "/health.json"  // what came of the checks
	checkFile  = runDir + "/health.check" // the path of the check that runs
	goodFile   = runDir + "/health.good"  // this boot was found good
)

// CheckHealth runs the checks of the running machine and leaves what came of
// them in /run/kedge for JudgeBoot. kedge's unit runs it after boot. It opens no
// sysroot: the checks are to see the machine's mounts as they are.
func CheckHealth(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	machine, err := os.OpenRoot(cfg.Machine)
	if err != nil {
		return wrap("check the health", err)
	}
	defer machine.Close()
	if err := machine.MkdirAll(runDir, 0o755); err != nil {
		return wrap("check the health", err)
	}
	checks, problems := assess.Find(cfg.Machine)
	begun := func(c assess.Check) {
		if err := machine.WriteFile(checkFile, []byte(c.Path), 0o644); err != nil {
			cfg.Log.Warn("which check runs is not noted", "error", err)
		}
	}
	verdict, err := assess.Run(ctx, cfg.Machine, checks, begun, func(r v1.HealthCheck) {
		if r.Outcome != v1.CheckPassed {
			cfg.Log.Warn("health check", "check", r.Path, "outcome", r.Outcome, "status", r.Status, "output", r.Output)
		}
	})
	if err != nil {
		return wrap("check the health", err)
	}
	for _, p := range problems {
		verdict.Warnings = append(verdict.Warnings, p.Error())
	}
	verdict.Time, verdict.Boot = cfg.Clock().UTC(), bootID(cfg.Machine)
	data, err := json.Marshal(verdict)
	if err != nil {
		return err
	}
	return wrap("check the health", atomicfile.Write(machine, reportFile, data, 0o644))
}

// tries is how often a boot loader that counts tries a new root of the sysroot. 0,
// not counted, is better than a good root that nobody can bless.
func (c Config) tries() uint64 {
	if !c.onMachine() {
		return assess.DefaultTries
	}
	if !c.canBless() {
		return 0
	}
	return assess.Tries(c.Machine)
}

// bootID names this boot of the machine, "" where the kernel does not say.
func bootID(machine string) string {
	id, err := os.ReadFile(filepath.Join(machine, "proc/sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// report returns what CheckHealth left in this boot; nil for nothing.
func (h *Host) report() *v1.Health {
	data, err := os.ReadFile(filepath.Join(h.cfg.Machine, reportFile))
	var v v1.Health
	if err != nil || json.Unmarshal(data, &v) != nil || v.Boot != bootID(h.cfg.Machine) {
		return nil
	}
	return &v
}

// JudgeBoot records what came of the checks. It fails where the boot did, which
// keeps boot-complete.target, and the blessing of the boot entry, from being
// reached.
func (h *Host) JudgeBoot(ctx context.Context) error {
	d, err := h.bootedDeployment()
	if err != nil {
		return wrap("judge the boot", err)
	}
	v := h.report()
	if v == nil {
		return fault.New(fault.NotFound, "kedge internals check-health runs the checks", "judge the boot: there is no report of the checks of this boot")
	}
	verdict, err := h.judge(ctx, d, *v)
	switch {
	case verdict.State == v1.HealthFailed:
		return fault.New(fault.Conflict, "kedge health status shows what came of the checks", "this boot failed: %s", verdict.Reason)
	case err != nil:
		// A full disk is no fault of the root.
		h.cfg.Log.Error("that this boot is good was not recorded", "error", err)
	}
	return nil
}

// judge records a verdict on the booted deployment and returns it, completed.
func (h *Host) judge(ctx context.Context, d *deployment, v v1.Health) (v1.Health, error) {
	err := h.updateRecords(func(r *assess.Records) { v = r.Judge(d.id, identity(d), v) })
	entry := historyOf(verbBoot, d)
	entry.Result, entry.Detail = v.State, v.Reason
	h.record(entry)
	if v.State == v1.HealthGood {
		h.noteGood()
	}
	h.publish(ctx)
	return v, err
}

// noteGood notes for the rest of this boot that it was found good: what fails
// later is no reason to give the root up.
func (h *Host) noteGood() {
	file := filepath.Join(h.cfg.Machine, goodFile)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, nil, 0o644)
	}
	if err != nil {
		h.cfg.Log.Warn("that this boot is good was not noted", "error", err)
	}
}

// BootFailed is what kedge's unit runs when the boot was judged bad, or when
// what judges it was killed, which is recorded here then. It reboots the machine
// where that leads somewhere else, and logs why not otherwise.
func (h *Host) BootFailed(ctx context.Context) error {
	d, err := h.bootedDeployment()
	if err != nil {
		return wrap("act on the failed boot", err)
	}
	boot := bootID(h.cfg.Machine)
	v := h.records().Verdict(identity(d))
	if v == nil || v.Boot != boot || v.State != v1.HealthFailed {
		fresh := v1.Health{State: v1.HealthFailed, Time: h.cfg.Clock().UTC(), Boot: boot, Reason: "what judges the boot was killed or failed"}
		if report := h.report(); report != nil {
			fresh.Checks, fresh.Passed = report.Checks, report.Passed
		} else if check, err := os.ReadFile(filepath.Join(h.cfg.Machine, checkFile)); err == nil {
			fresh.Check = string(check)
			fresh.Reason = fmt.Sprintf("what runs the checks was killed, or took too long, while %s ran", check)
		}
		// Without the record nothing would end a loop of reboots.
		if fresh, err = h.judge(ctx, d, fresh); err != nil {
			return wrap("act on the failed boot: it cannot be recorded, and the machine is not rebooted", err)
		}
		v = &fresh
	}
	ok, why := h.failedState(d, v).Reboot()
	if !ok {
		h.cfg.Log.Error("this boot failed, and the machine is not rebooted", "failure", v.Reason, "why", why)
		return nil
	}
	h.cfg.Log.Error("this boot failed; rebooting, for the boot loader to try again or to take what was before", "failure", v.Reason)
	return Reboot(ctx)
}

func (h *Host) failedState(d *deployment, v *v1.Health) assess.State {
	_, good := os.Stat(filepath.Join(h.cfg.Machine, goodFile))
	return assess.State{
		Counting: h.counting(d), Fallback: h.hasFallback(d), Failures: v.Failures, Good: good == nil,
	}
}

// hasFallback reports whether a boot loader that gives d up has something else
// to boot that is not known to fail.
func (h *Host) hasFallback(d *deployment) bool {
	list, err := h.store.Deployments()
	if err != nil {
		return false
	}
	r := h.records()
	return list.find(func(o *deployment) bool {
		return o.id != d.id && !o.staged && o.stateroot == d.stateroot && failureOf(r, o) == nil
	}) != nil
}

func (h *Host) bootedDeployment() (*deployment, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	if d := list.booted(); d != nil {
		return d, nil
	}
	return nil, fault.New(fault.Usage, "leave --sysroot out on the booted host", "nothing of %s is booted", h.cfg.Sysroot)
}

// records are what is remembered of boots. It is only told where they cannot be
// read: nothing that boots depends on them.
func (h *Host) records() *assess.Records {
	r, err := assess.Load(h.root, h.store.StateDir())
	if err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			h.cfg.Log.Warn("what is remembered of boots cannot be read", "error", err)
		}
		return &assess.Records{}
	}
	return r
}

func (h *Host) updateRecords(change func(*assess.Records)) error {
	return assess.Update(h.root, h.store.StateDir(), func(r *assess.Records) error {
		change(r)
		return nil
	})
}

// HealthStatus says how this boot went, whether a bad one would be undone, and
// what is held back.
func (h *Host) HealthStatus(context.Context) (*v1.HealthStatus, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, wrap("health status", err)
	}
	r, err := assess.Load(h.root, h.store.StateDir())
	if err != nil {
		return nil, wrap("health status", err)
	}
	out := &v1.HealthStatus{AutoRollback: h.autoRollback(), LastRollback: r.Rollback, Quarantine: append([]v1.Quarantined{}, r.Quarantine...)}
	if d := list.current(); d != nil {
		out.Current = r.Verdict(identity(d))
	}
	return out, nil
}

// autoRollback says whether a root that fails gives way by itself.
func (h *Host) autoRollback() v1.AutoRollback {
	if !h.Booted() {
		return v1.AutoRollback{State: v1.RollbackUnknown, Reason: "it depends on the boot loader, which is known on the booted host"}
	}
	list, err := h.store.Deployments()
	if err != nil {
		return v1.AutoRollback{State: v1.RollbackUnknown, Reason: err.Error()}
	}
	if c := h.counting(list.booted()); !c.Counts {
		return v1.AutoRollback{State: v1.RollbackUnsupported, Reason: c.Why}
	}
	if !h.cfg.canBless() {
		return v1.AutoRollback{State: v1.RollbackUnsupported, Reason: "the EFI system partition is not mounted at /efi, /boot or /boot/efi, where systemd-bless-boot looks for it"}
	}
	return v1.AutoRollback{State: v1.RollbackSupported}
}

// MarkGood records that the current deployment is good whatever its checks said,
// lets it out of quarantine, and blesses its entry where the boot loader counts
// it.
func (h *Host) MarkGood(ctx context.Context) (*v1.Result, error) {
	r, err := h.markGood(ctx)
	return r, wrap("health mark-good", err)
}

func (h *Host) markGood(ctx context.Context) (*v1.Result, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	d := list.current()
	if d == nil {
		return nil, h.nothingDeployed()
	}
	res := &v1.Result{Operation: "health mark-good", Changed: true, ID: d.id, Image: d.status()}
	v := v1.Health{State: v1.HealthGood, Time: h.cfg.Clock().UTC(), Reason: "marked good by hand"}
	if d.booted {
		v.Boot = bootID(h.cfg.Machine)
		if err := h.bless(ctx, d); err != nil {
			return nil, err
		}
	} else if d.counter != nil {
		res.Warnings = append(res.Warnings, "its boot entry is still counted: the boot loader gives it up when its tries are used up and no boot was good")
	}
	if _, err := h.judge(ctx, d, v); err != nil {
		return nil, err
	}
	return res, nil
}

// counting says how boots of the running machine are counted.
func (h *Host) counting(booted *deployment) assess.Counting {
	l, own := h.store.Loader().(loader.Counter)
	if !own {
		return assess.ReadCounting(h.cfg.Machine)
	}
	c := assess.Counting{Loader: h.store.Loader().Name(), Own: true}
	c.Counts, c.Why = l.Counts()
	if booted != nil && booted.counter != nil {
		if c.Counted = booted.counter.Done > 0; !c.Counted {
			c.Counts, c.Why = false, "the boot loader did not write down that it tried what runs"
		}
	}
	return c
}

// BlessBoot is what kedge's unit runs when the boot is complete, where systemd does
// not say to the boot loader that it was good.
func (h *Host) BlessBoot(ctx context.Context) error {
	d, err := h.bootedDeployment()
	if err == nil && h.counting(d).Own {
		err = h.bless(ctx, d)
	}
	return wrap("mark the boot as good", err)
}

// bless has the boot loader not count the booted deployment any more.
func (h *Host) bless(ctx context.Context, d *deployment) error {
	c := h.counting(d)
	if c.Own {
		if d.counter == nil {
			return nil
		}
		unlock, err := h.lockPatiently(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		return h.store.Bless(ctx)
	}
	if !c.Counted {
		return nil
	}
	if !c.Counts {
		return fault.New(fault.Conflict, "add the package with systemd-bless-boot to the image", "%s", c.Why)
	}
	out, err := exec.CommandContext(ctx, path.Join(h.cfg.Machine, loader.BlessProgram), "good").CombinedOutput()
	if err != nil {
		return fault.New(fault.IO, "the boot loader's file system has to be mounted and writable", "systemd-bless-boot good: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
