package layering_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/layering"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// baseImage is the image that the world's root was unpacked from: one layer.
func (w *world) baseImage(t *testing.T) (layering.BaseImage, v1.Descriptor) {
	t.Helper()
	f, err := os.Open(filepath.Join(w.made, w.tool+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d, err := digest.FromReader(f)
	if err != nil {
		t.Fatal(err)
	}
	layer := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: st.Size()}
	config, err := json.Marshal(v1.Image{
		Created: &created, Platform: v1.Platform{Architecture: "amd64", OS: "linux"},
		Config: v1.ImageConfig{Labels: map[string]string{"containers.bootc": "1"}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{d}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{layer},
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
	})
	if err != nil {
		t.Fatal(err)
	}
	return layering.BaseImage{Digest: digest.FromBytes(manifest).String(), Manifest: manifest, Config: config}, layer
}

// TestDerivedImage unpacks the derived image with umoci and asks the package
// manager in it whether its packages are as they should be.
func TestDerivedImage(t *testing.T) {
	lab.Need(t, "umoci")
	each(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		layout := layering.Layout{Root: root}
		base, baseLayer := w.baseImage(t)
		req := layering.Request{Install: []string{"lab-chain", "lab-daemon", "lab-shape", "lab-vi"}, Remove: []string{"lab-editor"}}
		s := w.open(t)
		defer w.close(t, s)
		r, err := build(t.Context(), s, req)
		if err != nil {
			t.Fatal(err)
		}
		image, err := layout.Add("packages", base, req, r.lock, r.Layer)
		if err != nil {
			t.Fatal(err)
		}
		again, err := layout.Add("packages", base, req, r.lock, r.Layer)
		if err != nil || again.ManifestDigest != image.ManifestDigest {
			t.Errorf("adding it again gives %v (%v), want %s", again, err, image.ManifestDigest)
		}
		if got, want := len(blobs(t, dir)), 3; got != want {
			t.Errorf("the layout has %d blobs, want %d: manifest, config and the one new layer", got, want)
		}

		// A store that has the base takes the derived image although the layout
		// lacks the base's layers.
		store := storetest.NewDiscard()
		importImage(t, w.baseLayout(t, base, baseLayer), "base", store)
		tree := importImage(t, dir, "packages", store).Tree
		for name, want := range map[string]bool{"usr/bin/lab-chain": true, "usr/bin/lab-base": true, "usr/bin/lab-editor": false} {
			if got := tree.Lookup(name) != nil; got != want {
				t.Errorf("%s in the imported image: %v, want %v", name, got, want)
			}
		}

		w.linkBlob(t, dir, baseLayer)
		bundle := filepath.Join(t.TempDir(), "bundle")
		if _, err := lab.Command(t.Context(), "umoci", "unpack", "--image", dir+":packages", bundle); err != nil {
			t.Fatal(err)
		}
		rootfs := filepath.Join(bundle, "rootfs")
		if got := inside(t, rootfs, "lab-chain"); got != "lab-chain 1.0\n" {
			t.Errorf("lab-chain of the derived image says %q", got)
		}
		if _, err := os.Lstat(filepath.Join(rootfs, "usr/bin/lab-editor")); err == nil {
			t.Error("the removed package's program is in the derived image")
		}
		verify := []string{"rpm", "-V", "--nomtime", "lab-chain", "lab-link", "lab-anchor", "lab-vi"}
		if w.engine == "apt" {
			verify = []string{"dpkg", "--admindir=/usr/lib/sysimage/dpkg", "--verify", "lab-chain", "lab-link", "lab-anchor", "lab-vi"}
		}
		if got := inside(t, rootfs, verify...); got != "" {
			t.Errorf("%q says %s", verify, got)
		}
		// What systemd does at boot, with the system's own programs.
		inside(t, rootfs, "systemd-sysusers")
		inside(t, rootfs, "systemd-tmpfiles", "--create", "--prefix=/var")
		for name, want := range map[string]string{"/var/lib/labd/seed": "a file in /var\n", "/var/lib/labd/link": "a file in /var\n", "/opt/lab/bin/program": "in /opt\n"} {
			if got := inside(t, rootfs, "cat", name); got != want {
				t.Errorf("%s after the boot's tmpfiles: %q, want %q", name, got, want)
			}
		}
		if got := strings.TrimSpace(inside(t, rootfs, "stat", "-c", "%U", "/var/lib/labd/seed")); got != "labd" {
			t.Errorf("/var/lib/labd/seed belongs to %s, want labd", got)
		}

		if err := layout.Keep(nil); err != nil {
			t.Fatal(err)
		}
		if left := blobs(t, dir); len(left) != 0 {
			t.Errorf("after the last image is gone the layout has %q", left)
		}
	})
}

// linkBlob puts the base's layer into a layout.
func (w *world) linkBlob(t *testing.T, dir string, layer v1.Descriptor) {
	t.Helper()
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Command(t.Context(), "cp", filepath.Join(w.made, w.tool+".tar"), filepath.Join(blobs, layer.Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
}

// baseLayout writes the base image as a layout of its own.
func (w *world) baseLayout(t *testing.T, base layering.BaseImage, layer v1.Descriptor) string {
	t.Helper()
	dir := t.TempDir()
	w.linkBlob(t, dir, layer)
	for _, b := range [][]byte{base.Manifest, base.Config} {
		write(t, filepath.Join(dir, "blobs/sha256", digest.FromBytes(b).Encoded()), string(b))
	}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{{
		MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(base.Manifest), Size: int64(len(base.Manifest)),
		Annotations: map[string]string{v1.AnnotationRefName: "base"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, v1.ImageIndexFile), string(index))
	write(t, filepath.Join(dir, v1.ImageLayoutFile), `{"imageLayoutVersion":"1.0.0"}`)
	return dir
}

func importImage(t *testing.T, dir, tag string, store ocibridge.Store) *ocibridge.Image {
	t.Helper()
	ref, err := ocibridge.ParseReference(dir+":"+tag, "oci")
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(t.TempDir(), "policy.json")
	write(t, policy, `{"default":[{"type":"insecureAcceptAnything"}]}`)
	src, err := ocibridge.Open(t.Context(), ref, ocibridge.Options{PolicyFile: policy, Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	image, err := src.Import(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func blobs(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// inside runs a program of a root, as its container would.
func inside(t *testing.T, root string, argv ...string) string {
	t.Helper()
	out, err := lab.Command(t.Context(), "bwrap", append([]string{
		"--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--unshare-pid", "--unshare-net",
		"--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin",
	}, argv...)...)
	if err != nil {
		t.Error(err)
	}
	return out
}

// TestDatabaseInVar: an image whose database lies in /var gets it in /usr, and
// whoever builds it is to know.
func TestDatabaseInVar(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if r := w.mustAdd(t, "lab-anchor"); r.VarDatabase != "" {
			t.Errorf("a database in /usr is said to be in %s", r.VarDatabase)
		}
		dir := filepath.Join(t.TempDir(), "root")
		unpack(t, filepath.Join(w.made, w.tool+".tar"), dir)
		name := map[string]string{"apt": "dpkg", "dnf": "rpm"}[w.engine]
		if err := os.MkdirAll(filepath.Join(dir, "var/lib"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "usr/lib/sysimage", name), filepath.Join(dir, "var/lib", name)); err != nil {
			t.Fatal(err)
		}
		if w.engine == "dnf" {
			if err := os.Remove(filepath.Join(dir, "usr/lib/rpm/macros.d/macros.image")); err != nil {
				t.Fatal(err)
			}
		}
		w.base.Root = dir
		r := w.mustAdd(t, "lab-anchor")
		r.has(t, "usr/bin/lab-anchor", "usr/lib/sysimage/"+name)
		if got := content(r, "usr/lib/tmpfiles.d/kedge-packages.conf"); !strings.Contains(got, `L "/var/lib/`+name+`" - - - - ../../usr/lib/sysimage/`+name) {
			t.Errorf("tmpfiles.d has no link for the database: %s", got)
		}
		if r.VarDatabase != "/var/lib/"+name {
			t.Errorf("the database is said to be in %q", r.VarDatabase)
		}
	})
}

// TestDebian installs real packages of Debian, from Debian.
func TestDebian(t *testing.T) {
	w := newWorld(t, "apt")
	w.etc = ""
	r := w.mustAdd(t, "jq", "cron")
	for _, name := range []string{"jq", "libjq1", "libonig5", "cron"} {
		if !slices.ContainsFunc(r.lock.Install, func(p layering.Package) bool { return p.Name == name }) {
			t.Errorf("the lock lacks %s: %s", name, r.installed())
		}
	}
	r.has(t, "usr/bin/jq", "usr/sbin/cron", "etc/systemd/system/multi-user.target.wants/cron.service")
	crontab := account(t, r, "group", "crontab")
	if e := r.files["usr/bin/crontab"]; e == nil || e.Mode != 0o2755 || uint32(e.Gid) != crontab {
		t.Errorf("crontab: %+v, want setgid of group %d", e, crontab)
	}
	// The package's own line makes this directory; there must be no second one.
	if got := content(r, "usr/lib/tmpfiles.d/cron-daemon-common.conf"); !strings.Contains(got, "/var/spool/cron/crontabs") {
		t.Errorf("the package's tmpfiles.d: %s", got)
	}
	if got := content(r, "usr/lib/tmpfiles.d/kedge-packages.conf"); strings.Contains(got, "crontabs") || strings.Contains(got, "debconf") {
		t.Errorf("tmpfiles.d: %s", got)
	}
	t.Logf("%s\n%d entries, %d bytes", r.installed(), len(r.files), r.Size)
}
