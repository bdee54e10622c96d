package badinput

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

// mountedWorld is a world whose sysroot is an ext4 file system of its own.
func mountedWorld(t *testing.T, b offline.Backend, megabytes int64, mkfs ...string) *world {
	t.Helper()
	lab.Need(t, "mkfs.ext4", "mount", "umount")
	w := &world{backend: b, kedge: offline.BuildKedge(t), sysroot: filepath.Join(t.TempDir(), "mounted")}
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(disk, megabytes<<20), os.Mkdir(w.sysroot, 0o755)); err != nil {
		t.Fatal(err)
	}
	offline.Run(t, append(append([]string{"mkfs.ext4", "-q", "-m", "0"}, mkfs...), disk)...)
	offline.Run(t, "mount", "-o", "loop", disk, w.sysroot)
	t.Cleanup(func() { offline.Run(t, "umount", w.sysroot) })
	good := filepath.Join(t.TempDir(), "good")
	smallimage.Layout(t, good, map[string]v1.Image{"v1": smallimage.New(t, "1", smallimage.OS(1))})
	argv := append([]string{w.kedge, "install", "to-filesystem", "--image", "oci:" + good + ":v1"}, b.Flags()...)
	offline.Run(t, append(argv, w.sysroot)...)
	return w
}

// TestFullDisk lets the disk run full at different points of a switch: too
// little for the first write, and just too little for the last.
func TestFullDisk(t *testing.T) { onAll(t, fullDisk) }

func fullDisk(t *testing.T, b offline.Backend) {
	w := mountedWorld(t, b, 40, "-b", "1024")
	_, ref := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	filler := filepath.Join(w.sysroot, "filler")
	refused, done := 0, false
	for kilobytes := int64(0); !done && kilobytes < 20_000; kilobytes += 60 {
		fill(t, filler, kilobytes<<10)
		before := offline.List(t, w.sysroot)
		cmd := exec.Command(w.kedge, "--sysroot", w.sysroot, "switch", ref)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		err := cmd.Run()
		if done = err == nil; done {
			break
		}
		refused++
		answer{cmd.ProcessState.ExitCode(), errs.String()}.refuse(t, fault.NoSpace)
		if d := offline.Differences(offline.List(t, w.sysroot), before); d != "" {
			t.Errorf("with %d KiB free, the sysroot is not as it was:%s", kilobytes, d)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("refused %d times", refused)
	if !done || refused < 3 {
		t.Errorf("refused %d times, done at last: %v", refused, done)
	}
	b.Fsck(t, w.kedge, w.sysroot)
}

// TestNoInodesLeft is a disk that is full of files.
func TestNoInodesLeft(t *testing.T) { onAll(t, noInodesLeft) }

func noInodesLeft(t *testing.T, b offline.Backend) {
	w := mountedWorld(t, b, 40, "-b", "1024", "-N", "1500")
	_, ref := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	dir := filepath.Join(w.sysroot, "many")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(w.sysroot, &st); err != nil {
		t.Fatal(err)
	}
	for i := range int(st.Ffree) - 20 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.switchTo(t, ref).refuse(t, fault.NoSpace)
}

// fill makes the file as large as leaves so many bytes free.
func fill(t *testing.T, name string, free int64) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(name), &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Block maps take some of it: what does not fit is left out.
	for size := int64(st.Bavail)*st.Bsize - free; size > 0; size -= 16 << 10 {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
}

func TestReadOnlySysroot(t *testing.T) { onAll(t, readOnlySysroot) }

func readOnlySysroot(t *testing.T, b offline.Backend) {
	w := mountedWorld(t, b, 40)
	_, ref := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	offline.Run(t, "mount", "-o", "remount,ro", w.sysroot)
	w.switchTo(t, ref).refuse(t, fault.Denied)
}

// TestSecondWriter holds the lock that libostree and kedge take; of composefs,
// kedge alone.
func TestSecondWriter(t *testing.T) { onAll(t, secondWriter) }

func secondWriter(t *testing.T, b offline.Backend) {
	w := newWorld(t, b)
	_, ref := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	name := map[offline.Backend]string{offline.OSTree: "ostree/lock", offline.Composefs: "state/kedge/lock"}[b]
	f, err := os.OpenFile(filepath.Join(w.sysroot, name), os.O_RDWR|os.O_CREATE, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b == offline.OSTree {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	} else {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.switchTo(t, ref).refuse(t, fault.Busy)
}

// TestInterrupt presses Ctrl-C while a layer hangs.
func TestInterrupt(t *testing.T) { onAll(t, interrupt) }

func interrupt(t *testing.T, b offline.Backend) {
	w := newWorld(t, b)
	r := registry(t, false)
	dir, _ := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	if _, err := r.Push(t.Context(), dir, "bad", "os", "v2"); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", r.Addr), 0o644); err != nil {
		t.Fatal(err)
	}
	layers, err := smallimage.New(t, "2", smallimage.OS(2)).Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 100)
	r.Inject(func(_ http.ResponseWriter, req *http.Request) bool {
		if filepath.Base(req.URL.Path) != digest.String() {
			return false
		}
		asked <- struct{}{}
		<-req.Context().Done()
		return true
	})
	before := offline.List(t, w.sysroot)
	cmd := exec.Command(w.kedge, "--sysroot", w.sysroot, "switch", r.Repo("os:v2"))
	cmd.Env = append(os.Environ(), "CONTAINERS_REGISTRIES_CONF="+conf)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-asked:
	case err := <-ended:
		t.Fatalf("kedge did not ask for the layer: %v\n%s", err, errs.String())
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-ended
	answer{cmd.ProcessState.ExitCode(), errs.String()}.refuse(t, fault.Interrupted)
	after := offline.List(t, w.sysroot)
	// Layers that were fetched whole are kept for the next try.
	maps.DeleteFunc(after, func(path, _ string) bool {
		return strings.Contains(path, "/kedge-") && !strings.HasPrefix(path, "/boot/")
	})
	if d := offline.Differences(after, before); d != "" {
		t.Errorf("the sysroot is not as it was:%s", d)
	}
}
