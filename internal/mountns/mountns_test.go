package mountns_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/internal/mountns"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestWritable(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	err := inNamespace(t, func() error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}, func() error {
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, nil, 0o600); fault.KindOf(err) != fault.Denied {
			t.Errorf("write to the read-only mount: %v, want a denied error", err)
		}
		if err := mountns.Writable(dir); err != nil {
			return err
		}
		return os.WriteFile(file, nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err == nil {
		t.Error("the mount is to be seen outside its namespace")
	}
}

func TestWritableOfTheWholeFileSystem(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	err := inNamespace(t, func() error {
		return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "")
	}, func() error {
		if err := mountns.Writable(dir); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWritableMissing(t *testing.T) {
	if err := mountns.Writable("/does/not/exist"); err != nil {
		t.Errorf("a path that is not there: %v, want no error", err)
	}
}

// inNamespace runs functions on a thread with its own mount namespace; the
// thread ends with them.
func inNamespace(t *testing.T, fns ...func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			self, err := os.Readlink("/proc/thread-self/ns/mnt")
			if err != nil {
				return err
			}
			t.Setenv(mountns.Marker, self)
			for _, fn := range fns {
				if err := fn(); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-result
}

// TestMain is the program that Enter starts again, where the test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("KEDGE_TEST_ENTER") != "" {
		if err := mountns.Enter(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		ns, err := os.Readlink("/proc/self/ns/mnt")
		fmt.Print(ns)
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestEnter(t *testing.T) {
	lab.NeedRoot(t)
	here, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "KEDGE_TEST_ENTER=1")
	out, err := cmd.Output()
	if err != nil || string(out) == here || len(out) == 0 {
		t.Errorf("the program runs in %s, %v; want another namespace than %s", out, err, here)
	}
}
