package host

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/layering"
)

// packageIntent is what was asked for beside an image. It stands in the origin
// where rpm-ostree has it, so that bootc refuses the host and does not drop it.
type packageIntent struct {
	install []string       // names, in the order in which they were asked for
	files   []localPackage // packages that were given as files
	remove  []string       // packages of the base that are to go
	// required are those of install and files without which a base is refused.
	required []string
}

// localPackage is a package file that the package cache keeps.
type localPackage struct {
	sum  string // sha256, hex
	name string // NAME-VERSION.ARCH
	path string // of a file that the cache has not taken yet
}

func (i packageIntent) empty() bool { return len(i.install)+len(i.files)+len(i.remove) == 0 }

// names are what status shows as requested.
func (i packageIntent) names() []string {
	names := slices.Clone(i.install)
	for _, f := range i.files {
		names = append(names, f.name)
	}
	return names
}

// packageRecord is an intent, and what came of it on a base.
type packageRecord struct {
	packageIntent
	base     string // manifest digest of the image that the packages were put on
	engine   string // the package manager that chose
	lock     string // digest of the lock, which stands in the image's labels; "" for no layer
	inactive []string
	leftOut  []v1.PackageLeftOut
}

// nameFiles gives local packages the names that the package manager read.
func (r *packageRecord) nameFiles(lock *layering.Lock) {
	r.files = slices.Clone(r.files)
	for i, f := range r.files {
		for _, p := range lock.Install {
			if p.Checksum != "sha256:"+f.sum {
				continue
			}
			name := p.Name + "-" + p.Version + "." + p.Arch
			if n := slices.Index(r.required, f.name); n >= 0 {
				r.required[n] = name
			}
			r.files[i] = localPackage{sum: f.sum, name: name}
		}
	}
}

// The origin's groups. The first two are rpm-ostree's.
const (
	groupPackages  = "packages"
	groupOverrides = "overrides"
	groupKedge     = "kedge"

	keyRequested = "requested"
	keyLocal     = "requested-local" // SHA256:NEVRA
	keyRemove    = "remove"

	keyBase     = "packages-base"
	keyEngine   = "packages-engine"
	keyLock     = "packages-lock"
	keyRequired = "packages-required"
	keyInactive = "packages-inactive"
	keyLeftOut  = "packages-left-out" // NAME REASON
)

// readPackages reads what kedge recorded; nil where it recorded no packages.
func readPackages(f *keyfile.File) *packageRecord {
	r := &packageRecord{packageIntent: readIntent(f)}
	if r.base, _ = f.Get(groupKedge, keyBase); r.base == "" || r.empty() {
		return nil
	}
	r.engine, _ = f.Get(groupKedge, keyEngine)
	r.lock, _ = f.Get(groupKedge, keyLock)
	r.required, _ = f.List(groupKedge, keyRequired)
	r.inactive, _ = f.List(groupKedge, keyInactive)
	out, _ := f.List(groupKedge, keyLeftOut)
	for _, s := range out {
		name, reason, _ := strings.Cut(s, " ")
		r.leftOut = append(r.leftOut, v1.PackageLeftOut{Name: name, Reason: reason})
	}
	return r
}

func readIntent(f *keyfile.File) (i packageIntent) {
	i.install, _ = f.List(groupPackages, keyRequested)
	local, _ := f.List(groupPackages, keyLocal)
	for _, s := range local {
		sum, name, _ := strings.Cut(s, ":")
		i.files = append(i.files, localPackage{sum: sum, name: name})
	}
	i.remove, _ = f.List(groupOverrides, keyRemove)
	return i
}

// write records the packages in an origin.
func (r *packageRecord) write(f *keyfile.File) {
	list := func(group, key string, items []string) {
		if len(items) > 0 {
			f.SetList(group, key, items)
		}
	}
	list(groupPackages, keyRequested, r.install)
	var local, out []string
	for _, p := range r.files {
		local = append(local, p.sum+":"+p.name)
	}
	for _, o := range r.leftOut {
		out = append(out, o.Name+" "+strings.Join(strings.Fields(o.Reason), " "))
	}
	list(groupPackages, keyLocal, local)
	list(groupOverrides, keyRemove, r.remove)
	f.Set(groupKedge, keyBase, r.base)
	f.Set(groupKedge, keyEngine, r.engine)
	if r.lock != "" {
		f.Set(groupKedge, keyLock, r.lock)
	}
	list(groupKedge, keyRequired, r.required)
	list(groupKedge, keyInactive, r.inactive)
	list(groupKedge, keyLeftOut, out)
}

// foreignChanges lists what other programs recorded and kedge cannot do: such a
// deployment is not changed. Names of packages to install and to remove mean the
// same to kedge; rpm-ostree's local packages are in a cache of its own.
func foreignChanges(f *keyfile.File, ours bool) (changes []string) {
	for _, g := range foreignGroups {
		for _, key := range f.Keys(g) {
			v, _ := f.Get(g, key)
			known := g == groupPackages && key == keyRequested || g == groupOverrides && key == keyRemove || ours && g == groupPackages && key == keyLocal
			if v != "" && v != "false" && !known {
				changes = append(changes, fmt.Sprintf("[%s] %s=%s", g, key, v))
			}
		}
	}
	return changes
}
