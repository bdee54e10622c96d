// Package memory_test watches the memory that kedge takes for a large image: at
// most 100 MB, and 250 bytes for each inode of the image and its name.
package memory_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
)

const (
	inodes   = 200_000
	perInode = 250
	base     = 100_000_000
)

// TestImportOf200000Inodes installs large images in a process of their own. They
// bring an SELinux policy, so that every inode gets a label. An installation on
// the ostree backend writes the deployment's .ostree.cfs too. Images of many
// layers are imported nightly.
func TestImportOf200000Inodes(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute; run without -short")
	}
	lab.Need(t, "time")
	lab.NeedRoot(t)
	kedge := offline.BuildKedge(t)
	split := []int{1}
	if os.Getenv("KEDGE_NIGHTLY") != "" {
		split = append(split, 10)
	}
	for _, layers := range split {
		img, names := image(t, layers)
		dir := filepath.Join(t.TempDir(), "layout")
		smallimage.Layout(t, dir, map[string]v1.Image{"large": img})
		limit := int64(base + perInode*inodes + names)
		for _, backend := range offline.Backends {
			t.Run(fmt.Sprintf("%s, %d layers", backend, layers), func(t *testing.T) {
				peak := install(t, kedge, "oci:"+dir+":large", backend)
				t.Logf("peak RSS %d MB; %d MB are 100 MB and %d bytes an inode and the names", peak/1e6, limit/1e6, perInode)
				if peak > limit {
					t.Errorf("the import took %d MB", peak/1e6)
				}
			})
		}
	}
}

// install returns the peak of the resident set in bytes.
func install(t *testing.T, kedge, image string, backend offline.Backend) int64 {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("chattr", "-R", "-f", "-i", root).Run() })
	// A process begins with the peak of the one that started it: time's is small.
	measured := filepath.Join(t.TempDir(), "peak")
	argv := []string{"-f", "%M", "-o", measured, kedge, "install", "to-filesystem", "--image", image, "--target-image", "registry.example/os:large"}
	argv = append(append(argv, backend.Flags()...), root)
	if out, err := exec.CommandContext(t.Context(), "time", argv...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(measured)
	if err != nil {
		t.Fatal(err)
	}
	peak, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // KiB
	if err != nil {
		t.Fatal(err)
	}
	return peak << 10
}

// image makes an image, and returns the bytes of its names too.
func image(t *testing.T, layers int) (img v1.Image, names int) {
	t.Helper()
	entries := append(smallimage.OS(1),
		smallimage.Dir("etc/selinux"), smallimage.Dir("etc/selinux/targeted"), smallimage.Dir("etc/selinux/targeted/contexts"),
		smallimage.Dir("etc/selinux/targeted/contexts/files"), smallimage.Dir("etc/selinux/targeted/policy"),
		smallimage.File("etc/selinux/config", 0, "SELINUX=enforcing\nSELINUXTYPE=targeted\n"),
		smallimage.File("etc/selinux/targeted/policy/policy.33", 0, "not really\n"),
		smallimage.File("etc/selinux/targeted/contexts/files/file_contexts", 0,
			"/.*\tsystem_u:object_r:default_t:s0\n/usr(/.*)?\tsystem_u:object_r:usr_t:s0\n/etc(/.*)?\tsystem_u:object_r:etc_t:s0\n"))
	var all []v1.Layer
	total := 0
	for l := range layers {
		for p := 0; total+len(entries) < inodes*(l+1)/layers; p++ {
			dir := fmt.Sprintf("usr/share/package-%d-%d", l, p)
			entries = append(entries, smallimage.Dir(dir))
			for f := range 14 {
				name := fmt.Sprintf("file-with-a-name-%02d.conf", f)
				names += len(name)
				if f == 0 {
					entries = append(entries, smallimage.Symlink(dir+"/"+name, "../../target-of-a-link"))
				} else {
					// Longer than what composefs keeps in the image itself.
					entries = append(entries, smallimage.File(dir+"/"+name, 0, dir+strings.Repeat(name, 4)))
				}
			}
		}
		raw, err := smallimage.Tar(entries)
		if err != nil {
			t.Fatal(err)
		}
		layer, err := smallimage.NewLayer(smallimage.Gzip(raw), raw)
		if err != nil {
			t.Fatal(err)
		}
		all, total, entries = append(all, layer), total+len(entries), nil
	}
	img, err := smallimage.Image("1", all...)
	if err != nil {
		t.Fatal(err)
	}
	return img, names
}
