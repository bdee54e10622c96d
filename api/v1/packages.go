package v1

// Packages are the client-side package changes of a deployment.
type Packages struct {
	// Requested are the names and local packages that were asked for.
	Requested []string `json:"requested"`
	// Layered are all packages that the base image does not have like this,
	// dependencies too: NAME VERSION.
	Layered []string `json:"layered"`
	// Removed are packages of the base image that were asked to go.
	Removed []string `json:"removed"`
	// Replaced are those of Layered in whose place the base image has another
	// version, and what rpm-ostree recorded as replaced.
	Replaced []string `json:"replaced"`
	// Inactive are requested names that the base image has already, and
	// overrides that this base image does not need.
	Inactive []string `json:"inactive,omitempty"`
	// Required are those without which an update is not made.
	Required []string `json:"required,omitempty"`
	// LeftOut are requested packages that this base image cannot take; the next
	// upgrade tries again.
	LeftOut []PackageLeftOut `json:"leftOut,omitempty"`
}

// Initramfs is an initramfs that was made on this host.
type Initramfs struct {
	Args []string `json:"args"` // for dracut, as they were asked for
}

// PackageLeftOut is a package that is not there, and why.
type PackageLeftOut struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Package is a package of an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"` // in the package manager's form
	Arch    string `json:"arch"`
	// Repository is where it comes from; "" for a local file and in databases.
	Repository string `json:"repository,omitempty"`
	Size       int64  `json:"size,omitempty"` // of the package file, bytes
	// Requested says that it was asked for, and is no dependency.
	Requested bool `json:"requested,omitempty"`
	// Replaces is the version that the base image has.
	Replaces string `json:"replaces,omitempty"`
}

// PackageChange is what a change of packages comes to.
type PackageChange struct {
	// Layered is everything that is put on the base image.
	Layered []Package `json:"layered"`
	// Added, Changed and Dropped compare Layered with what the deployment before
	// has of packages.
	Added   []Package `json:"added"`
	Changed []Package `json:"changed"`
	Dropped []Package `json:"dropped"`
	// Removed are packages of the base image that go.
	Removed []Package `json:"removed"`
	// Inactive are requested names that the base image has already.
	Inactive []string         `json:"inactive"`
	LeftOut  []PackageLeftOut `json:"leftOut,omitempty"`
}

// PackageList is what a deployment has of packages.
type PackageList struct {
	Requested []string         `json:"requested"`
	Inactive  []string         `json:"inactive"`
	LeftOut   []PackageLeftOut `json:"leftOut"`
	Layered   []Package        `json:"layered"`
	// Overrides are packages of the base image that are to go, or to have another
	// version.
	Overrides []PackageOverride `json:"overrides"`
	// All are the packages in the root's database; null where not asked for.
	All []Package `json:"all"`
}

// PackageOverride is a package of the base image that is to go, or to have
// another version.
type PackageOverride struct {
	// Name is what was asked for: a name, maybe with a version, or
	// NAME-VERSION.ARCH of a package file.
	Name   string `json:"name"`
	Change string `json:"change"` // removed or replaced
	// From is the base image's version, To the one in its place; "" for none.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// State is active; inactive where the base image lacks the package or has a
	// newer version; or leftOut where this base image cannot take it.
	State string `json:"state"`
}

// The changes and states of a PackageOverride.
const (
	OverrideRemoved  = "removed"
	OverrideReplaced = "replaced"

	OverrideActive   = "active"
	OverrideInactive = "inactive"
	OverrideLeftOut  = "leftOut"
)

// PackageFound is a package of the repositories.
type PackageFound struct {
	Name       string `json:"name"`
	Version    string `json:"version"` // the newest
	Arch       string `json:"arch"`
	Repository string `json:"repository,omitempty"` // apt does not say
	Size       int64  `json:"size,omitempty"`       // of the package file, bytes
	Summary    string `json:"summary"`              // one line
	// Installed is the version that the next boot has; left out where it has none.
	Installed string `json:"installed,omitempty"`
}
