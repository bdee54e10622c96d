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
	replace []replacement  // packages of the base that are to have another version
	// required are those of install and files without which a base is refused.
	required []string
	// initramfs is to be made on this host; nil: the image's own.
	initramfs *layering.Initramfs
}

// localPackage is a package file that the package cache keeps.
type localPackage struct {
	sum  string // sha256, hex
	name string // NAME-VERSION.ARCH
	path string // of a file that the cache has not taken yet
}

// replacement asks for another version of a package of the base: from a file, or
// where sum is "", by a name that may have a version.
type replacement struct {
	localPackage
	against string // the base's version when it was asked for
}

func (i packageIntent) empty() bool { return !i.anyPackage() && i.initramfs == nil }

func (i packageIntent) anyPackage() bool {
	return len(i.install)+len(i.files)+len(i.remove)+len(i.replace) > 0
}

// names are what status shows as requested.
func (i packageIntent) names() []string {
	names := slices.Clone(i.install)
	for _, f := range i.files {
		names = append(names, f.name)
	}
	return names
}

// local are the package files that the cache keeps for it.
func (i packageIntent) local() []localPackage {
	files := slices.Clone(i.files)
	for _, r := range i.replace {
		if r.sum != "" {
			files = append(files, r.localPackage)
		}
	}
	return files
}

// overridden are the names of what is to be removed and replaced.
func (i packageIntent) overridden() []string {
	names := slices.Clone(i.remove)
	for _, r := range i.replace {
		names = append(names, r.name)
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
	r.files, r.replace = slices.Clone(r.files), slices.Clone(r.replace)
	name := func(f localPackage) localPackage {
		for _, p := range lock.Install {
			if p.Checksum != "sha256:"+f.sum {
				continue
			}
			name := p.Name + "-" + p.Version + "." + p.Arch
			if n := slices.Index(r.required, f.name); n >= 0 {
				r.required[n] = name
			}
			return localPackage{sum: f.sum, name: name}
		}
		return f
	}
	for i, f := range r.files {
		r.files[i] = name(f)
	}
	for i, f := range r.replace {
		r.replace[i].localPackage = name(f.localPackage)
	}
}

// The origin's groups. The first two are rpm-ostree's.
const (
	groupPackages  = "packages"
	groupOverrides = "overrides"
	groupKedge     = "kedge"

	keyRequested    = "requested"
	keyLocal        = "requested-local" // SHA256:NEVRA
	keyRemove       = "remove"
	keyReplace      = "replace"       // repo=REPOSITORY,NAME[,NAME…]
	keyReplaceLocal = "replace-local" // SHA256:NEVRA
	anyRepository   = "repo=*,"

	keyBase     = "packages-base"
	keyEngine   = "packages-engine"
	keyLock     = "packages-lock"
	keyRequired = "packages-required"
	keyInactive = "packages-inactive"
	keyLeftOut  = "packages-left-out" // NAME REASON
	keyReplaced = "packages-replaced" // NAME VERSION: what the base had when it was to be replaced
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
	local := func(group, key string) (list []localPackage) {
		items, _ := f.List(group, key)
		for _, s := range items {
			sum, name, _ := strings.Cut(s, ":")
			list = append(list, localPackage{sum: sum, name: name})
		}
		return list
	}
	i.install, _ = f.List(groupPackages, keyRequested)
	i.files = local(groupPackages, keyLocal)
	i.remove, _ = f.List(groupOverrides, keyRemove)
	named, _ := f.List(groupOverrides, keyReplace)
	for _, s := range named {
		if name, ok := strings.CutPrefix(s, anyRepository); ok {
			i.replace = append(i.replace, replacement{localPackage: localPackage{name: name}})
		}
	}
	for _, l := range local(groupOverrides, keyReplaceLocal) {
		i.replace = append(i.replace, replacement{localPackage: l})
	}
	i.initramfs = readInitramfs(f)
	against, _ := f.List(groupKedge, keyReplaced)
	for _, s := range against {
		name, version, _ := strings.Cut(s, " ")
		for n := range i.replace {
			if i.replace[n].name == name {
				i.replace[n].against = version
			}
		}
	}
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
	var local, out, replace, replaceLocal, against []string
	for _, p := range r.files {
		local = append(local, p.sum+":"+p.name)
	}
	for _, p := range r.replace {
		if p.sum == "" {
			replace = append(replace, anyRepository+p.name)
		} else {
			replaceLocal = append(replaceLocal, p.sum+":"+p.name)
		}
		if p.against != "" {
			against = append(against, p.name+" "+p.against)
		}
	}
	for _, o := range r.leftOut {
		out = append(out, o.Name+" "+strings.Join(strings.Fields(o.Reason), " "))
	}
	list(groupPackages, keyLocal, local)
	list(groupOverrides, keyRemove, r.remove)
	list(groupOverrides, keyReplace, replace)
	list(groupOverrides, keyReplaceLocal, replaceLocal)
	f.Set(groupKedge, keyBase, r.base)
	f.Set(groupKedge, keyEngine, r.engine)
	if r.lock != "" {
		f.Set(groupKedge, keyLock, r.lock)
	}
	list(groupKedge, keyRequired, r.required)
	list(groupKedge, keyInactive, r.inactive)
	list(groupKedge, keyLeftOut, out)
	list(groupKedge, keyReplaced, against)
	writeInitramfs(f, r.initramfs)
}

// ofRepository reports whether packages are to be replaced by those of a certain
// repository, which kedge never records.
func ofRepository(f *keyfile.File) bool {
	named, _ := f.List(groupOverrides, keyReplace)
	return slices.ContainsFunc(named, func(s string) bool { return !strings.HasPrefix(s, anyRepository) })
}

// foreignChanges lists what other programs recorded and kedge cannot do: such a
// deployment is not changed. Names of packages to install and to remove mean the
// same to kedge, and so does an initramfs that takes nothing from the host;
// rpm-ostree's local packages are in a cache of its own, and those it replaces
// are of one repository.
func foreignChanges(f *keyfile.File, ours bool) (changes []string) {
	for _, g := range foreignGroups {
		for _, key := range f.Keys(g) {
			v, _ := f.Get(g, key)
			known := g == groupPackages && key == keyRequested || g == groupOverrides && key == keyRemove ||
				g == groupRPMOSTree && initramfsKept(f, key, ours) ||
				ours && (g == groupPackages && key == keyLocal || g == groupOverrides && (key == keyReplaceLocal || key == keyReplace && !ofRepository(f)))
			if v != "" && v != "false" && !known {
				changes = append(changes, fmt.Sprintf("[%s] %s=%s", g, key, v))
			}
		}
	}
	return changes
}
