package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestRemoveDeadMemory: what a killed process left goes with the next one, and
// what a living one has stays.
func TestRemoveDeadMemory(t *testing.T) {
	NeedRoot(t)
	t.Setenv("TMPDIR", t.TempDir())
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	mounted := func(pid int) string {
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-test", memoryPrefix, pid))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Command(t.Context(), "mount", "-t", "tmpfs", "tmpfs", dir); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead, alive := mounted(ended.Process.Pid), mounted(os.Getpid())
	removeDeadMemory()
	if _, err := os.Lstat(dead); !os.IsNotExist(err) {
		t.Errorf("the dead process's is still there: %v", err)
	}
	if _, err := Command(t.Context(), "umount", alive); err != nil {
		t.Errorf("the living process's is gone: %v", err)
	}
}
