package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
)

// mount mounts a file system for the test.
func mount(t *testing.T, source, target, fstype, options string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount(source, target, fstype, unix.MS_RDONLY, options)
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTBLK):
		lab.Skip(t, "this kernel mounts no %s from %s: %v", fstype, source, err)
	case err != nil:
		t.Fatalf("mount %s from %s: %v", fstype, source, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// TestKernelReads mounts an image as a composefs host does, but for verity, and
// reads it through the kernel.
func TestKernelReads(t *testing.T) {
	lab.NeedRoot(t)
	work := t.TempDir()
	objects := filepath.Join(work, "objects")
	object := func(body []byte) (digest, payload string) {
		d := digestOf(SHA256, body)
		f := Object(d)
		name := filepath.Join(objects, f.Payload)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, body, 0o644); err != nil {
			t.Fatal(err)
		}
		return d.String(), f.Payload
	}
	bodies := map[string]string{"/usr/big": string(randomBytes(200_000)), "/usr/small": "x", "/etc/inline": "inline", "/etc/two-blocks": strings.Repeat("2", 4500), "/etc/empty": ""}
	var dump strings.Builder
	dump.WriteString(rootLine + "/usr 0 40755 2 0 0 0 1.5 - - -\n/etc 0 41777 2 7 70000 0 1.5 - - - user.dir=1\n/aa 0 40755 2 0 0 0 0.0 - - -\n")
	for path, body := range bodies {
		payload, content, digest := "-", "-", "-"
		switch {
		case strings.HasPrefix(path, "/usr"):
			digest, payload = object([]byte(body))
		case body != "":
			content = body
		}
		fmt.Fprintf(&dump, "%s %d 100640 1 1 2 0 99.000000007 %s %s %s user.note=hello user.path=%s\n", path, len(body), payload, content, digest, path)
	}
	dump.WriteString("/usr/link 9 @100640 2 0 0 0 0.0 /usr/big - -\n")
	fmt.Fprintf(&dump, "/long 0 120777 1 0 0 0 0.0 %s - -\n", strings.Repeat("t", 4090))
	for i := range 500 {
		fmt.Fprintf(&dump, "/aa/file-with-a-long-name-%04d 0 100644 1 0 0 0 0.0 - - -\n", i)
	}
	tree, err := ReadDump(strings.NewReader(dump.String()))
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(work, "image")
	if err := os.WriteFile(image, writeImageOf(t, tree, V1), 0o644); err != nil {
		t.Fatal(err)
	}
	erofs, merged := filepath.Join(work, "erofs"), filepath.Join(work, "merged")
	mount(t, image, erofs, "erofs", "")
	mount(t, "overlay", merged, "overlay", "metacopy=on,redirect_dir=on,lowerdir="+erofs+"::"+objects)

	_ = tree.Walk(func(path string, e Dirent) error {
		compareStat(t, merged, path, e.Inode)
		return nil
	})
	for path, body := range bodies {
		if got, err := os.ReadFile(merged + path); err != nil || string(got) != body {
			t.Errorf("%s holds %d bytes and gives %v, want %d bytes", path, len(got), err, len(body))
		}
	}
	if got, err := os.Readlink(merged + "/long"); err != nil || got != tree.Lookup("/long").Payload {
		t.Errorf("/long leads to %d bytes, %v", len(got), err)
	}
	names, err := os.ReadDir(merged)
	if err != nil || len(names) != len(tree.Root.Entries) {
		t.Errorf("the root has the %d entries %v, want %d", len(names), names, len(tree.Root.Entries))
	}
	if names, err := os.ReadDir(merged + "/aa"); err != nil || len(names) != 500 {
		t.Errorf("/aa has %d entries, %v, want 500", len(names), err)
	}
}

// compareStat compares what the kernel says of a file with the tree.
func compareStat(t *testing.T, merged, path string, n *Inode) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(merged+path, &st); err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	if st.Mode != n.Mode || st.Uid != n.UID || st.Gid != n.GID || st.Mtim.Sec != n.MtimeSec || st.Mtim.Nsec != int64(n.MtimeNsec) {
		t.Errorf("%s: the kernel says %o %d:%d %d.%d, want %o %d:%d %d.%d", path,
			st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, n.Mode, n.UID, n.GID, n.MtimeSec, n.MtimeNsec)
	}
	if !n.IsDir() && uint64(st.Size) != n.Size {
		t.Errorf("%s: the kernel says %d bytes, want %d", path, st.Size, n.Size)
	}
	for _, x := range n.Xattrs.All() {
		value := make([]byte, 100)
		if k, err := unix.Lgetxattr(merged+path, x.Name, value); err != nil || !bytes.Equal(value[:max(k, 0)], []byte(x.Value)) {
			t.Errorf("%s: xattr %s is %q, %v, want %q", path, x.Name, value[:max(k, 0)], err, x.Value)
		}
	}
}
