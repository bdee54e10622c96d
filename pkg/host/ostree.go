package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
	"github.com/kedge-os/kedge/pkg/selinux"
)

const repoDir = "ostree/repo"

// ostreeStore is the ostree backend: libostree's repository and its sysroot.
// Its methods are what Host asks of a store, in words that hold for any: lock,
// deployments, import, deploy, reorder, pin, clean up, check. Nothing outside
// the ostree*.go files of this package names a commit or a boot.Deployment.
type ostreeStore struct {
	cfg     Config
	sysroot *boot.Sysroot
	repo    *ostree.Repo

	begun       bool // this process has announced a change
	interrupted bool // a writer that died had announced one
	swept       bool // nothing is left over of it
}

func openOSTree(cfg Config) (*ostreeStore, error) {
	s := &ostreeStore{cfg: cfg}
	var err error
	o := boot.Options{Repo: (*bootRepo)(s), Logger: cfg.Log, Clock: cfg.Clock, Host: cfg.Machine, NoSync: cfg.NoSync, Writable: cfg.Write}
	if cfg.Machine == "/" {
		o.StartFinalizer = boot.StartFinalizer
	}
	s.sysroot, err = boot.Open(cfg.Sysroot, o)
	if err != nil {
		return nil, err
	}
	if s.repo, err = ostree.OpenAt(s.sysroot.Root(), repoDir); err != nil {
		s.sysroot.Close()
		return nil, err
	}
	return s, nil
}

func (s *ostreeStore) Close() {
	_ = s.repo.Close() // descriptors of directories: nothing is written by closing them
	s.sysroot.Close()
}

// Name returns the backend's name as status shows it.
func (s *ostreeStore) Name() string { return "ostree" }

// Root returns the directory that holds ostree/.
func (s *ostreeStore) Root() *os.Root { return s.sysroot.Root() }

// Booted reports whether the machine runs from this store.
func (s *ostreeStore) Booted() bool { return s.sysroot.IsBooted() }

// Lock excludes every other writer, libostree's too, until Unlock, and clears
// up after one that died.
func (s *ostreeStore) Lock(ctx context.Context) error {
	if err := s.sysroot.Lock(ctx); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		s.sysroot.Unlock()
		return fmt.Errorf("remove what an interrupted change left: %w", err)
	}
	return nil
}

// Unlock ends what Lock began, and takes back what a failed change left.
func (s *ostreeStore) Unlock() {
	s.finish()
	s.sysroot.Unlock()
}

// Problems returns what is wrong with the sysroot and was passed over.
func (s *ostreeStore) Problems() []error { return s.sysroot.Problems() }

// Deployments returns the deployments as they are on disk.
func (s *ostreeStore) Deployments() (deployments, error) {
	var list deployments
	for _, b := range s.sysroot.Deployments() {
		d := &deployment{
			id: b.Stateroot + "/" + b.Name(), index: b.Index, root: b.Checksum, stateroot: b.Stateroot, serial: b.Serial,
			booted: b.Booted, staged: b.Staged, foreign: b.Staged && !b.Ours, pinned: b.Pinned(),
			downloadOnly: b.Held, origin: parseOrigin(b.Origin), kargs: b.Kargs(),
		}
		var err error
		if d.image, err = s.image(b.Checksum); err != nil {
			s.cfg.Log.Warn("the image of a deployment cannot be read", "deployment", d.id, "error", err)
		}
		d.update = s.notedUpdate(b.Checksum)
		list = append(list, d)
	}
	return list, nil
}

// NoteUpdate notes, where bootc looks for it, an image that is newer than that
// of a deployment.
func (s *ostreeStore) NoteUpdate(ctx context.Context, d *deployment, i *imageInfo) error {
	sum, err := object.ParseChecksum(d.root)
	if err != nil {
		return err
	}
	return s.repo.SetCachedUpdate(ctx, sum, &ostree.CachedUpdate{ManifestDigest: i.digest, Manifest: i.manifest, Config: i.config})
}

// notedUpdate returns what NoteUpdate or bootc noted; nil where that is
// nothing that can be read.
func (s *ostreeStore) notedUpdate(commit string) *imageInfo {
	sum, err := object.ParseChecksum(commit)
	if err != nil {
		return nil
	}
	u, err := s.repo.CachedUpdate(sum)
	if err != nil || u == nil {
		return nil
	}
	info, err := parseImage(u.ManifestDigest, u.Manifest, u.Config)
	if err != nil {
		return nil
	}
	return info
}

// Describe fills in what status says of a deployment of this backend alone.
func (s *ostreeStore) Describe(d *deployment, e *v1.BootEntry) {
	store := v1.StoreOSTreeContainer
	e.Store = &store
	e.OSTree = &v1.BootEntryOSTree{Stateroot: d.stateroot, Checksum: d.root, DeploySerial: uint32(d.serial)}
}

// image reads the image that a commit was made from; nil where it was made
// from none.
func (s *ostreeStore) image(commit string) (*imageInfo, error) {
	sum, err := object.ParseChecksum(commit)
	if err != nil {
		return nil, err
	}
	c, err := s.repo.ContainerManifest(sum)
	if errors.Is(err, ostree.ErrNotContainer) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseImage(c.ManifestDigest, c.Manifest, c.Config)
}

// native returns boot's value for a deployment.
func (s *ostreeStore) native(d *deployment) (*boot.Deployment, error) {
	for _, b := range s.sysroot.Deployments() {
		if b.Stateroot == d.stateroot && b.Checksum == d.root && b.Serial == d.serial && b.Staged == d.staged {
			return b, nil
		}
	}
	return nil, fault.New(fault.NotFound, "kedge status shows what there is", "the deployment %s is gone", d.id)
}

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
func originOf(base *boot.Deployment, ref ocibridge.Reference) *keyfile.File {
	f := &keyfile.File{}
	if base != nil {
		f = base.Origin.Clone()
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

// speculative returns the policy that will probably label the next root.
func (s *ostreeStore) speculative() ostree.Labeler {
	list := s.sysroot.Deployments()
	for _, d := range list {
		root, err := s.Root().OpenRoot(d.Dir())
		if err != nil {
			continue
		}
		policy, err := selinux.Load(root)
		_ = root.Close()
		if err == nil && policy != nil {
			return policy
		}
		return nil
	}
	return nil
}

// initialise makes a directory a sysroot with an empty repository. What is
// there of a sysroot already stays.
func initialise(dir string) error {
	if err := boot.Init(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(repoDir + "/config"); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	repo, err := ostree.CreateAt(root, repoDir, ostree.Bare)
	if err != nil {
		return err
	}
	return errors.Join(setSysrootConfig(repo), repo.Close())
}

// setSysrootConfig sets what bootc sets at installation: no loader is written
// by libostree, paths in boot entries have the prefix that fits /boot on the
// root file system as well as on one of its own, and the booted host mounts
// /sysroot read-only.
func setSysrootConfig(repo *ostree.Repo) error {
	c := repo.Config()
	for _, key := range []string{"bootprefix", "readonly"} {
		c = c.Set("sysroot", key, "true")
	}
	return repo.SetConfig(c.Set("sysroot", "bootloader", "none"))
}

// InitStateroot makes a stateroot; one that an interrupted installation left
// is used as it is.
func (s *ostreeStore) InitStateroot(name string) error {
	have, err := s.sysroot.Stateroots()
	if err != nil || slices.Contains(have, name) {
		return err
	}
	return s.sysroot.InitStateroot(name)
}
