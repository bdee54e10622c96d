package interop_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/e2e/crash"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/ostree"
)

const childDir = "KEDGE_IMPORT_CHILD"

// TestImportInChild is the program that TestImportKilledAtEveryChange kills.
func TestImportInChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("only runs as a child of TestImportKilledAtEveryChange")
	}
	importInto(t, dir)
}

func importInto(t *testing.T, dir string) (commit string, fetched int) {
	t.Helper()
	r, err := ostree.Open(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	state, err := os.OpenRoot(filepath.Join(dir, "kedge"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	c, fetched := bring(t, r, ostree.ImportOptions{State: state, Version: "1"}, fixtureRef(t, "derived"))
	return c.String(), fetched
}

// TestImportKilledAtEveryChange kills an import at system calls that change the
// repository. After each kill the repository is whole, and the next run ends
// with the same commit and leaves nothing behind.
func TestImportKilledAtEveryChange(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() string {
		dir := t.TempDir()
		r, err := ostree.Create(filepath.Join(dir, "repo"), ostree.Bare)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		if err := os.Mkdir(filepath.Join(dir, "kedge"), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	want, _ := importInto(t, fresh())
	// A child that is killed removes nothing of its own.
	t.Setenv("TMPDIR", t.TempDir())
	trace := func(dir string, kill int) crash.Run {
		t.Setenv(childDir, dir)
		run, err := crash.Trace(dir, kill, self, "-test.run=^TestImportInChild$")
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	all := trace(fresh(), 0)
	if all.Exit != 0 || len(all.Calls) < 100 {
		t.Fatalf("an undisturbed import made %d changes and ended with %d: %s", len(all.Calls), all.Exit, all.Output)
	}
	points := 40
	if testing.Short() {
		points = 8
	}
	kept := 0
	for i := range points {
		kill := 1 + i*(len(all.Calls)-1)/(points-1)
		t.Run(fmt.Sprintf("%d of %d", kill, len(all.Calls)), func(t *testing.T) {
			dir := fresh()
			run := trace(dir, kill)
			// Goroutines run in another order each time: the last points may lie
			// beyond the end.
			where := "the end"
			if run.Killed {
				where = run.Calls[len(run.Calls)-1].String()
			}
			repo := filepath.Join(dir, "repo")
			tool(t, "ostree", "fsck", "--quiet", "--repo="+repo)
			got, fetched := importInto(t, dir)
			if got != want {
				t.Errorf("killed at %s: the next import makes %s, expected %s", where, got, want)
			}
			if fetched < 6 {
				kept++
			}
			tool(t, "ostree", "fsck", "--quiet", "--repo="+repo)
			if left := leftovers(t, dir); len(left) > 0 {
				t.Errorf("killed at %s: left behind: %s", where, strings.Join(left, " "))
			}
		})
	}
	if kept < points/4 {
		t.Errorf("after %d of %d kills no layer had to be fetched again; expected more", kept, points)
	}
}

// leftovers lists the files in the repository's tmp and the unfinished layer
// indexes.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for _, top := range []string{"repo/tmp", "kedge"} {
		err := filepath.WalkDir(filepath.Join(dir, top), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel := strings.TrimPrefix(path, dir+"/")
			if !d.IsDir() && d.Name() != "lock" && !strings.HasPrefix(rel, "kedge/layers/sha256-") {
				out = append(out, rel)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}
