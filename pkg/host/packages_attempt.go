package host

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// attempt tries to put packages on a base, all of them or as many as go.
type attempt struct {
	*Host
	session *layering.Session
	options layerOptions

	// What the last try that went well came to; layer is nil where it stopped
	// before, or where nothing changes.
	set     []wanted
	request layering.Request
	lock    *layering.Lock
	layer   *layering.Layer
}

// wanted is a package that is asked for, one to go, or one to have in another
// version.
type wanted struct {
	name    string
	file    string // path of a local package
	remove  bool
	replace *replacement
	// initramfs is one to be made; the rest is empty.
	initramfs *layering.Initramfs
}

// sameEngine refuses a base with another package manager than the one that the
// names were meant for.
func (a *attempt) sameEngine(r *packageRecord) error {
	was := engineOf(a.options.before)
	if was == "" || was == a.session.Engine() || !r.anyPackage() {
		return nil
	}
	return fault.New(fault.Conflict, "remove the packages first (kedge pkg remove), or stay with images of the same package manager",
		"the packages of this host (%s) were chosen by %s, and the image has %s", someOf(append(r.names(), r.overridden()...)), was, a.session.Engine())
}

// engineOf returns the package manager that a deployment's packages are of; ""
// for none.
func engineOf(d *deployment) string {
	if d != nil && d.origin.record != nil {
		return d.origin.record.engine
	}
	return ""
}

// run tries everything and, where the base moves, as much as goes.
func (a *attempt) run(ctx context.Context, out *layered) error {
	all := a.wanted(out.record.packageIntent)
	if !a.options.update {
		return a.try(ctx, all)
	}
	var kept []wanted
	complete := true // the last try is what is kept
	var add func([]wanted) error
	add = func(batch []wanted) error {
		err := a.try(ctx, append(slices.Clone(kept), batch...))
		if err == nil {
			kept, complete = append(kept, batch...), true
			return nil
		}
		if !leavesOut(err) {
			return err
		}
		complete = false
		if len(batch) == 1 {
			return a.leaveOut(batch[0], err, out)
		}
		if err := add(batch[:len(batch)/2]); err != nil {
			return err
		}
		return add(batch[len(batch)/2:])
	}
	if len(all) == 0 {
		return nil
	}
	if err := add(all); err != nil {
		return err
	}
	switch {
	case len(kept) == 0:
		a.set, a.lock, a.layer = nil, nil, nil
	case !complete:
		return a.try(ctx, kept)
	}
	return nil
}

func (a *attempt) leaveOut(w wanted, err error, out *layered) error {
	if a.options.refresh && !leftOutBefore(a.options.before, w.name) {
		return err // it is there: better as it was than not at all
	}
	if w.initramfs != nil {
		return fault.New(fault.Held, "kedge initramfs --stock takes the image's own",
			"the initramfs is made on this host, and cannot be made for this image: %w", err)
	}
	if slices.Contains(out.record.required, w.name) {
		return fault.New(fault.Held, "kedge pkg remove takes it out; kedge pkg add without --required makes updates go on without it",
			"the package %s is required, and this image cannot take it: %w", w.name, err)
	}
	out.record.leftOut = append(out.record.leftOut, v1.PackageLeftOut{Name: w.name, Reason: err.Error()})
	out.warnings = append(out.warnings, fmt.Sprintf("the package %s is left out, and tried again at the next upgrade: %v", w.name, err))
	return nil
}

func leftOutBefore(d *deployment, name string) bool {
	return slices.ContainsFunc(d.origin.record.leftOut, func(p v1.PackageLeftOut) bool { return p.Name == name })
}

// leavesOut reports whether a failure is of the packages on this base, so that
// the base does not wait for them.
func leavesOut(err error) bool {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Conflict, fault.Scriptlet, fault.Usage:
		return true
	}
	return false
}

// try resolves, fetches and installs a set of packages.
func (a *attempt) try(ctx context.Context, set []wanted) error {
	req := layering.Request{}
	for _, w := range set {
		switch {
		case w.replace != nil:
			r := layering.Replacement{Name: w.name, Against: w.replace.against}
			if w.file != "" {
				r.Name, r.File = "", w.file
			}
			req.Replace = append(req.Replace, r)
		case w.initramfs != nil:
			req.Initramfs = w.initramfs
		case w.remove:
			req.Remove = append(req.Remove, w.name)
		case w.file != "":
			req.Files = append(req.Files, w.file)
		default:
			req.Install = append(req.Install, w.name)
		}
	}
	lock, err := a.session.Resolve(ctx, req)
	if err != nil {
		return err
	}
	if err := a.options.asked.check(req, lock); err != nil {
		return err
	}
	for i, r := range lock.Replaced {
		if req.Replace[i].Against == "" {
			req.Replace[i].Against = r.From
		}
	}
	var layer *layering.Layer
	if lock.ChangesRoot() && a.options.stop != afterResolve {
		if layer, err = a.install(ctx, lock); err != nil {
			return err
		}
	}
	a.set, a.request, a.lock, a.layer = set, req, lock, layer
	return nil
}

func (a *attempt) install(ctx context.Context, lock *layering.Lock) (*layering.Layer, error) {
	if n := len(lock.Install); n > 0 {
		a.cfg.Progress.Step(v1.TaskImporting, fmt.Sprintf("Fetching %d packages", n))
	}
	if err := a.session.Fetch(ctx, lock); err != nil || a.options.stop == afterFetch {
		return nil, err
	}
	if r, err := recordOf(a.options.before); err == nil && r != nil {
		lock.Accounts = r.Lock.Accounts
	}
	doing := fmt.Sprintf("Installing %d packages", len(lock.Install))
	if lock.Initramfs != nil {
		doing += ", and making the initramfs"
	}
	a.cfg.Progress.Step(v1.TaskImporting, doing)
	layer, err := a.session.Make(ctx, lock)
	if err == nil {
		lock.Accounts = layer.Accounts
	}
	return layer, err
}

// recordOf returns what stands in the image of a deployment with packages; nil
// for none. Without a layer the image is the base, which may be another host's
// image with packages.
func recordOf(d *deployment) (*layering.Record, error) {
	if d == nil || d.image == nil || d.origin.record == nil || d.origin.record.lock == "" {
		return nil, nil
	}
	return layering.ReadRecord(d.image.labels)
}

func (a *attempt) wanted(i packageIntent) (all []wanted) {
	path := func(f localPackage) string {
		if f.path != "" || f.sum == "" {
			return f.path
		}
		return layering.PackagePath(a.packageDir("cache"), a.session.Engine(), digest.NewDigestFromEncoded(digest.SHA256, f.sum))
	}
	for _, n := range i.install {
		all = append(all, wanted{name: n})
	}
	for _, f := range i.files {
		all = append(all, wanted{name: f.name, file: path(f)})
	}
	for _, n := range i.remove {
		all = append(all, wanted{name: n, remove: true})
	}
	for n, r := range i.replace {
		all = append(all, wanted{name: r.name, file: path(r.localPackage), replace: &i.replace[n]})
	}
	if i.initramfs != nil {
		all = append(all, wanted{initramfs: i.initramfs})
	}
	return all
}
