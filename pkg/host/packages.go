package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// PackagesOptions say how the packages of a host are to change.
type PackagesOptions struct {
	Verb string // such as "pkg add", for messages and the history
	// Add are names as the image's package manager takes them, and package files
	// (.deb, .rpm).
	Add []string
	// Remove are names that were added.
	Remove []string
	// Replace are packages of the base that are to have another version: names,
	// for the repositories' newest or with a version, and package files.
	// OverrideRemove are those that are to go. Reset takes back what was asked for
	// of some, ResetAll of all.
	Replace, OverrideRemove, Reset []string
	ResetAll                       bool
	// Initramfs has the initramfs made on this host; StockInitramfs takes the
	// image's own again.
	Initramfs      *layering.Initramfs
	StockInitramfs bool
	// Refresh chooses again from what the repositories have now.
	Refresh bool
	// Required: an update is not made on an image that cannot take what is added.
	Required bool
	// Idempotent: what is there already, or not there, is no error.
	Idempotent bool
	// CacheOnly asks nothing of the network.
	CacheOnly bool
	// DryRun only chooses; DownloadOnly fetches too. Neither deploys anything.
	DryRun, DownloadOnly bool
}

// ChangePackages puts packages on the base image and takes packages off it, in
// one new deployment. The base image stays the one that it is.
func (h *Host) ChangePackages(ctx context.Context, o PackagesOptions) (*v1.Result, error) {
	r, err := h.changePackages(ctx, o)
	return r, wrap(o.Verb, err)
}

func (h *Host) changePackages(ctx context.Context, o PackagesOptions) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := h.changeable(list); err != nil {
		return nil, err
	}
	d := list.followed()
	if d.origin.ref == nil {
		return nil, fault.New(fault.Conflict, "kedge switch IMAGE makes it follow one", "the deployment %s follows no container image", d.id)
	}
	wants, err := o.apply(d.origin.wants)
	if err != nil {
		return nil, err
	}
	if wants.empty() && d.origin.wants.empty() || !o.Refresh && sameIntent(wants, d.origin.wants) && d.packagesDone() {
		return &v1.Result{Operation: o.Verb, ID: d.id, Image: d.status(), Staged: d.staged, DownloadOnly: d.downloadOnly}, nil
	}
	root, image, err := h.store.Base(d)
	if err != nil {
		return nil, err
	}
	lo := layerOptions{before: d, update: o.Refresh, refresh: o.Refresh, cacheOnly: o.CacheOnly, asked: o.asked()}
	switch {
	case o.DryRun:
		lo.stop = afterResolve
	case o.DownloadOnly:
		lo.stop = afterFetch
	}
	layered, err := h.layer(ctx, layerBase{*d.origin.ref, root, image}, wants, lo)
	if err != nil {
		return nil, err
	}
	if lo.stop != 0 {
		return &v1.Result{Operation: o.Verb, ID: d.id, Image: d.status(), Packages: layered.change(d), DownloadOnly: o.DownloadOnly}, nil
	}
	if o.Refresh && layered.sameAs(d) {
		return &v1.Result{Operation: o.Verb, ID: d.id, Image: d.status(), Staged: d.staged, DownloadOnly: d.downloadOnly, Warnings: layered.warnings}, nil
	}
	h.cfg.Progress.Step(v1.TaskStaging, "Deploying the image")
	r, err := h.deploy(ctx, o.Verb, list, deployRequest{
		root: layered.root, ref: d.origin.ref, packages: layered.record, base: d, stateroot: d.stateroot, hold: d.downloadOnly,
	})
	if err != nil {
		return nil, err
	}
	r.Packages = layered.change(d)
	r.Warnings = append(r.Warnings, layered.warnings...)
	for _, name := range r.Packages.Inactive {
		if slices.Contains(o.Add, name) {
			r.Warnings = append(r.Warnings, "the base image has "+name+" already; it would be added where a later image lacks it")
		}
	}
	return r, nil
}

// apply returns an intent with the changes made to it.
func (o PackagesOptions) apply(was packageIntent) (packageIntent, error) {
	now := packageIntent{
		install: slices.Clone(was.install), files: slices.Clone(was.files), remove: slices.Clone(was.remove),
		replace: slices.Clone(was.replace), required: slices.Clone(was.required), initramfs: was.initramfs,
	}
	if o.StockInitramfs {
		now.initramfs = nil
	}
	if o.Initramfs != nil {
		if err := o.Initramfs.Check(); err != nil {
			return now, err
		}
		now.initramfs = o.Initramfs
	}
	for _, name := range o.Remove {
		n := len(now.install) + len(now.files)
		now.install = slices.DeleteFunc(now.install, func(s string) bool { return s == name })
		now.files = slices.DeleteFunc(now.files, func(f localPackage) bool { return f.is(name) })
		now.required = slices.DeleteFunc(now.required, func(s string) bool { return s == name || localPackage{name: s}.is(name) })
		if len(now.install)+len(now.files) == n && !o.Idempotent {
			return now, fault.New(fault.NotFound, "kedge pkg list shows what was added; kedge pkg override remove takes away what the image has", "the package %s was not added to this host", name)
		}
	}
	for _, name := range o.Add {
		if isPackageFile(name) {
			f, err := newLocalPackage(name)
			if err != nil {
				return now, err
			}
			now.files = append(slices.DeleteFunc(now.files, func(have localPackage) bool { return have.sum == f.sum }), f)
			if o.Required {
				now.required = append(now.required, f.name)
			}
			continue
		}
		if slices.Contains(now.install, name) {
			if !o.Idempotent && !o.Required {
				return now, fault.New(fault.Conflict, "--idempotent makes this no error", "the package %s was added already", name)
			}
		} else {
			now.install = append(now.install, name)
		}
		if o.Required && !slices.Contains(now.required, name) {
			now.required = append(now.required, name)
		}
	}
	err := o.override(&now)
	return now, err
}

