package v1

import "time"

// AutoRollback says whether a host that fails comes back by itself.
type AutoRollback struct {
	// State is supported, unsupported, or unknown: a sysroot that is not booted
	// does not tell.
	State string `json:"state"`
	// Reason says why it is not supported.
	Reason string `json:"reason,omitempty"`
}

// The values of AutoRollback.State.
const (
	RollbackSupported   = "supported"
	RollbackUnsupported = "unsupported"
	RollbackUnknown     = "unknown"
)

// Identity is what a root is made of, as far as it decides whether it boots.
type Identity struct {
	// Image is the digest of the base image's manifest; where a root is no
	// container image, the store's own name of it.
	Image string `json:"image"`
	// Packages is the digest of the lock of client-side packages and of what was
	// asked for of the initramfs, "" for none.
	Packages string   `json:"packages,omitempty"`
	Kargs    []string `json:"kargs"`
	// Initramfs is the sha256 of an initramfs made on this host; the image's own
	// counts with the image.
	Initramfs string `json:"initramfs,omitempty"`
}

// The states of Health.
const (
	HealthGood   = "good"
	HealthFailed = "failed"
)

// Health is how the last boot of a root that was judged went.
type Health struct {
	// State is good or failed.
	State string    `json:"state"`
	Time  time.Time `json:"time"`
	// Boot is the kernel's boot id.
	Boot string `json:"boot"`
	// Check is the path of the check that failed, where one did.
	Check string `json:"check,omitempty"`
	// Reason says why the boot failed.
	Reason string `json:"reason,omitempty"`
	// Failures counts the failed boots since the last good one.
	Failures int `json:"failures,omitempty"`
	// Passed counts the checks that passed.
	Passed int `json:"passed"`
	// Checks are those that did not pass, up to twenty.
	Checks []HealthCheck `json:"checks,omitempty"`
	// Warnings are what is wrong with the checks' configuration.
	Warnings []string `json:"warnings,omitempty"`
}

// Tries are how often a boot loader has tried a boot entry and will still try it.
type Tries struct {
	Left uint64 `json:"left"`
	Done uint64 `json:"done"`
}

// The outcomes of HealthCheck.
const (
	CheckPassed        = "passed"
	CheckFailed        = "failed"
	CheckTimedOut      = "timed out"
	CheckNotExecutable = "not executable"
	CheckDisabled      = "disabled"
	CheckNotRun        = "not run"
)

// HealthCheck is what came of one check.
type HealthCheck struct {
	Path string `json:"path"`
	// Required says that the boot fails with the check.
	Required bool `json:"required"`
	// Outcome is passed, failed, timed out, not executable, disabled or not run.
	Outcome string `json:"outcome"`
	// Status is how the check ended, such as "exit status 1".
	Status       string `json:"status,omitempty"`
	Milliseconds int64  `json:"milliseconds,omitempty"`
	// Output is the end of what the check printed, up to 4 KiB.
	Output string `json:"output,omitempty"`
}

// Why a root is held, in Quarantined.Reason and RollbackRecord.Reason.
const (
	HeldCheck     = "check failed"
	HeldExhausted = "tries exhausted"
	HeldByHand    = "rolled back by hand"
)

// Quarantined is a root that upgrade and switch do not stage again by
// themselves; one that was rolled back by hand is held from upgrade alone.
type Quarantined struct {
	// Key names the root: 12 hex digits.
	Key      string   `json:"key"`
	Identity Identity `json:"identity"`
	// LocalKargs are the Kargs that the image did not bring itself.
	LocalKargs []string `json:"localKargs"`
	// ID is the deployment, which may be gone.
	ID      string    `json:"id"`
	Origin  string    `json:"origin,omitempty"`
	Version string    `json:"version,omitempty"`
	Time    time.Time `json:"time"`
	// Reason is "check failed", "tries exhausted" or "rolled back by hand".
	Reason string `json:"reason"`
	Check  string `json:"check,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// Who went back, in RollbackRecord.By.
const (
	ByLoader = "boot loader"
	ByMenu   = "boot menu"
	ByUser   = "user"
)

// RollbackRecord is the last time that the host went back.
type RollbackRecord struct {
	Time time.Time `json:"time"`
	// By is "boot loader", "boot menu" or "user".
	By string `json:"by"`
	// From and To are deployments.
	From        string `json:"from"`
	FromDigest  string `json:"fromDigest,omitempty"`
	FromVersion string `json:"fromVersion,omitempty"`
	To          string `json:"to"`
	Reason      string `json:"reason"`
	Check       string `json:"check,omitempty"`
	Detail      string `json:"detail,omitempty"`
}

// HealthStatus is the answer of `health status`.
type HealthStatus struct {
	// Current is how the last judged boot of what runs went, or on a sysroot that
	// is not booted, of the default; null before there was one.
	Current      *Health         `json:"current"`
	AutoRollback AutoRollback    `json:"autoRollback"`
	LastRollback *RollbackRecord `json:"lastRollback"`
	Quarantine   []Quarantined   `json:"quarantine"`
}
