package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// files is a tree as path → content; a path that ends with "/" is a directory,
// content that starts with "->" a symlink.
type files map[string]string

func osTree(kernel string) files {
	return files{
		"usr/lib/modules/6.1.0/vmlinuz":       kernel,
		"usr/lib/modules/6.1.0/initramfs.img": "initramfs of " + kernel,
		"usr/lib/os-release":                  "ID=test\nVERSION_ID=\"1.2\"\nPRETTY_NAME=\"Test OS\"\n",
		"usr/lib/tmpfiles.d/":                 "",
		"usr/bin/hello":                       "hello",
		"etc/conf":                            "default",
		"etc/app/app.conf":                    "app default",
		"etc/link":                            "->conf",
		"etc/.updated":                        "",
		"boot/":                               "",
		"sysroot/":                            "",
		"var/lib/app/data":                    "seed",
	}
}

func (f files) with(change files) files {
	out := files{}
	for _, m := range []files{f, change} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func (f files) without(names ...string) files {
	out := f.with(nil)
	for _, n := range names {
		delete(out, n)
	}
	return out
}

func (f files) write(t testing.TB, dir string) {
	t.Helper()
	for name, content := range f {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(p, 0o755))
		case strings.HasPrefix(content, "->"):
			must(t, os.Symlink(content[2:], p))
		default:
			must(t, os.WriteFile(p, []byte(content), 0o644))
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, kind fault.Kind, text string) {
	t.Helper()
	if fault.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("error = %v of kind %v, want %v with %q", err, fault.KindOf(err), kind, text)
	}
}

// dirRepo keeps images as plain directories named by their digests.
type dirRepo struct {
	dir   string
	paths map[*fstree.Inode]string
}

func newRepo(dir string) *dirRepo { return &dirRepo{dir: dir, paths: map[*fstree.Inode]string{}} }

func (r *dirRepo) Tree(ctx context.Context, digest string) (*fstree.Tree, error) {
	dir := filepath.Join(r.dir, digest)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.NotFound, "", "image %s: %w", digest, err)
	}
	defer root.Close()
	tree, err := composefs.NewMeter(composefs.SHA512).ReadDir(ctx, root)
	if err != nil {
		return nil, err
	}
	return tree, tree.Walk(func(path string, n *fstree.Inode) error {
		r.paths[n] = filepath.Join(dir, path)
		return nil
	})
}

func (r *dirRepo) Open(_ context.Context, n *fstree.Inode) (io.ReadCloser, error) {
	return os.Open(r.paths[n])
}

