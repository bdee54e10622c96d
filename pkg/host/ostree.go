package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
	"github.com/kedge-os/kedge/pkg/selinux"
)

const repoDir = "ostree/repo"

// stateDir is kedge's own state beside the repository.
const stateDir = "ostree/kedge"

// ostreeDeployments match the directories of deployments.
const ostreeDeployments = "ostree/deploy/*/deploy/*.*"

var ostreeBackend = &backend{
	name: "ostree", dir: "ostree/deploy", deployments: ostreeDeployments, marker: "run/ostree/staged-deployment", own: []string{"ostree"},
	needs: requirement{
		"ostree-prepare-root", "the initramfs may lack it too, and the image then does not boot",
		[]string{"usr/lib/ostree/ostree-prepare-root"},
	},
	initialise: func(cfg Config, _ InstallOptions) error { return initialise(cfg.Sysroot) },
	open:       openOSTree,
}

// ostreeStore is the ostree backend: libostree's repository and its sysroot.
type ostreeStore struct {
	menu[*boot.Deployment]
	cfg     Config
	sysroot *boot.Sysroot
	repo    *ostree.Repo
	change  announcement
}

func openOSTree(cfg Config) (store, error) {
	s := &ostreeStore{cfg: cfg, change: announcement{dir: stateDir, log: cfg.Log}}
	var err error
	o := boot.Options{Repo: (*bootRepo)(s), Logger: cfg.Log, Clock: cfg.Clock, Host: cfg.Machine, NoSync: cfg.NoSync, Writable: cfg.Write, Tries: cfg.tries()}
	if cfg.Machine == "/" {
		o.StartFinalizer = boot.StartFinalizer
	}
	var rec loader.Record
	if o.Loader, rec, err = findLoader(cfg, "ostree/deploy", stateDir, false); err != nil {
		return nil, err
	}
	o.Token = rec.Token
	if s.sysroot, err = boot.Open(cfg.Sysroot, o); err != nil {
		return nil, err
	}
	s.menu = menu[*boot.Deployment]{list: s.sysroot, begin: s.begin, is: func(b *boot.Deployment, d *deployment) bool {
		return b.Stateroot == d.stateroot && b.Checksum == d.root && b.Serial == d.serial && b.Staged == d.staged
	}}
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

// Name implements store.
func (s *ostreeStore) Name() string { return "ostree" }

// Root implements store; the directory holds ostree/.
func (s *ostreeStore) Root() *os.Root { return s.sysroot.Root() }

// StateDir implements store.
func (s *ostreeStore) StateDir() string { return stateDir }

// Booted implements store.
func (s *ostreeStore) Booted() bool { return s.sysroot.IsBooted() }

// Interrupted implements store.
func (s *ostreeStore) Interrupted() bool { return s.change.interrupted }

// KernelDirs implements store.
func (s *ostreeStore) KernelDirs() string { return "ostree/*-*" }

// Warnings implements store.
func (s *ostreeStore) Warnings(deployments) []string { return nil }

// CheckVerity implements store. Whether an image wants fs-verity is known when it
// is there, and is looked at then.
func (s *ostreeStore) CheckVerity(*deployment, bool) error { return nil }

// Lock implements store. The lock is libostree's.
func (s *ostreeStore) Lock(ctx context.Context) error {
	if err := s.sysroot.Lock(ctx); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		s.sysroot.Unlock()
		return err
	}
	return nil
}

// Unlock implements store, and takes back what a failed change left.
func (s *ostreeStore) Unlock() {
	s.change.finish(s.Root(), func() error { return s.sysroot.Cleanup(context.Background()) })
	s.sysroot.Unlock()
}

// begin announces a change.
func (s *ostreeStore) begin() error { return s.change.begin(s.Root(), s.repo.CleanSides) }

// recover removes what a writer that died left, except for fetched layers,
// which spare the next import some work.
func (s *ostreeStore) recover(ctx context.Context) error {
	if err := s.change.checkListed(s.Root(), ostreeDeployments, len(s.sysroot.Deployments())); err != nil {
		return err
	}
	if died, err := s.change.look(s.Root()); !died || err != nil {
		return err
	}
	err := s.repo.CleanSides()
	if err == nil {
		_, err = s.sweep(ctx, sweepOptions{prune: true})
	}
	return wrap("remove what an interrupted change left", err)
}

// Settle implements store: it gives back the layers too that an interrupted
// change left.
func (s *ostreeStore) Settle(ctx context.Context) error {
	if !s.change.interrupted {
		return nil
	}
	return s.dropStaged(ctx)
}

// abandon removes what a change that failed has brought, image and layers too,
// unless the next try can use it.
func (s *ostreeStore) abandon(ctx context.Context, failure error) {
	if mayContinue(failure) {
		return
	}
	ctx = context.WithoutCancel(ctx)
	if _, err := s.sweep(ctx, sweepOptions{prune: true, staged: true}); err != nil {
		s.cfg.Log.Warn("left-overs were not removed; kedge cleanup does it", "error", err)
	}
}

// Problems implements store.
func (s *ostreeStore) Problems() []error { return s.sysroot.Problems() }

// Deployments implements store.
func (s *ostreeStore) Deployments() (deployments, error) {
	var list deployments
	for _, b := range s.sysroot.Deployments() {
		d := &deployment{
			id: b.Stateroot + "/" + b.Name(), index: b.Index, root: b.Checksum, stateroot: b.Stateroot, serial: b.Serial,
			booted: b.Booted, staged: b.Staged, foreign: b.Staged && !b.Ours, pinned: b.Pinned(),
			downloadOnly: b.Held, origin: parseOrigin(b.Origin), kargs: b.Kargs(), counter: b.Counter(),
			kernel: b.Bootcsum, made: modified(s.Root(), b.OriginPath()),
		}
		d.key = d.id
		var err error
		if d.image, err = s.image(b.Checksum); err != nil {
			s.cfg.Log.Warn("the image of a deployment cannot be read", "deployment", d.id, "error", err)
		}
		if d.image != nil {
			d.manifest = d.image.digest
		}
		d.update = s.notedUpdate(b.Checksum)
		list = append(list, d)
	}
	return list, nil
}

// NoteUpdate implements store, in the place where bootc looks.
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

// Describe implements store.
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

// ImageKargs implements store.
func (s *ostreeStore) ImageKargs(_ context.Context, d *deployment) (karg.Args, error) {
	b, err := s.native(d)
	if err != nil {
		return nil, err
	}
	return s.sysroot.ImageKargs(b)
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
	// With boot entries it is somebody's host. Without, an installation may have
	// died between the repository and its configuration.
	if _, err := root.Lstat("boot/loader"); !errors.Is(err, fs.ErrNotExist) {
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

// InitStateroot implements store.
func (s *ostreeStore) InitStateroot(name string) error {
	have, err := s.sysroot.Stateroots()
	if err != nil || slices.Contains(have, name) {
		return err
	}
	return s.sysroot.InitStateroot(name)
}
