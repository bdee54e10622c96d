package builder_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/builder"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/host"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ostree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func cfsctl(t testing.TB) string {
	t.Helper()
	if path, err := exec.LookPath("cfsctl"); err == nil {
		return path
	}
	lab.Need(t, "cargo")
	out, err := exec.Command("../../hack/lab/cfsctl.sh", "--path").Output()
	if err != nil {
		lab.Skip(t, "hack/lab/cfsctl.sh cannot build cfsctl: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// sysroot returns a root whose policy accepts every image.
func sysroot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/etc/containers", 0o755); err != nil {
		t.Fatal(err)
	}
	policy := []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`)
	if err := os.WriteFile(dir+"/etc/containers/policy.json", policy, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func digest(t testing.TB, what string, o builder.DigestOptions) *builder.Root {
	t.Helper()
	r, err := builder.Digest(context.Background(), what, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rootfs makes a directory that looks like an image's root.
func rootfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"usr/bin/tool": strings.Repeat("tool\n", 100), "usr/bin/small": "small", "usr/lib/empty": "",
		"etc/hostname": "host\n", "boot/uki.efi": "gone", "run/gone": "gone", "sysroot/gone": "gone", "var/lib/data": strings.Repeat("data\n", 50000),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range [][2]string{{"usr/bin", dir + "/bin"}, {"/nowhere", dir + "/usr/lib/broken"}} {
		if err := os.Symlink(link[0], link[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(dir+"/usr/bin/tool", dir+"/usr/lib/tool"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/usr/lib/broken", dir+"/usr/lib/broken2"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDirectory compares with cfsctl.
func TestDirectory(t *testing.T) {
	cfs, dir := cfsctl(t), rootfs(t)
	for _, tc := range []struct {
		o    builder.DigestOptions
		args []string
	}{
		{builder.DigestOptions{}, []string{"--hash", "sha512", "compute-id", "--bootable"}},
		{builder.DigestOptions{Raw: true}, []string{"--hash", "sha512", "compute-id"}},
		{builder.DigestOptions{SHA256: true}, []string{"--hash", "sha256", "compute-id", "--bootable"}},
	} {
		got := digest(t, dir, tc.o).Digest.String()
		want := run(t, cfs, append(append([]string{"--no-repo"}, tc.args...), dir)...)
		if want = want[strings.LastIndexAny(want, " \n:")+1:]; got != want {
			t.Errorf("%+v: digest %s, cfsctl computes %s", tc.o, got, want)
		}
	}
}

// TestImageAndDirectory holds the digest of the base image against that of the
// directory that umoci unpacks it in.
func TestImageAndDirectory(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "umoci")
	layout := lab.BaseImage(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", layout+":"+lab.TagGzip, bundle)
	image := digest(t, "oci:"+layout+":"+lab.TagGzip, builder.DigestOptions{Sysroot: sysroot(t)})
	dir := digest(t, bundle+"/rootfs", builder.DigestOptions{})
	d, err := builder.Compare(image, dir)
	if err != nil {
		t.Fatal(err)
	}
	if d != nil {
		t.Errorf("the image and its directory differ: %s", d)
	}
}

// TestOSTreeImageAndDirectory is the same for the ostree backend, and holds the
// digest against that of the commit that an import of the image makes.
func TestOSTreeImageAndDirectory(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "umoci")
	layout := filepath.Join(t.TempDir(), "layout")
	smallimage.Layout(t, layout, map[string]ociv1.Image{"v": smallimage.New(t, "1", smallimage.OS(1))})
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", layout+":v", bundle)
	var roots []*builder.Root
	for _, what := range []string{"oci:" + layout + ":v", bundle + "/rootfs"} {
		r, err := builder.OSTreeDigest(t.Context(), what, builder.DigestOptions{Sysroot: sysroot(t)})
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, r)
	}
	if d, err := builder.Compare(roots[0], roots[1]); d != nil || err != nil {
		t.Errorf("the image and its directory differ: %v, %v", d, err)
	}
	if got, want := roots[0].Digest.String(), storedDigest(t, "oci:"+layout+":v"); got != want {
		t.Errorf("the digest is %s, of the commit on a host %s", got, want)
	}
	if roots[0].Tree.Lookup("usr/etc/hostname") == nil {
		t.Error("/etc is not where the ostree backend has it")
	}
}

// TestStorageAndLayout: an image has the digest of its layout in podman's
// storage too, where the layers are made anew from files.
func TestStorageAndLayout(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "skopeo")
	dir := t.TempDir()
	smallimage.Layout(t, dir+"/layout", map[string]ociv1.Image{"v": smallimage.New(t, "1", smallimage.OS(1))})
	stored := "containers-storage:[overlay@" + dir + "/root+" + dir + "/run]localhost/os:v"
	t.Cleanup(func() { _ = unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH) })
	run(t, "skopeo", "copy", "--quiet", "oci:"+dir+"/layout:v", stored)
	for name, compute := range map[string]func(context.Context, string, builder.DigestOptions) (*builder.Root, error){
		"composefs": builder.Digest, "ostree": builder.OSTreeDigest,
	} {
		var digests []string
		for _, what := range []string{"oci:" + dir + "/layout:v", stored} {
			r, err := compute(t.Context(), what, builder.DigestOptions{Sysroot: sysroot(t)})
			if err != nil {
				t.Fatal(err)
			}
			digests = append(digests, r.Digest.String())
		}
		if digests[0] != digests[1] {
			t.Errorf("%s: the layout has the digest %s, the storage %s", name, digests[0], digests[1])
		}
	}
}

// storedDigest installs the image and measures the files of its commit where
// they lie.
func storedDigest(t *testing.T, image string) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { _ = exec.Command("chattr", "-R", "-f", "-i", dir).Run() })
	_, err := host.Install(t.Context(), host.Config{
		Sysroot: dir, NoSync: true, Images: ocibridge.Options{PolicyFile: sysroot(t) + "/etc/containers/policy.json"},
	}, host.InstallOptions{Image: image, Backend: "ostree"})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := ostree.Open(dir + "/ostree/repo")
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	images, err := repo.Containers()
	if err != nil || len(images) != 1 {
		t.Fatalf("the repository has the images %v, %v", images, err)
	}
	tree, err := repo.ReadTree(t.Context(), images[0].Image.Commit)
	if err != nil {
		t.Fatal(err)
	}
	cfs, err := composefs.FromOSTree(tree, func(_ string, n *fstree.Inode) (composefs.OSTreeFile, error) {
		_, f, err := repo.OpenFile(object.Checksum(n.Content))
		if err != nil {
			return composefs.OSTreeFile{}, err
		}
		defer f.Close()
		d, err := fsverity.Of(t.Context(), f.(*os.File), n.Size, fsverity.SHA256)
		return composefs.OSTreeFile{Checksum: n.Content, Verity: d}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := composefs.WriteImage(io.Discard, cfs, composefs.Default)
	if err != nil {
		t.Fatal(err)
	}
	return info.Digest.String()
}

func TestCompare(t *testing.T) {
	dir := rootfs(t)
	a := digest(t, dir, builder.DigestOptions{})
	if d, err := builder.Compare(a, digest(t, dir, builder.DigestOptions{})); d != nil || err != nil {
		t.Errorf("the same directory differs in %v, %v", d, err)
	}
	for _, step := range []struct {
		change      func() error
		path, field string
	}{
		{func() error { return os.WriteFile(dir+"/boot/uki.efi", []byte("other"), 0o644) }, "", ""}, // not part of it
		{func() error { return os.Chmod(dir+"/etc/hostname", 0o600) }, "/etc/hostname", "mode"},
		{func() error { return os.Remove(dir + "/bin") }, "/bin", "only in A"},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		d, err := builder.Compare(a, digest(t, dir, builder.DigestOptions{}))
		switch {
		case err != nil:
			t.Error(err)
		case step.path == "" && d != nil:
			t.Errorf("a change in /boot counts: %s", d)
		case step.path != "" && (d == nil || d.Path != step.path || !strings.Contains(d.Field, step.field)):
			t.Errorf("the first difference is %v, want %s of %s", d, step.field, step.path)
		}
	}
}

func TestDigestErrors(t *testing.T) {
	for _, what := range []string{t.TempDir(), "/nowhere/at/all", "oci:/nowhere:t"} {
		if r, err := builder.Digest(context.Background(), what, builder.DigestOptions{Sysroot: sysroot(t)}); err == nil {
			t.Errorf("%s has the digest %s, want an error", what, r.Digest)
		}
	}
}