func (r *dirRepo) UKI(_ context.Context, digest string) (UKIFile, error) {
	f, err := os.Open(filepath.Join(r.dir, digest+".efi"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// digestOf returns the fs-verity digest of the image of a directory.
func digestOf(t testing.TB, dir string) string {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	meter := composefs.NewMeter(composefs.SHA512)
	tree, err := meter.ReadDir(context.Background(), root)
	must(t, err)
	image, err := composefs.FromTree(tree, meter.File)
	must(t, err)
	o := composefs.V1
	o.Algorithm = composefs.SHA512
	info, err := composefs.WriteImage(io.Discard, image, o)
	must(t, err)
	return info.Digest.String()
}

// world is a sysroot on disk with a few images.
type world struct {
	t    testing.TB
	dir  string // the sysroot
	host string // the pretended machine's root
}

func newWorld(t testing.TB) *world {
	t.Helper()
	lab.NeedRoot(t)
	top := t.TempDir()
	w := &world{t: t, dir: top + "/sysroot", host: top + "/host"}
	for _, d := range []string{w.dir, w.host} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, Init(w.dir))
	must(t, os.Mkdir(filepath.Join(w.dir, repoDir), 0o700))
	return w
}

// image stores a tree and returns its digest.
func (w *world) image(f files) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(filepath.Join(w.dir, repoDir), "new-")
	must(w.t, err)
	must(w.t, os.Chmod(dir, 0o755))
	f.write(w.t, dir)
	digest := digestOf(w.t, dir)
	must(w.t, os.Rename(dir, filepath.Join(w.dir, repoDir, digest)))
	return digest
}

// unified stores a tree that comes with a unified kernel image, whose command
// line has composefs= and these arguments.
func (w *world) unified(f files, kargs string) string {
	w.t.Helper()
	digest := w.image(f)
	w.uki(digest, "composefs="+digest+" "+kargs)
	return digest
}

func (w *world) uki(digest, cmdline string) {
	w.write(filepath.Join(repoDir, digest+".efi"), string(loadertest.UKI(cmdline, "kernel of "+digest, "initrd")))
}

func (w *world) options() Options {
	return Options{Repo: newRepo(filepath.Join(w.dir, repoDir)), Host: w.host, NoSync: true, Logger: slog.New(slog.DiscardHandler), Arch: "x86_64"}
}

// open opens and locks the sysroot.
func (w *world) open() *Sysroot {
	w.t.Helper()
	s, err := Open(w.dir, w.options())
	must(w.t, err)
	w.t.Cleanup(s.Close)
	must(w.t, s.Lock(context.Background()))
	return s
}

// origin is that of an image built from the reference name.
func origin(name string) *keyfile.File {
	f := &keyfile.File{}
	f.Set("origin", "container-image-reference", "ostree-unverified-image:docker://example.com/"+name)
	f.Set(imageGroup, manifestKey, "sha256:"+strings.Repeat("0", 64))
	return f
}

func request(s *Sysroot, digest string) DeployRequest {
	r := DeployRequest{Digest: digest, Origin: origin("os:1"), Merge: s.MergeFor()}
	if r.Merge == nil {
		r.Kargs = karg.Args{"root=UUID=1", "rw"}
	}
	return r
}

// deploy makes an image the default, as an installer or an offline upgrade does.
func (w *world) deploy(s *Sysroot, r DeployRequest) *Deployment {
	w.t.Helper()
	ctx := context.Background()
	d, err := s.Deploy(ctx, r)
	must(w.t, err)
	must(w.t, s.Write(ctx, s.With(d, Retention{Merge: r.Merge, All: true})))
	must(w.t, s.Cleanup(ctx))
	return s.Deployments()[0]
}

// boot pretends that the machine runs from a deployment: w.host becomes its
// root as the initramfs leaves it.
func (w *world) boot(d *Deployment) {
	w.t.Helper()
	must(w.t, os.RemoveAll(w.host))
	for _, dir := range []string{"run", "proc/self", "var", "boot"} {
		must(w.t, os.MkdirAll(filepath.Join(w.host, dir), 0o755))
	}
	must(w.t, os.Symlink(w.dir, filepath.Join(w.host, "sysroot")))
	must(w.t, os.WriteFile(filepath.Join(w.host, "proc/cmdline"), []byte("BOOT_IMAGE=/vmlinuz "+d.options().String()+"\n"), 0o644))
	w.mounts("composefs:" + d.Digest)
}

func (w *world) mounts(source string) {
	w.t.Helper()
	text := "21 1 0:19 / /proc rw,nosuid - proc proc rw\n" +
		"1 1 0:2 / / rw - rootfs none rw\n" +
		"25 1 0:23 / / ro,relatime shared:1 - overlay " + source + " ro,verity=require\n" +
		"26 25 8:1 / /sysroot ro - ext4 /dev/sda1 rw\n"
	must(w.t, os.WriteFile(filepath.Join(w.host, "proc/self/mountinfo"), []byte(text), 0o644))
}

// booted returns a sysroot that the machine runs from.
func (w *world) booted(f files) (*Sysroot, *Deployment) {
	w.t.Helper()
	s := w.open()
	d := w.deploy(s, request(s, w.image(f)))
	s.Close()
	w.boot(d)
	s = w.open()
	return s, s.Booted()
}

func (w *world) stage(s *Sysroot, digest string) *Deployment {
	w.t.Helper()
	d, err := s.Stage(context.Background(), StageRequest{DeployRequest: request(s, digest)})
	must(w.t, err)
	return d
}

// reboot finalises and boots the default.
func (w *world) reboot(s *Sysroot) *Sysroot {
	w.t.Helper()
	_, err := s.Finalize(context.Background())
	must(w.t, err)
	d := s.Deployments()[0]
	s.Close()
	w.boot(d)
	return w.open()
}

func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	must(w.t, err)
	return string(b)
}

func (w *world) write(name, content string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o755))
	must(w.t, os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644))
}

func (w *world) names(dir string) []string {
	w.t.Helper()
	list, err := os.ReadDir(filepath.Join(w.dir, dir))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func (w *world) wantNames(dir string, want ...string) {
	w.t.Helper()
	slices.Sort(want)
	if got := w.names(dir); !slices.Equal(got, want) {
		w.t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func (w *world) gone(name string) {
	w.t.Helper()
	if _, err := os.Lstat(filepath.Join(w.dir, name)); !os.IsNotExist(err) {
		w.t.Errorf("%s is there (%v), want it gone", name, err)
	}
}

// snapshot is everything below the sysroot but the repository and kedge's own
// directory: names, types, contents.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	must(w.t, filepath.WalkDir(w.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(w.dir, p)
		if name == repoDir || name == stateDir {
			return filepath.SkipDir
		}
		content := []byte(nil)
		if e.Type().IsRegular() {
			content, err = os.ReadFile(p)
		}
		fmt.Fprintf(&b, "%s %v %q\n", name, e.Type(), content)
		return err
	}))
	return b.String()
}

// entryOf makes an entry of "ID=…; VERSION=…".
func entryOf(s string) *bls.Entry {
	id, version, _ := strings.Cut(s, "; VERSION=")
	e := &bls.Entry{}
	e.Set("version", version)
	e.Set("sort-key", sortKeyPrefix+strings.TrimPrefix(id, "ID=")+"-0")
	return e
}
