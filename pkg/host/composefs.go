package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot"
	"github.com/kedge-os/kedge/pkg/boot/imageroot"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// Beneath the physical root. The layout is bootc's.
const (
	composefsDir   = "composefs"
	composefsState = "state/kedge"
	composefsVar   = "state/os/default/var"
	// composefsDeployments match the directories of deployments.
	composefsDeployments = "state/deploy/*"
)

var composefsBackend = &backend{
	name: "composefs", dir: "state/deploy", deployments: composefsDeployments, marker: "run/composefs/staged-deployment", own: []string{composefsDir, "state"},
	needs: requirement{
		"kedge-initramfs or bootc-root-setup", "the initramfs may lack it too, and the image then does not boot",
		[]string{"usr/lib/kedge/kedge-initramfs", "usr/lib/bootc/initramfs-setup", "usr/lib/systemd/system/bootc-root-setup.service"},
	},
	initialise: initialiseComposefs,
	open:       openComposefs,
}

// composefsStore is the composefs backend: a repository of composefs-rs and
// bootc's deployments of its images. A root is the fs-verity digest of an image.
type composefsStore struct {
	menu[*imageroot.Deployment]
	cfg     Config
	sysroot *imageroot.Sysroot
	repo    *composefs.Repo
	change  announcement

	// What was read of images, by digest.
	files map[string]*composefs.Files
	// The manifests of the images that were imported, by the digest of the root.
	manifests map[string]string
}

func openComposefs(cfg Config) (_ store, err error) {
	s := &composefsStore{
		cfg: cfg, change: announcement{dir: composefsState, log: cfg.Log},
		files: map[string]*composefs.Files{}, manifests: map[string]string{},
	}
	o := imageroot.Options{Repo: (*imageFiles)(s), Logger: cfg.Log, Clock: cfg.Clock, Host: cfg.Machine, NoSync: cfg.NoSync, Writable: cfg.Write, Tries: cfg.tries()}
	o.Mount = func(ctx context.Context, digest, dir string) error {
		_, err := s.Mount(ctx, digest, dir)
		return err
	}
	if cfg.Machine == "/" {
		o.StartFinalizer = boot.StartFinalizer
	}
	if o.Loader, _, err = findLoader(cfg, "state/deploy", composefsState, true); err != nil {
		return nil, err
	}
	if s.sysroot, err = imageroot.Open(cfg.Sysroot, o); err != nil {
		return nil, err
	}
	s.menu = menu[*imageroot.Deployment]{list: s.sysroot, begin: s.begin, is: func(b *imageroot.Deployment, d *deployment) bool {
		return b.Digest == d.root && b.Serial == d.serial && b.Staged == d.staged
	}}
	if s.repo, err = composefs.OpenRepo(s.sysroot.Root(), composefsDir); err != nil {
		s.sysroot.Close()
		return nil, err
	}
	if cfg.ComposefsTool != "" && s.repo.Algorithm() != fsverity.SHA256 {
		s.Close()
		return nil, errLongDigests
	}
	return s, nil
}

// errLongDigests is what a mkcomposefs program is answered with where it would
// cut digests.
var errLongDigests = fault.New(fault.Usage, "leave --composefs-tool out: kedge writes the images itself",
	"the composefs repository has sha512 digests, for which mkcomposefs has no form")

// initialiseComposefs makes a directory a sysroot of the composefs backend. The
// repository comes first: it is what a file system without fs-verity refuses.
func initialiseComposefs(cfg Config, o InstallOptions) error {
	if o.Stateroot != defaultStateroot {
		return fault.New(fault.Usage, "leave --stateroot out", "stateroot %q: the composefs backend has one /var for all roots", o.Stateroot)
	}
	root, err := os.OpenRoot(cfg.Sysroot)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(composefsDir); cfg.ComposefsTool != "" && errors.Is(err, fs.ErrNotExist) {
		return errLongDigests // what a new repository has
	}
	repo, err := composefs.CreateRepo(root, composefsDir, composefs.CreateOptions{AllowMissingVerity: o.AllowMissingVerity})
	if err != nil {
		return withoutVerity(err)
	}
	defer repo.Close()
	if !repo.Sealed() && !o.AllowMissingVerity {
		return errUnsealed
	}
	return imageroot.Init(cfg.Sysroot)
}

// Close implements store.
func (s *composefsStore) Close() {
	_ = s.repo.Close() // descriptors of directories: nothing is written by closing them
	s.sysroot.Close()
}

