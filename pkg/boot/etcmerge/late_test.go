package etcmerge_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
)

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	must(t, unix.Syncfs(int(d.Fd())))
	var st unix.Statfs_t
	must(t, unix.Fstatfs(int(d.Fd()), &st))
	return int64(st.Bfree) * st.Bsize
}

// TestLargeFilesAtShutdown: a second Write brings over a large file that changed
// since the first. Where the file system shares blocks no byte of it is written;
// where it does not, it is copied, up to a limit.
func TestLargeFilesAtShutdown(t *testing.T) {
	for kind, shares := range map[string]bool{"ext4": false, "xfs": true, "btrfs": true} {
		t.Run(kind, func(t *testing.T) { largeFiles(t, lab.Mounted(t, kind, 512<<20), shares) })
	}
}

func largeFiles(t *testing.T, top string, shares bool) {
	t.Helper()
	dirs := map[string]string{}
	for _, d := range []string{"base", "local", "image", "new"} {
		dirs[d] = filepath.Join(top, d)
		must(t, os.Mkdir(dirs[d], 0o755))
	}
	big := filepath.Join(dirs["local"], "big")
	must(t, os.WriteFile(big, []byte("small so far"), 0o600))
	write := func(since time.Time) (etcmerge.Stats, error) {
		m, err := etcmerge.Plan(t.Context(), etcmerge.Sides{Base: tree(t, dirs["base"]), Local: tree(t, dirs["local"]), Image: tree(t, dirs["image"])})
		must(t, err)
		return m.Write(t.Context(), open(t, dirs["new"]), etcmerge.WriteOptions{Since: since})
	}
	staged := time.Now()
	_, err := write(time.Time{})
	must(t, err)

	const size = 16 << 20
	text := strings.Repeat("16 bytes of text", size/16)
	must(t, os.WriteFile(big, []byte(text), 0o600))
	before := freeBytes(t, top)
	stats, err := write(staged)
	must(t, err)
	written := before - freeBytes(t, top)
	got, err := os.ReadFile(filepath.Join(dirs["new"], "big"))
	must(t, err)
	if string(got) != text {
		t.Errorf("the late change was not brought over: %d bytes", len(got))
	}
	want := etcmerge.Stats{Files: 1, Bytes: size, Largest: size, Name: "/etc/big"}
	if shares {
		want = etcmerge.Stats{Files: 1, Shared: 1}
	}
	if stats != want {
		t.Errorf("the second write did %+v, want %+v", stats, want)
	}
	if wrote := written > etcmerge.LargeFile; wrote == shares {
		t.Errorf("the second write took %d bytes of the disk for a file of %d", written, size)
	}

	// Sparse: its size counts, not what is on disk.
	must(t, os.Truncate(big, etcmerge.LateBytes+1))
	_, err = write(staged)
	if shares {
		must(t, err)
	} else if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "/etc/big") {
		t.Errorf("the second write of a file above the limit = %v, want a conflict that names it", err)
	}
}
