package dirfd_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/lab"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) *dirfd.Dir {
	t.Helper()
	d, err := dirfd.OpenPath(path)
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// TestNothingIsFollowed: a symlink never leads out of the directory.
func TestNothingIsFollowed(t *testing.T) {
	lab.NeedRoot(t)
	outside, inside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(inside, "dir")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(inside, "file")))
	d := open(t, inside)
	if _, err := d.Sub("dir"); err == nil {
		t.Error("a symlink was opened as a directory")
	}
	if _, err := d.OpenFile("file"); err == nil {
		t.Error("a symlink was opened as a file")
	}
	must(t, d.SetMeta("file", 1, 1, unix.S_IFLNK|0o777, nil))
	must(t, d.SetTimes("file", unix.Timespec{Sec: 5}))
	st, err := os.Stat(filepath.Join(outside, "secret"))
	must(t, err)
	if st.ModTime().Unix() == 5 {
		t.Error("the time was set through a symlink")
	}
	must(t, d.Remove("dir"))
	must(t, d.Remove("file"))
	must(t, d.Remove("missing"))
	if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
		t.Errorf("removing a symlink removed what it leads to: %v", err)
	}
}

func TestRemoveImmutableTree(t *testing.T) {
	lab.NeedRoot(t)
	top := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(top, "a/b/c"), 0o755))
	must(t, os.WriteFile(filepath.Join(top, "a/b/f"), nil, 0o600))
	for _, name := range []string{"a/b", "a"} {
		must(t, open(t, filepath.Join(top, name)).SetImmutable(true))
	}
	must(t, open(t, top).Remove("a"))
	if _, err := os.Lstat(filepath.Join(top, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the tree is still there: %v", err)
	}
}

func TestCopyFileReplacesWhole(t *testing.T) {
	lab.NeedRoot(t)
	top := t.TempDir()
	must(t, os.WriteFile(filepath.Join(top, "src"), []byte("new"), 0o600))
	must(t, os.WriteFile(filepath.Join(top, "dst"), []byte("old and longer"), 0o600))
	d := open(t, top)
	m := dirfd.Meta{UID: 3, GID: 4, Mode: unix.S_IFREG | 0o4711, Xattrs: []dirfd.Xattr{{Name: "user.a", Value: "b"}}, Mtime: unix.Timespec{Sec: 9}, Sync: true}
	must(t, d.CopyFile(d, "src", "dst", m))
	got, err := os.ReadFile(filepath.Join(top, "dst"))
	must(t, err)
	st, err := d.Lstat("dst")
	must(t, err)
	if string(got) != "new" || st.Uid != 3 || st.Gid != 4 || st.Mode&0o7777 != 0o4711 || st.Mtim.Sec != 9 {
		t.Errorf("copy = %q %d:%d %o %d", got, st.Uid, st.Gid, st.Mode, st.Mtim.Sec)
	}
	if x, err := d.Xattrs("dst"); err != nil || len(x) != 1 || x[0] != m.Xattrs[0] {
		t.Errorf("extended attributes = %v, %v", x, err)
	}
	if names, _ := d.Names(); len(names) != 2 {
		t.Errorf("the directory has %v, want no temporary file", names)
	}
}

func TestSameBytes(t *testing.T) {
	top := t.TempDir()
	big := make([]byte, 200<<10)
	for name, data := range map[string][]byte{"a": big, "b": big, "longer": append(big[:len(big):len(big)], 1), "other": append(big[:len(big)-1:len(big)-1], 1), "empty": nil} {
		must(t, os.WriteFile(filepath.Join(top, name), data, 0o600))
	}
	d := open(t, top)
	for name, want := range map[string]bool{"a": true, "b": true, "longer": false, "other": false, "empty": false} {
		a, err := d.OpenFile("a")
		must(t, err)
		b, err := d.OpenFile(name)
		must(t, err)
		got, err := dirfd.SameBytes(a, b)
		_, _ = a.Close(), b.Close()
		if got != want || err != nil {
			t.Errorf("a and %s are the same: %v, %v; want %v", name, got, err, want)
		}
	}
}
