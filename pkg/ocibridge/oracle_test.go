package ocibridge_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge/storetest"
)

// oddLayers is an image with everything that tars of images hold, in three
// layers, of three compressions if pack does not say otherwise. Each layer lists the directories it touches:
// what mtime others get is up to the program that unpacks.
func oddLayers(t testing.TB, pack ...func([]byte) blob) []blob {
	at := func(sec int64) time.Time { return time.Unix(sec, 0) }
	dir := func(name string, sec int64) tar.Header {
		return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at(sec)}
	}
	file := func(name string, mode int64) tar.Header {
		return tar.Header{Name: name, Mode: mode, ModTime: at(1_000_000_000)}
	}
	other := func(name string, typ byte, link string) tar.Header {
		return tar.Header{Name: name, Typeflag: typ, Linkname: link, Mode: 0o777, ModTime: at(1_000_000_000)}
	}
	// podman gives the inode what the last of its names says, umoci the first:
	// writers say the same with each.
	hard := func(name string, mode int64, to string) tar.Header {
		h := file(name, mode)
		h.Typeflag, h.Linkname = tar.TypeLink, to
		return h
	}
	long := "usr/" + strings.Repeat("long/", 30) + strings.Repeat("n", 200)
	lower := []tar.Header{
		dir(".", 1), dir("usr", 2), dir("usr/bin", 3), dir("etc", 4), dir("opq", 5), dir("opq/sub", 6), dir("gone", 7), dir("d2f", 8),
		file("usr/bin/tool", 0o4755), hard("usr/bin/hard", 0o4755, "usr/bin/tool"), other("usr/bin/soft", tar.TypeSymlink, "../bin/tool"),
		file("etc/conf", 0o640), file("etc/caf\xe9", 0o600), file("opq/sub/lower", 0o600), file("opq/lower", 0o600), file("gone/x", 0o600),
		file("d2f/x", 0o600), file("f2d", 0o600), file("empty", 0), file(long, 0o644), other("fifo", tar.TypeFifo, ""),
		{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: at(9)},
		{Name: "owned", Mode: 0o2711, Uid: 12345, Gid: 3_000_000_000, ModTime: at(10)},
		{Name: "attrs", Mode: 0o755, ModTime: time.Unix(1_700_000_000, 123456789), Format: tar.FormatPAX, PAXRecords: map[string]string{
			"SCHILY.xattr.user.binary":         "\x00\xff\x00",
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}},
	}
	for i := 1; i <= 30; i++ {
		lower = append(lower, dir("usr/"+strings.TrimSuffix(strings.Repeat("long/", i), "/"), 11))
	}
	middle := []tar.Header{
		dir("etc", 20), dir("opq", 21), dir("f2d", 22), dir("usr", 23), dir("usr/bin", 24),
		file("etc/conf", 0o600), file("etc/.wh.caf\xe9", 0), file(".wh.gone", 0), file("opq/.wh..wh..opq", 0), file("opq/upper", 0o644),
		file(".wh.d2f", 0), file("d2f", 0o644), file("f2d/inside", 0o644), file("usr/bin/other", 0o755), hard("usr/bin/late", 0o755, "usr/bin/other"),
	}
	upper := []tar.Header{
		dir("usr", 30), dir("usr/bin", 31), file("usr/bin/hard", 0o700), dir("gone", 32), file("gone/back", 0o600),
	}
	content := map[string]string{
		"usr/bin/tool": "tool", "etc/conf": "conf", "owned": "owned", "attrs": noise(100_000), long: "long", "usr/bin/hard": "no link any more",
		"opq/upper": "upper", "f2d/inside": "inside", "usr/bin/other": "other", "gone/back": "back", "opq/lower": "lower",
	}
	if pack == nil {
		pack = []func([]byte) blob{gzipLayer, zstdLayer, plainLayer}
	}
	return []blob{pack[0](tarOf(t, content, lower...)), pack[1](tarOf(t, content, middle...)), pack[2](tarOf(t, content, upper...))}
}

