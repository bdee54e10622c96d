package boot

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
)

func labelOn(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

// sysrootLabels returns the labels of everything below dir by path, split into
// what Label is to label and what it is to leave alone.
func sysrootLabels(t testing.TB, dir string) (own, others map[string]string) {
	t.Helper()
	alone := regexp.MustCompile(`^/ostree/(deploy/os/(var|deploy/[0-9a-f]{64}\.[0-9])(/|$)|repo/objects/.*\.file$)`)
	own, others = map[string]string{}, map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		into := own
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if alone.MatchString(name) || e.Type().IsRegular() && st.Nlink > 1 {
			into = others
		}
		into[name] = labelOn(t, p)
		return nil
	}))
	return own, others
}

// TestSysrootLabels: what kedge makes above its deployments gets the label that
// matchpathcon says, and nothing else is touched.
func TestSysrootLabels(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "matchpathcon")
	if labelOn(t, t.TempDir()) != "" {
		t.Skip("SELinux labels files on this machine as they are made")
	}
	w := newWorld(t)
	s := w.open()
	must(t, s.InitStateroot("os"))
	d := w.deploy(s, w.commit(osTree("k1").with(policy(t)), "1"), "os")
	const kept = "system_u:object_r:etc_t:s0"
	must(t, os.Mkdir(filepath.Join(w.dir, "ostree/mine"), 0o755))
	must(t, unix.Lsetxattr(filepath.Join(w.dir, "ostree/mine"), "security.selinux", []byte(kept+"\x00"), 0))
	bare, alone := sysrootLabels(t, w.dir)
	if bare["/ostree/deploy"] != "" || bare["/boot"] != "" || bare["/ostree/mine"] != kept {
		t.Fatal("the sysroot has labels already")
	}
	must(t, s.Label(t.Context(), d))

	own, after := sysrootLabels(t, w.dir)
	for path, label := range bare {
		if label != "" { // the origin's, for instance, which Deploy labels
			alone[path], after[path] = label, own[path]
			delete(own, path)
		}
	}
	for path, got := range after {
		if got != alone[path] {
			t.Errorf("%s has now the label %q, want %q as before", path, got, alone[path])
		}
	}
	for _, path := range []string{"/", "/boot", "/boot/loader", "/ostree", "/ostree/repo/config", "/ostree/deploy/os"} {
		if _, ok := own[path]; !ok {
			t.Errorf("the sysroot has no %s", path)
		}
	}
	for kind, flag := range map[fs.FileMode]string{0: "file", fs.ModeDir: "dir", fs.ModeSymlink: "link"} {
		var paths []string
		for path := range own {
			if st, err := os.Lstat(filepath.Join(w.dir, path)); err == nil && st.Mode().Type() == kind {
				paths = append(paths, path)
			}
		}
		want := strings.Fields(run(t, append([]string{"matchpathcon", "-n", "-m", flag}, paths...)...))
		for i, path := range paths {
			if own[path] != want[i] {
				t.Errorf("%s has the label %q, want %q", path, own[path], want[i])
			}
		}
	}
	t.Logf("%d labelled, %d left alone", len(own), len(after))
}
