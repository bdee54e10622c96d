// Package smallimage makes OS images of a few hundred small files for tests
// that install one many times: everything that kedge looks for is there, and
// nothing of it boots.
package smallimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Built is the creation time of every image and of every file in it.
var Built = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Entry is a file of a layer: what its tar header says, and its bytes.
type Entry struct {
	tar.Header
	Body string
}

// Dir is a directory.
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

// File is a regular file; a mode of 0 is 0644.
func File(name string, mode int64, body string) Entry {
	if mode == 0 {
		mode = 0o644
	}
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body))}, Body: body}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Hardlink is a second name of a file.
func Hardlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

// Kernel is a kernel with an initramfs, in the place where bootable containers
// keep it.
func Kernel(version string) []Entry {
	// The setup header of a bzImage: "HdrS" at 0x202, boot protocol 2.15.
	image := make([]byte, 4096)
	image[0x1f1] = 1
	binary.LittleEndian.PutUint16(image[0x1fe:], 0xaa55)
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x020f)
	copy(image[0x300:], version+" (kedge@test)")
	// A gzip-compressed newc archive that holds its trailer.
	var initramfs bytes.Buffer
	z := gzip.NewWriter(&initramfs)
	fmt.Fprintf(z, "070701%s%s", "00000000000000000000000000000001000000000000000000000000000000000000000000000000000000000000000b00000000", "TRAILER!!!\x00"+version)
	_ = z.Close()
	dir := "usr/lib/modules/" + version
	return []Entry{
		Dir(dir),
		File(dir+"/vmlinuz", 0o755, string(image)),
		File(dir+"/initramfs.img", 0o600, initramfs.String()),
		File(dir+"/modules.dep", 0, "kernel/fs/ext4.ko:\n"),
	}
}

// OS is a root of about 200 files. Two versions differ in their kernel, in
// files below /usr, in a default of /etc, and in a file that only one has.
func OS(version int) []Entry {
	entries := []Entry{
		Dir("boot"), Dir("dev"), Dir("etc"), Dir("proc"), Dir("run"), Dir("sys"), Dir("sysroot"), Dir("tmp"),
		Dir("usr"), Dir("usr/bin"), Dir("usr/lib"), Dir("usr/lib/modules"), Dir("usr/share"), Dir("var"), Dir("var/log"),
		Symlink("bin", "usr/bin"), Symlink("lib", "usr/lib"), Symlink("ostree", "sysroot/ostree"), Symlink("home", "var/home"),
		File("usr/lib/os-release", 0, fmt.Sprintf("NAME=\"Small OS\"\nID=small\nVERSION_ID=%d\nPRETTY_NAME=\"Small OS %d\"\n", version, version)),
		Symlink("etc/os-release", "../usr/lib/os-release"),
		File("etc/passwd", 0, "root:x:0:0:root:/root:/bin/sh\n"),
		File("etc/group", 0, "root:x:0:\n"),
		File("etc/shadow", 0o600, "root:*:1::::::\n"),
		File("etc/hostname", 0, "small\n"),
		File("etc/default.conf", 0, fmt.Sprintf("version=%d\n", version)),
		File("etc/edited.conf", 0, fmt.Sprintf("default=%d\n", version)),
		File("var/log/seed", 0, "seeded\n"),
		File("usr/bin/sudo", 0o4755, "not really\n"),
		File("usr/bin/sh", 0o755, "#!not really\n"),
		Hardlink("usr/bin/bash", "usr/bin/sh"),
		File(fmt.Sprintf("usr/share/only-in-%d", version), 0, "here\n"),
		File("usr/share/empty", 0, ""),
		File("usr/share/big", 0, string(bytes.Repeat([]byte{byte('a' + version)}, 200_000))),
	}
	capable := File("usr/bin/ping", 0o755, "pong\n")
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	entries = append(entries, capable)
	for d := range 10 {
		dir := fmt.Sprintf("usr/share/doc%d", d)
		entries = append(entries, Dir(dir))
		for f := range 12 {
			body := fmt.Sprintf("document %d of %d\n", f, d)
			if f == 0 {
				body += fmt.Sprintf("revised in version %d\n", version)
			}
			entries = append(entries, File(fmt.Sprintf("%s/page%d", dir, f), 0, body))
		}
	}
	return append(entries, Kernel(fmt.Sprintf("6.1.0-%d-test", version))...)
}

// Tar is the uncompressed layer with these entries.
func Tar(entries []Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.ModTime = Built
		if len(h.PAXRecords) > 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", h.Name, err)
		}
		if _, err := io.WriteString(w, e.Body); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", h.Name, err)
		}
	}
	return b.Bytes(), w.Close()
}

// Gzip compresses a layer.
func Gzip(raw []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(raw)
	_ = z.Close()
	return b.Bytes()
}

// layer is a blob with the diffID that its image claims for it.
type layer struct {
	v1.Layer
	diffID v1.Hash
}

func (l layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// NewLayer returns a gzip layer of the blob. An empty raw stands for the
// blob's own content; another makes the image claim that one's digest.
func NewLayer(blob, raw []byte) (v1.Layer, error) {
	if raw == nil {
		z, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return nil, err
		}
		if raw, err = io.ReadAll(z); err != nil {
			return nil, err
		}
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	return layer{static.NewLayer(blob, types.OCILayer), h}, err
}

// Image is an image for amd64 of these layers, labelled as bootable.
func Image(version string, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layers...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Architecture, config.OS = "amd64", "linux"
	config.Created = v1.Time{Time: Built}
	config.Config.Labels = map[string]string{"containers.bootc": "1", "ostree.bootable": "true", "org.opencontainers.image.version": version}
	return mutate.ConfigFile(img, config)
}

// New makes an image with one layer of these entries.
func New(t testing.TB, version string, entries []Entry) v1.Image {
	t.Helper()
	raw, err := Tar(entries)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLayer(Gzip(raw), raw)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Image(version, l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Layout writes an OCI layout with the images under their tags, for the
// reference oci:DIR:TAG.
func Layout(t testing.TB, dir string, images map[string]v1.Image) {
	t.Helper()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for tag, img := range images {
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
			t.Fatal(err)
		}
	}
}