// treeLines describes a tree, one line per path. Hard links show as the first
// of their names.
func treeLines(tree *fstree.Tree) []string {
	var lines []string
	first := make(map[*fstree.Inode]string)
	tree.Walk(func(p string, n *fstree.Inode) error {
		link := first[n]
		if link == "" {
			first[n] = p
		}
		content := ""
		if n.IsRegular() {
			content = n.Content.String()
		}
		var xattrs []string
		for _, a := range n.Xattrs.All() {
			xattrs = append(xattrs, fmt.Sprintf("%s=%q", a.Name, a.Value))
		}
		lines = append(lines, fmt.Sprintf("%q %o %d:%d %d.%d %d %x %q %s %q %s", p, n.Mode, n.UID, n.GID, n.MtimeSec, n.MtimeNsec, n.Size, n.Rdev, n.Target, content, link, xattrs))
		return nil
	})
	return lines
}

// diskLines describes what a program unpacked, in the form of treeLines.
func diskLines(t *testing.T, root string) []string {
	t.Helper()
	type inode struct{ dev, ino uint64 }
	first := make(map[inode]string)
	var lines []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			rel = ""
		}
		id := inode{st.Dev, st.Ino}
		link := first[id]
		if link == "" {
			first[id] = rel
		}
		size, rdev, content, target := int64(0), uint64(0), "", ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			size = st.Size
			content = fileSum(t, p)
		case unix.S_IFLNK:
			target, err = os.Readlink(p)
		case unix.S_IFCHR, unix.S_IFBLK:
			rdev = st.Rdev
		}
		lines = append(lines, fmt.Sprintf("%q %o %d:%d %d.%d %d %x %q %s %q %s", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, size, rdev, target, content, link, xattrsOf(t, p)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func fileSum(t *testing.T, p string) string {
	t.Helper()
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func xattrsOf(t *testing.T, p string) []string {
	t.Helper()
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 1<<16)
		k, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s=%q", name, value[:k]))
	}
	slices.Sort(out)
	return out
}

func wantSameTree(t *testing.T, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	only := func(a, b []string) (out []string) {
		for _, l := range a {
			if _, ok := slices.BinarySearch(b, l); !ok {
				out = append(out, l)
			}
		}
		return out
	}
	extra, missing := only(got, want), only(want, got)
	if len(extra)+len(missing) > 0 {
		t.Errorf("%d of %d entries differ; ours:\n%s\ntheirs:\n%s", len(missing), len(want),
			strings.Join(extra[:min(len(extra), 10)], "\n"), strings.Join(missing[:min(len(missing), 10)], "\n"))
	}
}

// TestUmociUnpacksTheSame compares our tree with what umoci makes of the image.
func TestUmociUnpacksTheSame(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "umoci")
	for name, layout := range map[string]func(t *testing.T) string{
		"odd": func(t *testing.T) string {
			return strings.TrimPrefix(writeLayout(t, imageSpec{layers: oddLayers(t, gzipLayer, gzipLayer, plainLayer)}), "oci:")
		},
		"base": func(t *testing.T) string {
			if testing.Short() {
				t.Skip("the base image takes seconds to unpack")
			}
			return lab.BaseImage(t) + ":" + lab.TagGzip
		},
	} {
		t.Run(name, func(t *testing.T) {
			image := layout(t)
			out := filepath.Join(t.TempDir(), "root")
			if _, err := lab.Command(t.Context(), "umoci", "raw", "unpack", "--image", image, out); err != nil {
				t.Fatal(err)
			}
			img := mustImport(t, "oci:"+image, options(t), storetest.NewDiscard())
			wantSameTree(t, treeLines(img.Tree), diskLines(t, out))
		})
	}
}

