package lab

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// aged makes the directory name in dir, with a file in it, last used days ago.
func aged(t *testing.T, dir, name string, days int) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Join(path, "oci"), 0o755); err != nil {
		t.Fatal(err)
	}
	then := time.Now().AddDate(0, 0, -days)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
	return path
}

func dirs(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestCacheKeepsWhatIsUsed(t *testing.T) {
	cache := t.TempDir()
	const used, unused, young = "base-0123456789ab", "base-aaaaaaaaaaaa", "base-bbbbbbbbbbbb"
	aged(t, cache, used, 100)
	aged(t, cache, unused, 100)
	aged(t, cache, young, 3)
	others := []string{"base-composefs-0123456789ab", "chunked-0123456789ab", "golangci-lint-v2.15.0-go1.26.8", "ostree-trixie"}
	for _, o := range others {
		aged(t, cache, o, 100)
	}
	if err := keepUsed(cache, filepath.Join(cache, used, "oci")); err != nil {
		t.Fatal(err)
	}
	want := append([]string{used, young}, others...)
	slices.Sort(want)
	if got := dirs(t, cache); !slices.Equal(got, want) {
		t.Errorf("the cache has %q, want %q", got, want)
	}
	if st, err := os.Stat(filepath.Join(cache, used)); err != nil || time.Since(st.ModTime()) > time.Hour {
		t.Errorf("what was used just now is not marked so: %v, %v", st, err)
	}
	if err := keepUsed(cache, "/elsewhere/oci"); err != nil {
		t.Errorf("a recipe that keeps its work elsewhere: %v", err)
	}
}

func TestDeadWorldsAreRemoved(t *testing.T) {
	cache := t.TempDir()
	alive, end, err := newWorldDir(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	dead, kill, err := newWorldDir(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	kill()
	ancient := aged(t, cache, "world-1", 2)
	unlocked := aged(t, cache, "world-2", 0)
	fresh, stop, err := newWorldDir(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for dir, want := range map[string]bool{alive: true, dead: false, ancient: false, unlocked: true, fresh: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", filepath.Base(dir), err == nil, want)
		}
	}
	end()
}
