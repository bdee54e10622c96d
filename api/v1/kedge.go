package v1

import "time"

// KedgeStatus is what kedge says of the host beside bootc's fields.
type KedgeStatus struct {
	// Backend is ostree or composefs.
	Backend string `json:"backend"`
	// Generation changes with every change of the deployments; a published
	// status of another generation is stale.
	Generation string `json:"generation"`
	// FinalizeFailure is why the staged deployment of the boot before was not
	// put in place; left out where nothing failed.
	FinalizeFailure string `json:"finalizeFailure,omitempty"`
	// AutoRollback says whether a root that fails gives way by itself.
	AutoRollback *AutoRollback `json:"autoRollback,omitempty"`
	// LastRollback is the last time that the host went back.
	LastRollback *RollbackRecord `json:"lastRollback,omitempty"`
	// Quarantine is what is held back from upgrade and switch.
	Quarantine []Quarantined `json:"quarantine,omitempty"`
	// Bootloader is what starts the host.
	Bootloader *Bootloader `json:"bootloader,omitempty"`
	// Warnings are things to know that are no errors.
	Warnings []string `json:"warnings,omitempty"`
}

// KedgeEntry is what kedge says of a deployment beside bootc's fields.
type KedgeEntry struct {
	// ID names the deployment for as long as it exists; of several entries with
	// one composefs image it ends in a number that the boot order gives.
	ID string `json:"id"`
	// Index is the place in boot order, which deploy, pin and diff take; a
	// staged deployment has 0.
	Index int `json:"index"`
	// Next marks the deployment that the next boot takes.
	Next    bool   `json:"next"`
	Backend string `json:"backend"`
	// Version and Digest describe the image even where Image is null because
	// of client-side changes.
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"`
	// Origin is the reference as the origin file has it.
	Origin   string    `json:"origin,omitempty"`
	Kargs    []string  `json:"kargs"`
	Packages *Packages `json:"packages,omitempty"`
	// Initramfs is left out where the deployment has the image's own.
	Initramfs *Initramfs `json:"initramfs,omitempty"`
	// SignedHere says that it boots a unified kernel image which was made of its
	// image's and signed on this host.
	SignedHere bool `json:"signedHere,omitempty"`
	// Health is how the last boot of this root that was judged went; left out
	// before there was one.
	Health *Health `json:"health,omitempty"`
	// Tries are left out where the boot entry is not counted.
	Tries *Tries `json:"tries,omitempty"`
	// Held is why upgrade and switch do not stage this root again.
	Held string `json:"held,omitempty"`
	// BaseImage is the image that the packages were put on; Digest is then that of
	// the image with them.
	BaseImage *ImageStatus `json:"baseImage,omitempty"`
	// Degraded says that packages were left out which the base image cannot take.
	Degraded bool `json:"degraded,omitempty"`
	// PackageChanges are the packages in which what the next boot takes differs
	// from what runs, or would run before it. It is left out where nothing differs,
	// where it was not asked for, and in every other entry.
	PackageChanges []PackageDiff `json:"packageChanges,omitempty"`
}

// HistoryVersion is the format of HistoryEntry.
const HistoryVersion = 1