// TestPodmanMountsTheSame compares our tree with what podman shows of the image,
// and imports the image from podman's storage.
func TestPodmanMountsTheSame(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "podman")
	reg := newRegistry(t)
	ref := reg.push("os/odd:1", imageSpec{layers: oddLayers(t)})
	dir := t.TempDir()
	t.Cleanup(func() { unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH) })
	podman := func(args ...string) string {
		t.Helper()
		out, err := lab.Command(context.WithoutCancel(t.Context()), "podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "overlay"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	id := podman("pull", "--quiet", "--tls-verify=false", ref)
	mnt := podman("image", "mount", id)
	t.Cleanup(func() { podman("image", "unmount", "--force", id) })

	img := mustImport(t, ref, options(t, reg.host), storetest.NewMem())
	// podman gives the root a mode and a time of its own.
	ours, theirs := treeLines(img.Tree), diskLines(t, mnt)
	wantSameTree(t, ours[1:], theirs[1:])

	again := mustImport(t, fmt.Sprintf("containers-storage:[overlay@%s/root+%s/run]%s", dir, dir, ref), options(t), storetest.NewMem())
	wantSameTree(t, treeLines(again.Tree), treeLines(img.Tree))
	for i, l := range again.Layers {
		if l.DiffID != img.Layers[i].DiffID {
			t.Errorf("layer %d has the diffID %s in podman's storage, %s in the registry", i, l.DiffID, img.Layers[i].DiffID)
		}
	}
}

// TestSkopeoCopies imports the copies that skopeo makes through every transport.
func TestSkopeoCopies(t *testing.T) {
	lab.Need(t, "skopeo")
	image := writeLayout(t, imageSpec{layers: oddLayers(t)})
	want := treeLines(mustImport(t, image, options(t), storetest.NewMem()).Tree)
	dir := t.TempDir()
	reg := newRegistry(t)
	for _, to := range []string{"dir:" + dir + "/d", "docker://" + reg.host + "/os/odd:1"} {
		if _, err := lab.Command(t.Context(), "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", image, to); err != nil {
			t.Fatal(err)
		}
		img := mustImport(t, to, options(t, reg.host), storetest.NewMem())
		wantSameTree(t, treeLines(img.Tree), want)
	}
	// Docker's own manifests allow gzip alone.
	gz := writeLayout(t, imageSpec{layers: []blob{smallLayer(t, "a")}})
	to := "docker://" + reg.host + "/os/docker:1"
	if _, err := lab.Command(t.Context(), "skopeo", "--insecure-policy", "copy", "--format=v2s2", "--dest-tls-verify=false", gz, to); err != nil {
		t.Fatal(err)
	}
	if img := mustImport(t, to, options(t, reg.host), storetest.NewMem()); img.Tree.Lookup("a") == nil {
		t.Error("the image in Docker's format has no file a")
	}
}

// TestChunkedIsTheSame compares the lab's base image with the same one as
// ostree-ext chunked it into 40 layers: what is in a file, its owner and its
// mode are the same; times are not kept.
func TestChunkedIsTheSame(t *testing.T) {
	if testing.Short() {
		t.Skip("imports two large images")
	}
	lines := func(ref string) (lines []string) {
		tree := mustImport(t, ref, options(t), storetest.NewDiscard()).Tree
		tree.Walk(func(p string, n *fstree.Inode) error {
			switch p {
			case "dev", "proc", "run", "sys":
				return fstree.SkipDir // a compose leaves these to the deployment
			}
			content := ""
			if n.IsRegular() {
				content = n.Content.String()
			}
			capability, _ := n.Xattrs.Get("security.capability")
			mode := n.Mode
			if n.IsSymlink() {
				mode |= 0o777
			}
			lines = append(lines, fmt.Sprintf("%q %o %d:%d %d %q %s %q", p, mode, n.UID, n.GID, n.Size, n.Target, content, capability))
			return nil
		})
		return lines
	}
	chunked, base := lab.ChunkedImage(t)+":"+lab.TagChunked, lab.BaseImage(t)+":"+lab.TagGzip
	wantSameTree(t, lines("oci:"+chunked), lines("oci:"+base))
}