func isPackageFile(operand string) bool {
	return strings.HasSuffix(operand, ".deb") || strings.HasSuffix(operand, ".rpm")
}

// newLocalPackage describes a file that was given; its name is known when the
// package manager has looked at it.
func newLocalPackage(file string) (f localPackage, err error) {
	if f.path, err = filepath.Abs(file); err != nil {
		return f, err
	}
	in, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, fault.New(fault.NotFound, "give a file that is there, or a package's name", "%w", err)
	}
	if err != nil {
		return f, err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
		return f, fault.New(fault.Usage, "give a package file", "%s is not a file", file)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, in); err != nil {
		return f, err
	}
	f.sum, f.name = hex.EncodeToString(sum.Sum(nil)), filepath.Base(file)
	return f, nil
}

// is reports whether a user means the package: by its name, or with version and
// architecture.
func (f localPackage) is(name string) bool {
	rest, ok := strings.CutPrefix(f.name, name+"-")
	return f.name == name || ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}

func sameIntent(a, b packageIntent) bool {
	return slices.Equal(a.install, b.install) && slices.Equal(a.remove, b.remove) && slices.Equal(a.required, b.required) &&
		slices.EqualFunc(a.files, b.files, func(x, y localPackage) bool { return x.sum == y.sum }) && slices.EqualFunc(a.replace, b.replace, replacement.same) &&
		sameInitramfs(a.initramfs, b.initramfs)
}

// packagesDone reports whether kedge did what the origin asks for; rpm-ostree
// may have recorded it.
func (d *deployment) packagesDone() bool { return d.origin.record != nil || d.origin.wants.empty() }

// sameAs reports whether a deployment has what came out already.
func (l *layered) sameAs(d *deployment) bool {
	was := d.origin.record
	return l.root == d.root && was != nil && l.record != nil && l.record.lock == was.lock &&
		slices.Equal(l.record.inactive, was.inactive) && slices.Equal(l.record.leftOut, was.leftOut)
}

// change compares what a base with packages has with what a deployment has.
func (l *layered) change(before *deployment) *v1.PackageChange {
	if l.record == nil && before.origin.record == nil {
		return nil
	}
	c := &v1.PackageChange{Layered: []v1.Package{}, Added: []v1.Package{}, Changed: []v1.Package{}, Dropped: []v1.Package{}, Removed: []v1.Package{}, Inactive: []string{}}
	var was []v1.Package
	if r, err := recordOf(before); err == nil && r != nil {
		was = apiPackages(r.Lock.Install)
	}
	if l.lock != nil {
		c.Layered, c.Removed = apiPackages(l.lock.Install), apiPackages(l.lock.Remove)
		c.Inactive = append(c.Inactive, l.lock.Inactive...)
	}
	if l.record != nil {
		c.LeftOut = l.record.leftOut
	}
	find := func(list []v1.Package, p v1.Package) *v1.Package {
		if i := slices.IndexFunc(list, func(o v1.Package) bool { return o.Name == p.Name && o.Arch == p.Arch }); i >= 0 {
			return &list[i]
		}
		return nil
	}
	for _, p := range c.Layered {
		if old := find(was, p); old == nil {
			c.Added = append(c.Added, p)
		} else if old.Version != p.Version {
			c.Changed = append(c.Changed, p)
		}
	}
	for _, p := range was {
		if find(c.Layered, p) == nil {
			c.Dropped = append(c.Dropped, p)
		}
	}
	return c
}

func apiPackages(list []layering.Package) []v1.Package {
	out := []v1.Package{}
	for _, p := range list {
		out = append(out, v1.Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Repository: p.Repository, Size: p.Size, Requested: p.Requested, Replaces: p.Replaces})
	}
	return out
}

// packages is what status says of a deployment's packages; nil for none.
func (h *Host) packages(d *deployment) *v1.Packages {
	if d.origin.packages == nil {
		return nil
	}
	p := *d.origin.packages
	if d.origin.record == nil {
		return &p
	}
	p.Replaced = nil
	p.Requested, p.Required = d.origin.wants.names(), d.origin.record.required
	p.Inactive, p.LeftOut = d.origin.record.inactive, d.origin.record.leftOut
	r, err := recordOf(d)
	if err != nil {
		h.cfg.Log.Warn("what is layered is not known", "deployment", d.id, "error", err)
	}
	if r == nil {
		return &p
	}
	for _, l := range r.Lock.Install {
		p.Layered = append(p.Layered, l.Name+" "+l.Version)
		if l.Replaces != "" {
			p.Replaced = append(p.Replaced, l.Name+" "+l.Version)
		}
	}
	return &p
}
