package etcmerge_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// cpu is what the process has used, user and system.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestManyFiles: 100,000 files, half of them changed.
func TestManyFiles(t *testing.T) {
	lab.NeedRoot(t)
	const files, perDir = 100_000, 1000
	top := t.TempDir()
	must(t, unix.Mount("tmpfs", top, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(top, unix.MNT_DETACH)) })
	dirs := map[string]string{}
	for _, side := range []string{"base", "local", "image", "new"} {
		dirs[side] = filepath.Join(top, side)
		must(t, os.Mkdir(dirs[side], 0o755))
		if side == "new" {
			break
		}
		for n := range files {
			dir := filepath.Join(dirs[side], fmt.Sprintf("d%d", n/perDir))
			if n%perDir == 0 {
				must(t, os.Mkdir(dir, 0o755))
			}
			text := "default"
			if side == "local" && n%2 == 0 {
				text = "mine"
			}
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", n)), []byte(text), 0o644))
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := cpu(t)
	m, err := etcmerge.Plan(t.Context(), etcmerge.Sides{Base: tree(t, dirs["base"]), Local: tree(t, dirs["local"]), Image: tree(t, dirs["image"])})
	must(t, err)
	planned := cpu(t) - start
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	start = cpu(t)
	stats, err := m.Write(t.Context(), open(t, dirs["new"]), etcmerge.WriteOptions{})
	must(t, err)
	if len(m.Changes) != files/2 || stats.Files != files {
		t.Errorf("%d changes, %d files written, want %d and %d", len(m.Changes), stats.Files, files/2, files)
	}
	t.Logf("planned in %v and written in %v of CPU time, %d MB held", planned, cpu(t)-start, held>>20)
	if planned > 30*time.Second || held > 100<<20 {
		t.Errorf("planning took %v of CPU time and holds %d MB, want at most 30 s and 100 MB", planned, held>>20)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := etcmerge.Plan(ctx, etcmerge.Sides{Base: tree(t, dirs["base"]), Local: tree(t, dirs["local"]), Image: tree(t, dirs["image"])}); !errors.Is(err, context.Canceled) {
		t.Errorf("a merge that is cancelled = %v", err)
	}
}

// TestLargeFile: a file of 1 GB is not taken into memory, and nothing of it is
// read where sizes tell.
func TestLargeFile(t *testing.T) {
	lab.NeedRoot(t)
	base, local, image := files{"big": "1", "passwd": "r:x:0:0::/:/s\n"}.make(t), files{"big": "1", "passwd": ""}.make(t), files{"big": "2", "passwd": "s:x:1:1::/:/s\n"}.make(t)
	for _, name := range []string{"big", "passwd"} {
		must(t, os.Truncate(filepath.Join(local, name), 1<<30))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := cpu(t)
	m, err := etcmerge.Plan(t.Context(), etcmerge.Sides{Base: tree(t, base), Local: tree(t, local), Image: tree(t, image)})
	must(t, err)
	runtime.ReadMemStats(&after)
	if took, held := cpu(t)-start, after.TotalAlloc-before.TotalAlloc; took > time.Second || held > 4<<20 {
		t.Errorf("planning took %v of CPU time and %d bytes", took, held)
	}
	if len(m.Changes) != 2 || !strings.Contains(strings.Join(m.Changes[1].Notes, ""), "larger than") {
		t.Errorf("changes = %+v, want a note that passwd is too large to merge", m.Changes)
	}
}

// TestDeepDirectories: descriptors are bounded, not the stack.
func TestDeepDirectories(t *testing.T) {
	lab.NeedRoot(t)
	local := t.TempDir()
	d, err := dirfd.OpenPath(local)
	must(t, err)
	for range 300 {
		must(t, d.Mkdir("d"))
		sub, err := d.Sub("d")
		must(t, err)
		must(t, d.Close())
		d = sub
	}
	must(t, d.Close())
	for name, base := range map[string]source.Dir{"added": tree(t, files{}.make(t)), "in both": tree(t, local)} {
		_, err = etcmerge.Plan(t.Context(), etcmerge.Sides{Base: base, Local: tree(t, local), Image: tree(t, files{}.make(t))})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "nested deeper") {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}
}