// HistoryEntry is one change of the deployments: one line of
// /ostree/kedge/history.
type HistoryEntry struct {
	V    int       `json:"v"`
	Time time.Time `json:"time"`
	// Verb is the command that made the change.
	Verb string `json:"verb"`
	// Result is done, or staged where the change waits for shutdown.
	Result  string `json:"result"`
	ID      string `json:"id,omitempty"`
	Image   string `json:"image,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Version string `json:"version,omitempty"`
	// Previous is the deployment that was the default before.
	Previous string `json:"previous,omitempty"`
	Detail   string `json:"detail,omitempty"`
}

// Plan is what an operation would do and whether it can.
type Plan struct {
	// Operation is switch or upgrade.
	Operation string       `json:"operation"`
	Possible  bool         `json:"possible"`
	Changed   bool         `json:"changed"`
	Target    *ImageStatus `json:"target"`
	// Fetch is what has to come from the image's source.
	Fetch PlanFetch   `json:"fetch"`
	Space []PlanSpace `json:"space"`
	// Removes are the deployments that go for it.
	Removes []RemovedDeployment `json:"removes,omitempty"`
	// Problems stop the operation; Warnings do not.
	Problems []string `json:"problems"`
	Warnings []string `json:"warnings"`
	// Missing names what the target image lacks, and what will therefore not
	// work after the reboot. It is null where the image's file list is not on
	// this host and could not be known without fetching layers.
	Missing []PlanMissing `json:"missing"`
	// PackageChanges are the packages that the target image has in other versions
	// than what the next boot takes. It is null where they are not known, as for
	// Missing, or where an image has no package database.
	PackageChanges []PackageDiff `json:"packageChanges"`
	// Staged says that the change takes effect at shutdown, not at once.
	Staged bool `json:"staged"`
	// Etc is what becomes of the changes that were made in /etc on this machine.
	// It is null where the image's files are not on this host.
	Etc []EtcChange `json:"etc"`
}

// PlanFetch counts an image's layers and compressed bytes.
type PlanFetch struct {
	Layers       int   `json:"layers"`
	LayersCached int   `json:"layersCached"`
	Bytes        int64 `json:"bytes"`
	BytesCached  int64 `json:"bytesCached"`
}

// PlanSpace is what an operation needs of a file system.
type PlanSpace struct {
	Path   string `json:"path"`
	Needed int64  `json:"needed"` // bytes, estimated
	Free   int64  `json:"free"`   // bytes
	Enough bool   `json:"enough"`
}

// PlanMissing is something the target image lacks.
type PlanMissing struct {
	What        string `json:"what"`
	Consequence string `json:"consequence"`
}

// ErrorReport is what a failed command prints with --json.
type ErrorReport struct {
	Error Error `json:"error"`
}

// Error is a failure: its kind is one of docs/exit-codes.md.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// Result is what an operation that changes the deployments did.
type Result struct {
	Operation string `json:"operation"`
	// Changed is false where the host already was as asked.
	Changed bool `json:"changed"`
	// Staged says that the change takes effect at shutdown, not at once.
	Staged bool `json:"staged"`
	// DownloadOnly says that the staged change waits for --from-downloaded.
	DownloadOnly bool `json:"downloadOnly"`
	// ID and Image are the deployment that the next boot takes.
	ID    string       `json:"id,omitempty"`
	Image *ImageStatus `json:"image"`
	Kargs []string     `json:"kargs,omitempty"`
	// Etc are the changes in /etc on which machine and image do not agree.
	Etc []EtcChange `json:"etc,omitempty"`
	// PackageChanges are the packages in which the image that was found differs
	// from what the next boot takes, where this host has it already.
	PackageChanges []PackageDiff `json:"packageChanges,omitempty"`
	// Packages are what a change of packages comes to.
	Packages *PackageChange `json:"packages,omitempty"`
	// Warnings are things to know that did not stop the operation.
	Warnings []string `json:"warnings,omitempty"`
}

// FileChange is one path that differs between two roots.
type FileChange struct {
	Path string `json:"path"`
	// Change is added, removed, content, metadata or type.
	Change string `json:"change"`
}

// StoredImage is an image that this host's store holds.
type StoredImage struct {
	Image   string `json:"image"`
	Digest  string `json:"digest"`
	Version string `json:"version,omitempty"`
	Layers  int    `json:"layers"`
	// Size is the compressed size of all layers in bytes.
	Size int64 `json:"size"`
	// Deployments are the IDs of the deployments made from it.
	Deployments []string `json:"deployments"`
	// Base is the digest of the image that client-side packages were put on, to
	// make this one.
	Base string `json:"base,omitempty"`
}

// Check is the outcome of an integrity check.
type Check struct {
	Objects     int      `json:"objects"`
	Deployments int      `json:"deployments"`
	Problems    []string `json:"problems"`
	// Repaired are the problems that there were before a repair.
	Repaired []string `json:"repaired,omitempty"`
	// Repairable says that a repair may do something about the problems.
	Repairable bool `json:"repairable,omitempty"`
}

// Cleanup is what a clean-up removed, or with dryRun would remove.
type Cleanup struct {
	// Deployments are the IDs of those in Removed that are not IfNeeded.
	Deployments []string `json:"deployments"`
	// Objects and Bytes are of the store; a dry run does not count them.
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	// Removed are the deployments that went, in this order, and why.
	Removed []RemovedDeployment `json:"removed,omitempty"`
	DryRun  bool                `json:"dryRun,omitempty"`
	// Warnings are things to know, as of a policy that cannot be read.
	Warnings []string `json:"warnings,omitempty"`
}

// RemovedDeployment is a deployment that goes.
type RemovedDeployment struct {
	ID      string `json:"id"`
	Image   string `json:"image,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Version string `json:"version,omitempty"`
	Reason  string `json:"reason"`
	// IfNeeded says that it goes only where those before it left too little free
	// space.
	IfNeeded bool `json:"ifNeeded,omitempty"`
}

// What a deployment of DeploymentHistory is, and Result where no boot of it was
// judged.
const (
	DeploymentBooted  = "booted"
	DeploymentStaged  = "staged"
	DeploymentKept    = "kept"
	DeploymentRemoved = "removed"

	ResultNone = "none"
)

// DeploymentHistory is a deployment that is or was there.
type DeploymentHistory struct {
	ID      string `json:"id"`
	Image   string `json:"image,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Version string `json:"version,omitempty"`
	// Made is when it was made, or the first that is known of it.
	Made time.Time `json:"made"`
	// Reason is the verb that made it; "" where another program did.
	Reason string `json:"reason"`
	// State is booted, staged, kept or removed.
	State string `json:"state"`
	// Result is how its last boot was judged: good or failed; none where none was.
	Result string `json:"result"`
	// Detail is what failed.
	Detail   string     `json:"detail,omitempty"`
	LastBoot *time.Time `json:"lastBoot,omitempty"`
	// Removed is when it went; null where another program removed it.
	Removed        *time.Time `json:"removed,omitempty"`
	RemovedBecause string     `json:"removedBecause,omitempty"`
}

// ImageDigest is the digest that a backend gives the root of an image.
type ImageDigest struct {
	// Backend is ostree or composefs.
	Backend string `json:"backend"`
	// Algorithm is sha256 or sha512.
	Algorithm string `json:"algorithm"`
	// Digest is hex: of the composefs backend what composefs= names, of the
	// ostree backend what libostree calls ostree.composefs.digest.v0.
	Digest string `json:"digest"`
}

// DigestComparison holds the roots of two images against each other.
type DigestComparison struct {
	Backend string `json:"backend"`
	A       string `json:"a"`
	B       string `json:"b"`
	// First is null where both are the same.
	First *DigestDifference `json:"first"`
}

// DigestDifference is the first path in which two roots differ.
type DigestDifference struct {
	Path string `json:"path"`
	// Field is in the words of the dump format, or "only in A", "only in B".
	Field string `json:"field"`
	// A and B are whole lines of the dump format, where both roots have the path.
	A string `json:"a,omitempty"`
	B string `json:"b,omitempty"`
}
