package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// make makes a directory on disk.
func makeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "etc/d/empty"), 0o750))
	must(t, os.WriteFile(filepath.Join(dir, "etc/d/f"), []byte("content"), 0o640))
	must(t, os.Chown(filepath.Join(dir, "etc/d/f"), 3, 4))
	must(t, os.WriteFile(filepath.Join(dir, "etc/none"), nil, 0o600))
	must(t, os.Symlink("/etc/d", filepath.Join(dir, "etc/link")))
	must(t, os.Symlink("../../../../etc/none", filepath.Join(dir, "etc/up")))
	must(t, unix.Lsetxattr(filepath.Join(dir, "etc/d"), "user.b", []byte("2"), 0))
	must(t, unix.Lsetxattr(filepath.Join(dir, "etc/d"), "user.a", []byte("1"), 0))
	must(t, unix.Mkfifo(filepath.Join(dir, "etc/fifo"), 0o644))
	return dir
}

func imageOf(t *testing.T, dir string) *source.Image {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	tree, err := composefs.NewMeter(composefs.SHA512).ReadDir(context.Background(), root)
	must(t, err)
	paths := map[*fstree.Inode]string{}
	must(t, tree.Walk(func(path string, n *fstree.Inode) error {
		paths[n] = filepath.Join(dir, path)
		return nil
	}))
	return source.NewImage(context.Background(), tree, func(_ context.Context, n *fstree.Inode) (io.ReadCloser, error) {
		return os.Open(paths[n])
	})
}

// describe writes everything that a Dir tells.
func describe(t *testing.T, b *bytes.Buffer, d source.Dir, path string) {
	t.Helper()
	names, err := d.Names()
	must(t, err)
	for _, n := range append(names, ".") {
		st, err := d.Lstat(n)
		must(t, err)
		xattrs, err := d.Xattrs(n)
		must(t, err)
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0
		}
		fmt.Fprintf(b, "%s/%s %o %d:%d %d %d %q", path, n, st.Mode, st.Uid, st.Gid, size, st.Mtim.Nano(), xattrs)
		switch {
		case n == ".":
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			sub, err := d.Sub(n)
			must(t, err)
			describe(t, b, sub, path+"/"+n)
			must(t, sub.Close())
		case st.Mode&unix.S_IFMT == unix.S_IFREG:
			r, err := d.Open(n)
			must(t, err)
			data, err := io.ReadAll(r)
			must(t, err)
			must(t, r.Close())
			fmt.Fprintf(b, " %q", data)
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := d.Readlink(n)
			must(t, err)
			fmt.Fprintf(b, " -> %s", target)
		}
		b.WriteByte('\n')
	}
}

// TestBothTellTheSame: an image's directory cannot be told from the one on disk
// that it was made from.
func TestBothTellTheSame(t *testing.T) {
	lab.NeedRoot(t)
	dir := makeDir(t)
	d, err := dirfd.OpenPath(filepath.Join(dir, "etc"))
	must(t, err)
	tree, err := imageOf(t, dir).Dir("etc")
	must(t, err)
	var disk, image bytes.Buffer
	describe(t, &disk, source.Disk(d), "")
	describe(t, &image, tree, "")
	if disk.String() != image.String() {
		t.Errorf("the directory on disk is\n%s\nthe image's\n%s", &disk, &image)
	}
	for name, s := range map[string]source.Dir{"disk": source.Disk(d), "image": tree} {
		for op, try := range map[string]func(string) error{
			"lstat":    func(n string) error { _, err := s.Lstat(n); return err },
			"sub":      func(n string) error { _, err := s.Sub(n); return err },
			"open":     func(n string) error { _, err := s.Open(n); return err },
			"readlink": func(n string) error { _, err := s.Readlink(n); return err },
		} {
			if err := try("missing"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s of what is missing = %v", name, op, err)
			}
			if err := try("link"); err == nil && (op == "sub" || op == "open") {
				t.Errorf("%s: %s follows a symlink", name, op)
			}
		}
		if _, err := s.Readlink("none"); err == nil {
			t.Errorf("%s: a file has a target", name)
		}
		must(t, s.Close())
	}
}

func TestImageIsAFileSystem(t *testing.T) {
	lab.NeedRoot(t)
	dir := makeDir(t)
	for _, n := range []string{"etc/fifo", "etc/link", "etc/up"} {
		must(t, os.Remove(filepath.Join(dir, n)))
	}
	must(t, fstest.TestFS(imageOf(t, dir), "etc/d/f", "etc/none", "etc/d/empty"))
}

func TestImageFollowsWithin(t *testing.T) {
	lab.NeedRoot(t)
	image := imageOf(t, makeDir(t))
	if data, err := image.ReadFile("etc/link/f"); string(data) != "content" || err != nil {
		t.Errorf("through a symlink: %q, %v", data, err)
	}
	if data, err := image.ReadFile("etc/up"); len(data) != 0 || err != nil {
		t.Errorf("through a symlink that climbs: %q, %v", data, err)
	}
	if _, err := image.ReadFile("etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is missing: %v", err)
	}
	if _, err := image.ReadFile("etc/d"); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("a directory as a file: %v", err)
	}
	if _, err := image.Dir("etc/none"); err == nil {
		t.Error("a file as a directory")
	}
	if _, err := image.Dir("missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
}

// TestTruncatedFile: a file that is shorter or longer than the tree says is
// an error.
func TestTruncatedFile(t *testing.T) {
	tree := fstree.New()
	tree.Root.Set("f", &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: 3})
	big := &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: 1 << 40}
	tree.Root.Set("big", big)
	tree.Root.Set("hidden", &fstree.Inode{Mode: unix.S_IFREG, Xattrs: tree.Intern([]fstree.Xattr{
		{Name: "trusted.overlay.redirect", Value: "x"}, {Name: "user.a", Value: "b"}, {Name: "security.selinux", Value: "system_u:object_r:etc_t:s0"},
	})})
	for _, content := range []string{"ab", "abcd"} {
		image := source.NewImage(context.Background(), tree, func(context.Context, *fstree.Inode) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(content)), nil
		})
		if _, err := image.ReadFile("f"); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q of 3 bytes = %v", content, err)
		}
		if _, err := image.ReadFile("big"); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("a terabyte = %v", err)
		}
		dir, err := image.Dir("")
		must(t, err)
		if x, err := dir.Xattrs("hidden"); err != nil || !slices.Equal(x, []dirfd.Xattr{{Name: "security.selinux", Value: "system_u:object_r:etc_t:s0\x00"}, {Name: "user.a", Value: "b"}}) {
			t.Errorf("attributes = %v, %v; want the overlay's left out and the label as the kernel has it", x, err)
		}
	}
}
