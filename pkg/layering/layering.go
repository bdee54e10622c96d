// Package layering turns packages that a host asks for into one more layer on
// its base image, with the package manager that the image brings.
//
// A Session is one piece of work on one base: Resolve has the package manager
// choose (with network, on a root that nobody can write), Fetch downloads what
// was chosen and checks it against the lock, Make installs it without network
// on an overlay and gives back what changed as a layer. The base is never
// written. All mounts lie in a mount namespace of the session's own thread, so
// that a session which is killed leaves nothing but its temporary directory.
//
// The package never touches a deployment and never sees a registry; the layer
// becomes an image with Layout, which is deployed like any other.
package layering

import (
	"context"
	"log/slog"
	"time"
)

// Base is a root to put packages on.
type Base struct {
	// Root is the directory of the base's file system. It is only read.
	Root string
	// Etc is the directory of the image's /etc where Root has none in place:
	// usr/etc of a deployment. Empty: Root/etc.
	Etc string
	// Mount puts the root at dir, an empty directory of the session, and says
	// where in it the image's /etc is ("" for etc). It takes the place of Root
	// and Etc; what it mounts goes with the session, what it writes too.
	Mount func(ctx context.Context, dir string) (etc string, err error)
	// Created is the base image's own time. Scriptlets see it as
	// SOURCE_DATE_EPOCH, and whatever they write carries it.
	Created time.Time
}

// Options are what a session needs of the machine it runs on.
type Options struct {
	// Work is the directory for the session's temporary files: on a file
	// system that can be the upper of an overlay (trusted extended attributes).
	Work string
	// Cache keeps metadata and packages for the next session; it may be removed
	// between sessions. One session uses it at a time.
	Cache string
	// HostEtc is the /etc whose repositories, keys and credentials the package
	// manager sees, read-only, when it resolves and fetches. Empty: the image's alone.
	HostEtc string
	// Resolv is the resolv.conf for resolving and fetching. Empty: /etc/resolv.conf.
	Resolv string
	// CacheOnly resolves with the metadata and fetches the packages that are in
	// the cache; nothing is asked of the network.
	CacheOnly bool
	// Reserve is what stays free on the file system of Work, in bytes: a
	// transaction that would take more is ended. 0: 256 MiB.
	Reserve uint64
	// Journal is the socket of the journal that gets what a transaction says.
	// Empty: that of systemd.
	Journal string
	Logger  *slog.Logger // nil: slog.Default()
}

// Request is what a host asked for.
type Request struct {
	Install []string      // names as the package manager takes them: NAME, NAME=VERSION (apt), NAME-VERSION or a provide (dnf)
	Files   []string      // paths of local package files
	Remove  []string      // names of packages of the base that are to go
	Replace []Replacement `json:",omitempty"`
	// Initramfs has the initramfs made anew; nil keeps the image's own, unless a
	// kernel changes.
	Initramfs *Initramfs `json:",omitempty"`
}

// Package is a package of a lock or a database.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"` // apt: [EPOCH:]UPSTREAM[-REVISION]; dnf: EPOCH:VERSION-RELEASE
	Arch    string `json:"arch"`
	// Checksum of the package file, "sha256:…" or "sha512:…". Empty in databases.
	Checksum   string `json:"checksum,omitempty"`
	Size       int64  `json:"size,omitempty"`       // of the package file, bytes
	Repository string `json:"repository,omitempty"` // its name; "" for a local file
	Requested  bool   `json:"requested,omitempty"`  // by name or file, not as a dependency
	Replaces   string `json:"replaces,omitempty"`   // the base's version, where it has another
}

// Lock is what a package manager chose for a request on a base. The same base
// and the same lock give the same layer.
type Lock struct {
	Engine  string    `json:"engine"`           // "apt" or "dnf"
	Install []Package `json:"install"`          // ordered by name and architecture
	Remove  []Package `json:"remove,omitempty"` // packages of the base
	// Inactive are the names of the request that the base has already, which
	// stay at its version, and those to remove that it does not have.
	Inactive []string `json:"inactive,omitempty"`
	// Replaced is what became of the request's Replace, in its order.
	Replaced  []Replaced `json:"replaced,omitempty"`
	Initramfs *Initramfs `json:"initramfs,omitempty"`
	// Accounts are the users and groups that the packages made when the lock
	// was first used, so that their numbers stay the same on the next base.
	Accounts []Account `json:"accounts,omitempty"`
}

func (l *Lock) changesPackages() bool { return len(l.Install)+len(l.Remove) > 0 }

// ChangesRoot reports whether the lock makes a layer.
func (l *Lock) ChangesRoot() bool { return l.changesPackages() || l.Initramfs != nil }

// Account is a user or group with its number.
type Account struct {
	Kind string `json:"kind"` // "user" or "group"
	Name string `json:"name"`
	ID   uint32 `json:"id"`
	Line string `json:"line"` // of passwd or group
}

// Layer is what a transaction changed.
type Layer struct {
	Path   string // the uncompressed tar, in the session's directory
	DiffID string // its digest, "sha256:…"
	Size   int64  // bytes
	// Accounts are the users and groups that are new in the layer.
	Accounts []Account
	// Secrets are the paths of keys and identities that a package generated;
	// they are not in the layer.
	Secrets []string
	// Factory are the files of /var that the layer keeps in /usr/share/factory;
	// they are copied to /var on the first boot only.
	Factory []VarFile
	// Relabels: the packages changed the rules for SELinux labels, which are those
	// of the base's files too.
	Relabels bool
	// VarDatabase is where the base has its package database, if that is in /var:
	// "/var/lib/dpkg". In the layer it is in /usr.
	VarDatabase string
	// Output is what the package manager and the scriptlets said, its last 64 KiB.
	Output string
}

// VarFile is a file of /var that came with a package.
type VarFile struct {
	Path    string
	Package string // "" for one that a scriptlet made, and for all after the first few
}
