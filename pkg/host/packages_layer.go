package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/imageroot"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// layerBase is an image in the store that packages go on.
type layerBase struct {
	ref   ocibridge.Reference
	root  string
	image *imageInfo
}

// origin names the base where its layers are: by digest where that can be said.
func (b layerBase) origin() (ocibridge.Reference, error) {
	if b.ref.Transport != ocibridge.Registry {
		return b.ref, nil
	}
	return b.ref.WithDigest(b.image.digest)
}

type layerOptions struct {
	// before is the deployment that is continued: its /etc has the repositories,
	// and the accounts of its packages keep their numbers.
	before *deployment
	// update: the base moves. What it cannot take is left out, and packages that
	// were put on it once are taken as they are.
	update bool
	// refresh: as update, on the same base, and with what is newest now.
	refresh   bool
	cacheOnly bool
	asked     asked
	// stop ends after a step; nothing is deployed then.
	stop layerStep
}

type layerStep int

const (
	afterResolve layerStep = iota + 1
	afterFetch
)

// layered is what an intent came to on a base.
type layered struct {
	root     string
	record   *packageRecord // nil: nothing is asked for
	lock     *layering.Lock // nil: no package is put on the base
	warnings []string
}

// layer puts the packages that are wanted on a base and imports the result. An
// intent that asks for nothing gives the base itself, and so does one whose
// packages the base has.
func (h *Host) layer(ctx context.Context, base layerBase, wants packageIntent, o layerOptions) (*layered, error) {
	out := &layered{root: base.root}
	if wants.empty() {
		return out, nil
	}
	if unified, err := h.store.BootsUKI(ctx, base.root); err != nil {
		return nil, err
	} else if unified {
		signer, err := h.ukiSigner(ctx)
		if err != nil {
			return nil, err
		}
		if signer == nil {
			return nil, imageroot.ErrSealed
		}
	}
	out.record = &packageRecord{packageIntent: wants, base: base.image.digest}
	images, err := h.localImages()
	if err != nil {
		return nil, err
	}
	defer images.Root.Close()
	if wants.initramfs != nil { // one that was made earlier has not seen this /etc
		if out.warnings, err = h.checkDracut(ctx, o.before); err != nil {
			return nil, err
		}
	}
	var image *layering.Stored
	if o.update && !o.refresh {
		if image, err = findStored(images, base.image.digest, wants); err != nil {
			return nil, err
		}
	}
	if image == nil {
		if image, err = h.makeLayer(ctx, images, base, out, o); err != nil || image == nil {
			return out, err
		}
	}
	out.lock = &image.Lock
	if out.record.engine == "" { // of an earlier session
		out.record.engine, out.record.inactive = image.Lock.Engine, inactiveOf(image)
	}
	if out.record.lock, err = lockDigest(&image.Lock); err != nil {
		return nil, err
	}
	src, err := h.openLocal(ctx, image.Name, base)
	if err != nil {
		return nil, err
	}
	defer h.cfg.closeQuietly(src)
	out.root, err = h.store.Import(ctx, src, base.ref, base.root)
	return out, err
}