// Name implements store.
func (s *composefsStore) Name() string { return composefsBackend.name }

// Root implements store; the directory holds composefs/ and state/.
func (s *composefsStore) Root() *os.Root { return s.sysroot.Root() }

// StateDir implements store.
func (s *composefsStore) StateDir() string { return composefsState }

// Booted implements store.
func (s *composefsStore) Booted() bool { return s.sysroot.IsBooted() }

// Interrupted implements store.
func (s *composefsStore) Interrupted() bool { return s.change.interrupted }

// KernelDirs implements store.
func (s *composefsStore) KernelDirs() string { return imageroot.KernelDirs }

// Problems implements store.
func (s *composefsStore) Problems() []error { return s.sysroot.Problems() }

// Warnings implements store.
func (s *composefsStore) Warnings(list deployments) (warnings []string) {
	for i, d := range list {
		for _, o := range list[i+1:] {
			if d.root == o.root {
				warnings = append(warnings, fmt.Sprintf(
					"deployments %d and %d have the same root and share its state: /etc, the image they follow, and the pin", d.index, o.index))
			}
		}
	}
	return warnings
}

// Lock implements store. The lock is kedge's own; bootc has none.
func (s *composefsStore) Lock(ctx context.Context) error {
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
func (s *composefsStore) Unlock() {
	s.change.finish(s.Root(), func() error { return s.sysroot.Cleanup(context.Background()) })
	s.sysroot.Unlock()
}

func (s *composefsStore) begin() error {
	return s.change.begin(s.Root(), func() error { return nil })
}

// recover removes what a writer that died left, except for fetched layers.
func (s *composefsStore) recover(ctx context.Context) error {
	if err := s.change.checkListed(s.Root(), composefsDeployments, len(s.sysroot.Deployments())); err != nil {
		return err
	}
	if died, err := s.change.look(s.Root()); !died || err != nil {
		return err
	}
	_, err := s.sweep(ctx, false)
	return wrap("remove what an interrupted change left", err)
}

// Deployments implements store.
func (s *composefsStore) Deployments() (deployments, error) {
	var list deployments
	for _, b := range s.sysroot.Deployments() {
		d := &deployment{
			id: b.Name(), index: b.Index, root: b.Digest, stateroot: defaultStateroot, serial: b.Serial,
			booted: b.Booted, staged: b.Staged, foreign: b.Staged && !b.Ours, pinned: b.Pinned(),
			downloadOnly: b.Held, origin: parseOrigin(b.Origin), kargs: b.Kargs(), manifest: b.ManifestDigest(),
			counter: b.Counter(), key: b.Digest + " " + b.Kargs().String(), made: modified(s.Root(), b.OriginPath()),
		}
		d.kernel, d.signedHere = b.KernelFile(), b.MadeHere()
		var err error
		if d.image, err = s.image(d.manifest); err != nil {
			s.cfg.Log.Warn("the image of a deployment cannot be read", "deployment", d.id, "error", err)
		}
		if d.image != nil {
			d.update = s.notedUpdate(d.image.digest)
		}
		list = append(list, d)
	}
	return list, nil
}

// image reads manifest and config of an image; nil for no digest.
func (s *composefsStore) image(manifest string) (*imageInfo, error) {
	if manifest == "" {
		return nil, nil
	}
	stored, err := s.repo.ReadImage(manifest)
	if err != nil {
		return nil, err
	}
	return parseImage(stored.ManifestDigest, stored.Manifest, stored.Config)
}

// Describe implements store.
func (s *composefsStore) Describe(d *deployment, e *v1.BootEntry) {
	b, err := s.native(d)
	if err != nil {
		return
	}
	e.Composefs = &v1.BootEntryComposefs{
		Verity: b.Digest, BootType: bootTypes[b.Type], Bootloader: s.bootloader(), MissingVerityAllowed: b.VerityOptional,
	}
	if digest := b.BootDigest(); digest != "" {
		e.Composefs.BootDigest = &digest
	}
}

// ImageKargs implements store.
func (s *composefsStore) ImageKargs(ctx context.Context, d *deployment) (karg.Args, error) {
	b, err := s.native(d)
	if err != nil {
		return nil, err
	}
	return s.sysroot.ImageKargs(ctx, b)
}

var bootTypes = map[imageroot.BootType]string{imageroot.TypeBLS: "Bls", imageroot.TypeUKI: "Uki"}

// bootloader names the one that started the machine, in bootc's words; "none"
// on a sysroot that is not booted.
func (s *composefsStore) bootloader() string {
	if !s.Booted() {
		return "none"
	}
	name := strings.ToLower(s.cfg.firmware().Info)
	switch {
	case strings.Contains(name, "systemd-boot"):
		return "systemd"
	case strings.Contains(name, "grub cc"):
		return "grub-cc"
	}
	return "grub"
}

// OpenDeployment implements store. Where the root is not mounted its state is
// opened, which has etc and nothing else.
func (s *composefsStore) OpenDeployment(d *deployment) (root, vardir *os.Root, err error) {
	b, err := s.native(d)
	if err != nil {
		return nil, nil, err
	}
	if root, err = s.Root().OpenRoot(b.Dir()); err != nil {
		return nil, nil, err
	}
	if vardir, err = s.Root().OpenRoot(composefsVar); err != nil {
		_ = root.Close()
	}
	return root, vardir, err
}

// update is what NoteUpdate keeps.
type update struct {
	Of       string `json:"of"` // the manifest of the deployment
	Digest   string `json:"digest"`
	Manifest []byte `json:"manifest"`
	Config   []byte `json:"config"`
}

const updateFile = composefsState + "/update"

// NoteUpdate implements store. bootc has no place for it on this backend.
func (s *composefsStore) NoteUpdate(_ context.Context, d *deployment, i *imageInfo) error {
	if d.image == nil {
		return nil
	}
	data, err := json.Marshal(update{d.image.digest, i.digest, i.manifest, i.config})
	if err != nil {
		return err
	}
	return atomicfile.Write(s.Root(), updateFile, data, 0o644)
}

// notedUpdate returns what was noted for a manifest; nil where that is nothing
// that can be read.
func (s *composefsStore) notedUpdate(manifest string) *imageInfo {
	data, err := s.Root().ReadFile(updateFile)
	if err != nil {
		return nil
	}
	var u update
	if json.Unmarshal(data, &u) != nil || u.Of != manifest {
		return nil
	}
	info, err := parseImage(u.Digest, u.Manifest, u.Config)
	if err != nil {
		return nil
	}
	return info
}

// read returns the files of a root.
func (s *composefsStore) read(ctx context.Context, root string) (*composefs.Files, error) {
	if f := s.files[root]; f != nil {
		return f, nil
	}
	d, err := composefs.ParseDigest(root)
	if err != nil {
		return nil, err
	}
	f, err := s.repo.Files(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Corrupt, "run kedge fsck --repair", "%w", err)
	}
	if err == nil {
		s.files[root] = f
	}
	return f, err
}

