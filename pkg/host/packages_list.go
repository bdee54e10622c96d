package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/layering"
)

// Packages lists the packages of the deployment that the next boot takes; with
// all, those of its database too, for which its package manager is run.
func (h *Host) Packages(ctx context.Context, all bool) (*v1.PackageList, error) {
	out, err := h.listPackages(ctx, all)
	return out, wrap("pkg list", err)
}

func (h *Host) listPackages(ctx context.Context, all bool) (*v1.PackageList, error) {
	d, err := h.followed()
	if err != nil {
		return nil, err
	}
	out := &v1.PackageList{Requested: []string{}, Inactive: []string{}, LeftOut: []v1.PackageLeftOut{}, Layered: []v1.Package{}, Overrides: []v1.PackageOverride{}}
	out.Requested = append(out.Requested, d.origin.wants.names()...)
	if r := d.origin.record; r != nil {
		out.Inactive, out.LeftOut = append(out.Inactive, r.inactive...), append(out.LeftOut, r.leftOut...)
	}
	r, err := recordOf(d)
	if err != nil {
		return nil, err
	}
	if r != nil {
		out.Layered = apiPackages(r.Lock.Install)
	}
	out.Overrides = append(out.Overrides, overrides(d, r)...)
	if all {
		out.All, err = h.database(ctx, d)
	}
	return out, err
}

// database lists every package of a deployment.
func (h *Host) database(ctx context.Context, d *deployment) (_ []v1.Package, err error) {
	unlock, err := h.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := h.openPackages(ctx, layering.Base{}, d.root, layering.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	list, err := s.Packages(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the package database: %w", err)
	}
	return apiPackages(list), nil
}

// overrides lists what is asked for of packages of the base, and what came of it.
func overrides(d *deployment, made *layering.Record) (list []v1.PackageOverride) {
	if made == nil {
		made = &layering.Record{}
	}
	add := func(o v1.PackageOverride) {
		o.State = v1.OverrideActive
		if r := d.origin.record; r == nil || leftOutBefore(d, o.Name) {
			o.State = v1.OverrideLeftOut
		} else if slices.Contains(r.inactive, o.Name) {
			o.State = v1.OverrideInactive
		}
		list = append(list, o)
	}
	for _, name := range d.origin.wants.remove {
		o := v1.PackageOverride{Name: name, Change: v1.OverrideRemoved}
		if i := slices.IndexFunc(made.Lock.Remove, func(p layering.Package) bool { return p.Name == name }); i >= 0 {
			o.From = made.Lock.Remove[i].Version
		}
		add(o)
	}
	for _, r := range d.origin.wants.replace {
		o := v1.PackageOverride{Name: r.name, Change: v1.OverrideReplaced}
		for i, ask := range made.Request.Replace {
			if r.sum == "" && ask.Name == r.name {
				o.From, o.To = made.Lock.Replaced[i].From, made.Lock.Replaced[i].To
			}
		}
		for _, p := range made.Lock.Install {
			if p.Checksum == "sha256:"+r.sum {
				o.From, o.To = r.against, p.Version
			}
		}
		add(o)
	}
	return list
}
