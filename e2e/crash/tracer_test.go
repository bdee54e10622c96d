package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestTraceCountsAndKills holds the tracer against a script whose changes are
// known, some of them made by child processes, one of which wants to be out of
// the tracer's sight.
func TestTraceCountsAndKills(t *testing.T) {
	lab.Need(t, "sh", "mv", "ln", "setsid")
	lab.NeedRoot(t)
	const script = `cd "$0"; mkdir a; echo x >a/f; mv a/f a/g; ln -s g a/l; echo lost >/dev/null; (exec setsid sh -c "echo y >>a/g"); echo done`
	steps := []string{"mkdir", "openat", "write", "renameat2", "symlinkat", "openat", "write"}
	dir := t.TempDir()
	run, err := Trace(dir, 0, "/bin/sh", "-c", script, dir)
	if err != nil || run.Killed || run.Exit != 0 || run.Output != "done\n" {
		t.Fatalf("an undisturbed run: %+v, %v", run, err)
	}
	if len(run.Calls) != len(steps) {
		t.Fatalf("calls %v, want %v", run.Calls, steps)
	}
	for i, c := range run.Calls {
		if c.Name != steps[i] {
			t.Errorf("call %d is %s, want %s", i+1, c, steps[i])
		}
	}
	for kill := 1; kill <= len(steps); kill++ {
		t.Run(fmt.Sprintf("%d-%s", kill, steps[kill-1]), func(t *testing.T) {
			dir := t.TempDir()
			run, err := Trace(dir, kill, "/bin/sh", "-c", script, dir)
			if err != nil || !run.Killed || run.Exit != -1 || len(run.Calls) != kill || run.Output != "" {
				t.Fatalf("run %+v, %v; want it killed at call %d", run, err, kill)
			}
			for i, name := range []string{"a", "a/f", "", "a/g", "a/l"} {
				_, err := os.Lstat(filepath.Join(dir, name))
				gone := name == "a/f" && kill > 4
				if done := kill > i+1 && !gone; (err == nil) != done && name != "" {
					t.Errorf("killed at call %d: %s is there: %v, want %v", kill, name, err == nil, done)
				}
			}
		})
	}
}
