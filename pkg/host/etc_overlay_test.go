package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
)

// TestEtcOverlay: where the image's initramfs mounts /etc as an overlay, what was
// removed stays removed in the next root, as the kernel shows it.
func TestEtcOverlay(t *testing.T) {
	lab.NeedRoot(t)
	w := newWorldOf(t, "composefs")
	overlay := smallimage.File("usr/lib/composefs/setup-root-conf.toml", 0, "[etc]\nmount = \"overlay\"\n")
	gone := []smallimage.Entry{overlay, smallimage.Dir("etc/dir"), smallimage.File("etc/dir/a", 0, "a\n"), smallimage.File("etc/dir/b", 0, "b\n"), smallimage.File("etc/gone", 0, "1\n")}
	a, _ := w.push("a", 1, gone...)
	b, _ := w.push("b", 2, append(gone, smallimage.File("etc/passwd", 0, rootUser+svcUser))...)
	id := w.install(a).ID

	// show mounts a deployment's /etc as the initramfs does, and runs fn in it.
	show := func(id, version string, fn func(etc string)) {
		t.Helper()
		lower := t.TempDir()
		for _, e := range append(smallimage.OS(map[string]int{"a": 1, "b": 2}[version]), gone...) {
			name := filepath.Join(lower, e.Name)
			if rel, err := filepath.Rel("etc", e.Name); err != nil || rel == ".." || len(rel) > 2 && rel[:3] == "../" {
				continue
			}
			switch {
			case e.Linkname != "":
				must(t, os.Symlink(e.Linkname, name))
			case e.Name[len(e.Name)-1] == '/':
				must(t, os.MkdirAll(name, 0o755))
			default:
				must(t, os.MkdirAll(filepath.Dir(name), 0o755))
				must(t, os.WriteFile(name, []byte(e.Body), 0o644))
			}
		}
		at := t.TempDir()
		upper, work := w.path(id, "etc/upper"), w.path(id, "etc/work")
		must(t, os.MkdirAll(upper, 0o755))
		must(t, os.MkdirAll(work, 0o700))
		must(t, unix.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+"/etc,upperdir="+upper+",workdir="+work))
		defer func() { must(t, unix.Unmount(at, 0)) }()
		fn(at)
	}
	show(id, "a", func(etc string) {
		must(t, os.Remove(etc+"/gone"))
		must(t, os.RemoveAll(etc+"/dir"))
		must(t, os.Mkdir(etc+"/dir", 0o755)) // opaque
		must(t, os.WriteFile(etc+"/dir/b", []byte("mine\n"), 0o644))
		must(t, os.WriteFile(etc+"/passwd", []byte(rootUser+annUser), 0o644))
		must(t, os.Rename(etc+"/edited.conf", etc+"/renamed.conf"))
	})
	h := w.open()
	changes, err := h.EtcDiff(context.Background())
	must(t, err)
	h.Close()
	want := []string{
		"/etc/dir/a removed unchanged kept", "/etc/dir/b modified unchanged kept", "/etc/edited.conf removed unchanged kept",
		"/etc/gone removed unchanged kept", "/etc/passwd modified unchanged kept ann:added", "/etc/renamed.conf added unchanged kept",
	}
	if got := told(changes); !slices.Equal(got, want) {
		t.Errorf("etc diff = %q, want %q", got, want)
	}
	for range 2 { // the second time over what the first one wrote
		id = w.switchTo(b).ID
		show(id, "b", func(etc string) {
			for name, text := range map[string]string{
				"dir/b": "mine\n", "passwd": rootUser + svcUser + annUser, "renamed.conf": "default=1\n", "default.conf": "version=2\n", "hostname": "small\n",
			} {
				if got, err := os.ReadFile(filepath.Join(etc, name)); err != nil || string(got) != text {
					t.Errorf("/etc/%s = %q, %v, want %q", name, got, err, text)
				}
			}
			for _, name := range []string{"gone", "dir/a", "edited.conf"} {
				if _, err := os.Lstat(filepath.Join(etc, name)); err == nil {
					t.Errorf("/etc/%s is back", name)
				}
			}
		})
		w.switchTo(a)
	}
}