// makeLayer runs the package manager and adds the image that comes of it to the
// layout; nil where no package is put on the base.
func (h *Host) makeLayer(ctx context.Context, images layering.Layout, base layerBase, out *layered, o layerOptions) (_ *layering.Stored, err error) {
	etc, done, err := h.hostEtc(o.before)
	if err != nil {
		return nil, err
	}
	defer done()
	if out.record.anyPackage() {
		h.cfg.Progress.Step(v1.TaskImporting, "Choosing packages")
	}
	s, err := h.openPackages(ctx, layering.Base{Created: base.image.created}, base.root, layering.Options{HostEtc: etc, CacheOnly: o.cacheOnly})
	if err != nil {
		return nil, withPackages(err, out.record)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	a := &attempt{Host: h, session: s, options: o}
	if err := a.sameEngine(out.record); err != nil {
		return nil, err
	}
	if err := a.run(ctx, out); err != nil {
		return nil, err
	}
	out.lock, out.record.engine = a.lock, s.Engine()
	if a.lock != nil {
		out.record.nameFiles(a.lock)
		out.record.inactive = slices.Clone(a.lock.Inactive)
		out.record.settle(a.set, a.lock)
	}
	if o.stop != 0 || a.layer == nil {
		return nil, nil
	}
	out.warnings = append(out.warnings, layerWarnings(a.layer)...)
	image := &layering.Stored{Record: layering.Record{Base: base.image.digest, Request: a.request, Lock: *a.lock}}
	name, err := localName(base, a.lock)
	if err != nil {
		return nil, err
	}
	d, err := images.Add(name, layering.BaseImage{Digest: base.image.digest, Manifest: base.image.manifest, Config: base.image.config}, a.request, a.lock, a.layer)
	if err != nil {
		return nil, err
	}
	image.Derived = *d
	return image, nil
}

// layerWarnings are what packages did that an image cannot have, or not as they
// meant it.
func layerWarnings(l *layering.Layer) (list []string) {
	if len(l.Secrets) > 0 {
		list = append(list, "keys that a package generated are not in the image: "+someOf(l.Secrets))
	}
	var names, files []string
	for _, f := range l.Factory {
		files = append(files, f.Path)
		if f.Package != "" && !slices.Contains(names, f.Package) {
			names = append(names, f.Package)
		}
	}
	if len(files) > 0 {
		who := ""
		if len(names) > 0 {
			who = " of " + someOf(names)
		}
		list = append(list, "files in /var"+who+" are put there at the first boot, and a later version does not change them: "+someOf(files))
	}
	if l.Relabels {
		list = append(list, "the packages change the rules for SELinux labels, so files of the image may get other labels than it has by itself")
	}
	if l.VarDatabase != "" {
		list = append(list, "the image has its package database in "+l.VarDatabase+", which is the host's: where a host has that directory already, its own package manager does not see these packages (kedge pkg list does). Whoever builds the image should keep the database in /usr, and link it")
	}
	return list
}

// openPackages starts the package manager of a root of the store.
func (h *Host) openPackages(ctx context.Context, base layering.Base, root string, o layering.Options) (*layering.Session, error) {
	base.Mount = func(ctx context.Context, dir string) (string, error) { return h.store.Mount(ctx, root, dir) }
	o.Work, o.Cache, o.Logger = h.packageDir("work"), h.packageDir("cache"), h.cfg.Log
	return layering.Open(ctx, base, o)
}

// withPackages says of a base that cannot take packages what they are.
func withPackages(err error, r *packageRecord) error {
	if fault.KindOf(err) != fault.Conflict {
		return err
	}
	if !r.anyPackage() {
		return fmt.Errorf("the initramfs is to be made on this host: %w", err)
	}
	return fmt.Errorf("packages are asked for on this host (%s): %w", someOf(append(r.names(), r.overridden()...)), err)
}

// hostEtc returns a path of the deployment's /etc that is good until done.
func (h *Host) hostEtc(d *deployment) (dir string, done func(), err error) {
	root, vardir, err := h.store.OpenDeployment(d)
	if err != nil {
		return "", nil, err
	}
	defer root.Close()
	defer vardir.Close()
	etc, err := root.Open("etc")
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d", etc.Fd()), func() { _ = etc.Close() }, nil
}

// Beneath the store's StateDir: kedge's OCI layout of images with packages,
// what was fetched, and sessions that are under way.
const packagesDir = "packages"

// packageDir is a path beneath packagesDir: programs are told it.
func (h *Host) packageDir(name string) string {
	return filepath.Join(h.root.Name(), h.store.StateDir(), packagesDir, name)
}

func (h *Host) localImages() (l layering.Layout, err error) {
	dir := path.Join(h.store.StateDir(), packagesDir, "images")
	if err := h.root.MkdirAll(dir, 0o755); err != nil {
		return l, err
	}
	l.Root, err = h.root.OpenRoot(dir)
	return l, err
}

// openLocal opens an image of the layout. What it is made of has been allowed by
// the policy when the base was fetched, and by the package manager. Layers of
// the base that the store lacks come from where the base came from.
func (h *Host) openLocal(ctx context.Context, name string, base layerBase) (*ocibridge.Source, error) {
	ref, err := ocibridge.ParseReference(h.packageDir("images")+":"+name, ocibridge.OCI)
	if err != nil {
		return nil, err
	}
	opt := h.cfg.Images
	origin, err := base.origin()
	if err != nil {
		return nil, err
	}
	opt.Origin = &origin
	opt.PolicyFile = h.packageDir("policy.json")
	if err := os.WriteFile(opt.PolicyFile, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`+"\n"), 0o644); err != nil {
		return nil, err
	}
	return ocibridge.Open(ctx, ref, opt)
}

// localName names an image with packages: its base and its lock.
func localName(base layerBase, lock *layering.Lock) (string, error) {
	sum, err := lockDigest(lock)
	if err != nil {
		return "", err
	}
	name := strings.ToLower(base.ref.Name)
	name = name[strings.LastIndexByte(name, '/')+1:]
	if i := strings.IndexAny(name, ":@"); i >= 0 {
		name = name[:i]
	}
	name = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name), "-")
	const short = 12
	return fmt.Sprintf("localhost/kedge/%s:%.*s-%.*s", orDefault(name, "image"), short, trimDigest(base.image.digest), short, trimDigest(sum)), nil
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func lockDigest(lock *layering.Lock) (string, error) {
	b, err := json.Marshal(lock)
	return digest.FromBytes(b).String(), err
}

// findStored looks for an image that was made of the same request on the same
// base; nil for none.
func findStored(images layering.Layout, base string, wants packageIntent) (*layering.Stored, error) {
	list, err := images.Images()
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.Base == base && s.Format == layering.Format && sameInitramfs(s.Request.Initramfs, wants.initramfs) && slices.Equal(s.Request.Install, wants.install) &&
			slices.Equal(s.Request.Remove, wants.remove) && sameReplacements(s.Request.Replace, wants.replace) && sameFiles(&s.Lock, wants.local()) {
			return &s, nil
		}
	}
	return nil, nil
}

func sameFiles(lock *layering.Lock, files []localPackage) bool {
	n := 0
	for _, p := range lock.Install {
		if p.Repository != "" {
			continue
		}
		if n++; !slices.ContainsFunc(files, func(f localPackage) bool { return "sha256:"+f.sum == p.Checksum }) {
			return false
		}
	}
	return n == len(files)
}
