package layering_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// sentinel is the file of the machine that the hostile packages look for.
const sentinel = "/tmp/kedge-lab-sentinel"

// machine sums up what a scriptlet could change outside of its sandbox: every
// inode and every content of the base and of the host's /etc, the sentinel, what
// the kernel keeps.
func machine(t *testing.T, dirs ...string) string {
	t.Helper()
	var h strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			fmt.Fprint(&h, path, st.Mode, st.Uid, st.Gid, st.Size, st.Ino, st.Mtim, st.Ctim)
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&h, " %x", sha256.Sum256(content))
			}
			fmt.Fprintln(&h)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", sentinel} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&h, "%s %q\n", file, b)
	}
	return h.String()
}

func TestHostileScriptlets(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		write(t, sentinel, "of the machine\n")
		t.Cleanup(func() { os.Remove(sentinel) })
		t.Setenv("KEDGE_LAB_SECRET", "of the environment")
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		if _, err := lab.Command(t.Context(), "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port); err != nil {
			t.Fatalf("the machine itself cannot reach the listener, so the test shows nothing: %v", err)
		}
		w.base.Etc = filepath.Join(t.TempDir(), "etc")
		if _, err := lab.Command(t.Context(), "cp", "-a", filepath.Join(w.base.Root, "etc"), w.base.Etc); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(w.base.Etc, "lab-port"), port+"\n")
		write(t, filepath.Join(w.etc, "shadow"), "root:of the machine:1::::::\n")
		before := machine(t, w.base.Root, w.base.Etc, w.etc)

		r := w.mustAdd(t, "lab-spy", "lab-caller", "lab-stayer", "lab-breaker")
		if e := r.files["usr/share/lab/breach"]; e != nil && e.content != "" {
			t.Errorf("the scriptlets got through the sandbox: %s", e.content)
		}
		r.has(t, "usr/share/lab/spied", "usr/share/lab/pattern")
		if got := content(r, "usr/share/lab/spied"); strings.Contains(got, "of the") {
			t.Errorf("a scriptlet read the machine's files or environment: %q", got)
		}
		if got := content(r, "usr/share/lab/environment"); strings.Contains(got, "KEDGE_LAB_SECRET") || !strings.Contains(got, "SYSTEMD_OFFLINE=1") {
			t.Errorf("the scriptlets' environment: %s", got)
		}
		var n int
		if _, err := fmt.Sscan(content(r, "usr/share/lab/processes"), &n); err != nil || n > 15 {
			t.Errorf("a scriptlet saw %d processes (%v)", n, err)
		}
		if pid := running(t, "sleep\x00987"); pid != "" {
			t.Errorf("process %s of a scriptlet still runs", pid)
		}

		_, err = w.add(t, layering.Request{Install: []string{"lab-destroyer"}})
		if fault.KindOf(err) != fault.Conflict {
			t.Errorf("rm -rf / in a scriptlet: %v, want a conflict", err)
		}
		if after := machine(t, w.base.Root, w.base.Etc, w.etc); after != before {
			a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
			t.Errorf("the machine is not as it was before: %s", cmp.Diff(a, b))
		}
		w.mustAdd(t, "lab-anchor").has(t, "usr/bin/lab-anchor")
	})
}

// TestFullDisk: a scriptlet that fills the disk is ended while there is space
// left for others.
func TestFullDisk(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		small := t.TempDir()
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=512m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
		w.work = filepath.Join(small, "work")
		_, err := w.add(t, layering.Request{Install: []string{"lab-filler"}})
		if fault.KindOf(err) != fault.NoSpace {
			t.Errorf("a scriptlet that fills the disk: %v, want no space", err)
		}
	})
}

// running returns the process whose command line starts with argv.
func running(t *testing.T, argv string) string {
	return process(t, func(cmdline string) bool { return strings.HasPrefix(cmdline, argv) })
}

// runningIn returns the process that was told of a directory.
func runningIn(t *testing.T, dir string) string {
	return process(t, func(cmdline string) bool { return strings.Contains(cmdline, dir) })
}

func process(t *testing.T, match func(cmdline string) bool) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && match(string(b)) {
			return filepath.Base(filepath.Dir(f))
		}
	}
	return ""
}
