package host

import (
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// What names the image in an origin file.
const (
	groupOrigin  = "origin"
	keyContainer = "container-image-reference"
)

// foreignGroups make bootc report a deployment as incompatible: they hold
// changes that it would lose.
var foreignGroups = []string{groupRPMOSTree, groupPackages, groupOverrides, "modules"}

func parseOrigin(f *keyfile.File) origin {
	var o origin
	if text, ok := f.Get(groupOrigin, keyContainer); ok {
		o.text = text
		if ref, err := ocibridge.ParseOrigin(text); err == nil {
			o.ref = &ref
		}
	}
	unlocked, _ := f.Get(groupOrigin, "unlocked")
	o.hotfix = unlocked == "hotfix"
	o.userKargs, _ = f.List(groupKedge, keyUserKargs)
	for _, key := range []string{"refspec", "baserefspec"} {
		if v, ok := f.Get(groupOrigin, key); ok && o.refspec == "" {
			o.refspec = v
		}
	}
	var p v1.Packages
	list := func(to *[]string, group string, keys ...string) {
		for _, key := range keys {
			items, _ := f.List(group, key)
			*to = append(*to, items...)
		}
	}
	list(&p.Requested, groupPackages, keyRequested, keyLocal, "requested-local-fileoverride")
	list(&p.Removed, groupOverrides, keyRemove)
	list(&p.Replaced, groupOverrides, "replace", "replace-local")
	if len(p.Requested)+len(p.Removed)+len(p.Replaced) > 0 {
		o.packages = &p
	}
	o.wants = readIntent(f)
	if o.record = readPackages(f); o.record != nil {
		o.wants = o.record.packageIntent
	}
	for _, g := range foreignGroups {
		o.incompatible = o.incompatible || f.HasGroup(g)
	}
	o.changes = foreignChanges(f, o.record != nil)
	return o
}

// originOf makes the origin file of a new deployment: the intent of the one it
// continues with another image, and packages where they are not nil. Pins and the
// like stay behind with the old one.
func originOf(base *keyfile.File, ref ocibridge.Reference, packages *packageRecord) *keyfile.File {
	f := &keyfile.File{}
	if base != nil {
		f = base.Clone()
	}
	f.DeleteGroup("libostree-transient")
	// What is in them is in packages, or asks for nothing (Host.changeable).
	for _, g := range foreignGroups {
		f.DeleteGroup(g)
	}
	for _, key := range f.Keys(groupKedge) {
		if strings.HasPrefix(key, "packages-") {
			f.Delete(groupKedge, key)
		}
	}
	for _, key := range []string{"refspec", "baserefspec"} {
		f.Delete(groupOrigin, key)
	}
	f.Set(groupOrigin, keyContainer, ref.Origin())
	if packages != nil {
		packages.write(f)
	}
	return f
}
