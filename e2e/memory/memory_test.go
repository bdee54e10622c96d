// Package memory_test watches the memory that kedge takes for a large image. The
// aim is 100 MB, and 250 bytes for each inode of the image and its name.
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
	// slack is how far above the aim an import may be: 1.1 to 1.3 is what they
	// take, by the shape of the image and the pace of the collector.
	slack = 1.4
)

// TestImportOf200000Inodes installs large images in a process of their own. They
// bring an SELinux policy, so that every inode gets a label.
func TestImportOf200000Inodes(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute; run without -short")
	}
	lab.Need(t, "time")
	lab.NeedRoot(t)
	kedge := offline.BuildKedge(t)
	for _, layers := range []int{1, 10} {
		t.Run(fmt.Sprintf("%d layers", layers), func(t *testing.T) {
			img, names := image(t, layers)
			dir := filepath.Join(t.TempDir(), "layout")
			smallimage.Layout(t, dir, map[string]v1.Image{"large": img})
			root := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = exec.Command("chattr", "-R", "-f", "-i", root).Run() })
			// A process begins with the peak of the one that started it: time's is small.
			measured := filepath.Join(t.TempDir(), "peak")
			cmd := exec.CommandContext(t.Context(), "time", "-f", "%M", "-o", measured, kedge, "install", "to-filesystem", "--image", "oci:"+dir+":large",
				"--target-image", "registry.example/os:large", "--bootloader", "none", root)
			if out, err := cmd.CombinedOutput(); err != nil {
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
			peak <<= 10
			limit := int64(base + perInode*inodes + names)
			t.Logf("peak RSS %d MB; %d MB are 100 MB and %d bytes an inode and the names", peak/1e6, limit/1e6, perInode)
			if float64(peak) > slack*float64(limit) {
				t.Errorf("the import took %d MB, more than %.1f times the aim", peak/1e6, slack)
			}
		})
	}
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
					entries = append(entries, smallimage.File(dir+"/"+name, 0, dir+name))
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