// Tree implements store.
func (s *composefsStore) Tree(ctx context.Context, root string) (*fstree.Tree, error) {
	f, err := s.read(ctx, root)
	if err != nil {
		return nil, err
	}
	return f.Tree, nil
}

// Exists implements store.
func (s *composefsStore) Exists(root, name string) (bool, error) {
	t, err := s.Tree(context.Background(), root)
	return err == nil && t.Lookup(name) != nil, err
}

// SameContent implements store. Handles stand for bytes and nothing else.
func (s *composefsStore) SameContent(a, b *fstree.Inode) (bool, error) {
	return a.Content == b.Content, nil
}

// OpenFile implements store.
func (s *composefsStore) OpenFile(n *fstree.Inode) (io.ReadCloser, error) {
	return (*imageFiles)(s).Open(context.Background(), n)
}

// imageFiles is the store's repository as package imageroot needs it.
type imageFiles composefsStore

// Tree implements imageroot.Repo.
func (f *imageFiles) Tree(ctx context.Context, digest string) (*fstree.Tree, error) {
	return (*composefsStore)(f).Tree(ctx, digest)
}

// Open implements imageroot.Repo. Handles are good in the image that has them,
// and equal in all.
func (f *imageFiles) Open(_ context.Context, n *fstree.Inode) (r io.ReadCloser, err error) {
	err = fault.New(fault.Internal, "", "a file of an image that was not read")
	for _, files := range f.files {
		if r, err = files.Open(n); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return r, err
}

// state opens kedge's own directory beside the repository.
func (s *composefsStore) state() (*os.Root, error) {
	if err := s.Root().MkdirAll(composefsState, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", composefsState, err)
	}
	return s.Root().OpenRoot(composefsState)
}
