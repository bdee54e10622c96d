package host

import (
	"fmt"

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
var foreignGroups = []string{"rpmostree", "packages", "overrides", "modules"}

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
	o.userKargs, _ = f.List(groupKargs, keyUserKargs)
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
	list(&p.Requested, "packages", "requested", "requested-local", "requested-local-fileoverride")
	list(&p.Removed, "overrides", "remove")
	list(&p.Replaced, "overrides", "replace", "replace-local")
	if len(p.Requested)+len(p.Removed)+len(p.Replaced) > 0 {
		o.packages = &p
	}
	for _, g := range foreignGroups {
		o.incompatible = o.incompatible || f.HasGroup(g)
		for _, key := range f.Keys(g) {
			if v, _ := f.Get(g, key); v != "" && v != "false" {
				o.changes = append(o.changes, fmt.Sprintf("[%s] %s=%s", g, key, v))
			}
		}
	}
	return o
}

// originOf makes the origin file of a new deployment: the intent of the one it
// continues with another image. Pins and the like stay behind with the old one.
func originOf(base *keyfile.File, ref ocibridge.Reference) *keyfile.File {
	f := &keyfile.File{}
	if base != nil {
		f = base.Clone()
	}
	f.DeleteGroup("libostree-transient")
	// What is in them has been found to ask for nothing (Host.changeable).
	for _, g := range foreignGroups {
		f.DeleteGroup(g)
	}
	for _, key := range []string{"refspec", "baserefspec"} {
		f.Delete(groupOrigin, key)
	}
	f.Set(groupOrigin, keyContainer, ref.Origin())
	return f
}
