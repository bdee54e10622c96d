package interop_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/kedge-os/kedge/e2e/crash"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
)

// childVariable makes the test binary an import: "WHERE IMAGE".
const childVariable = "KEDGE_COMPOSEFS_IMPORT"

func TestMain(m *testing.M) {
	if where := os.Getenv(childVariable); where != "" {
		os.Exit(child(where, os.Getenv(childVariable+"_IMAGE")))
	}
	os.Exit(m.Run())
}

// child imports an image into the repository below where and tags it.
func child(where, image string) int {
	err := func() error {
		root, err := os.OpenRoot(where)
		if err != nil {
			return err
		}
		defer root.Close()
		if err := root.MkdirAll("state", 0o755); err != nil {
			return err
		}
		state, err := root.OpenRoot("state")
		if err != nil {
			return err
		}
		defer state.Close()
		r, err := composefs.CreateRepo(root, "composefs", composefs.CreateOptions{AllowMissingVerity: true})
		if err != nil {
			return err
		}
		defer r.Close()
		im, err := r.NewImport(context.Background(), composefs.ImportOptions{State: state})
		if err != nil {
			return err
		}
		_, err = tryImport(im, image, where+"/../policy.json", composefs.Container{Tags: []string{"t"}})
		_ = im.Close()
		return err
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return fault.KindOf(err).ExitCode()
	}
	return 0
}

// crashSample is how many kill points a run takes unless KEDGE_NIGHTLY is set.
const crashSample = 60

// interrupted runs an import that ends early at each of its changes, in trace's
// way, and looks at what it left: nothing damaged, and the next import and a
// garbage collection make of it what an undisturbed import makes.
func interrupted(t *testing.T, trace func(root string, at int, argv ...string) (crash.Run, error)) {
	if runtime.GOARCH != "amd64" {
		lab.Skip(t, "system calls are counted on amd64 alone")
	}
	image := layoutOf(t, plainImage(t)...)
	t.Setenv(childVariable+"_IMAGE", image)
	attempt := func(at int) (string, crash.Run) {
		top := t.TempDir()
		where := filepath.Join(top, "sysroot")
		if err := os.Mkdir(where, 0o755); err != nil {
			t.Fatal(err)
		}
		writePolicy(t, top+"/policy.json")
		run, err := trace(where, at, "/usr/bin/env", childVariable+"="+where, os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		return where, run
	}
	where, whole := attempt(0)
	if whole.Exit != 0 {
		t.Fatalf("the undisturbed import: exit %d\n%s", whole.Exit, whole.Output)
	}
	want := imagesOf(t, where)
	step := max(1, len(whole.Calls)/crashSample)
	if os.Getenv("KEDGE_NIGHTLY") != "" {
		step = 1
	}
	t.Logf("%d changes", len(whole.Calls))
	for at := 1; at <= len(whole.Calls); at += step {
		where, broken := attempt(at)
		if !broken.Killed && broken.Exit != 0 && broken.Exit != fault.NoSpace.ExitCode() {
			t.Errorf("stopped at change %d: exit %d\n%s", at, broken.Exit, broken.Output)
		}
		if _, err := os.Stat(where + "/composefs/meta.json"); err == nil {
			r := openRepo(t, where, true)
			if res := fsck(t, r); len(res.Damage) > 0 {
				t.Errorf("stopped at change %d, the repository has %v", at, res.Damage)
			}
			_ = r.Close()
		}
		if code := again(where); code != 0 {
			t.Fatalf("stopped at change %d, the next import fails with %d", at, code)
		}
		r := openRepo(t, where, true)
		gc(t, r, composefs.GCOptions{})
		if res := fsck(t, r); len(res.Damage) > 0 || res.Streams != 4 {
			t.Errorf("stopped at change %d and imported again, the repository has %d streams and %v", at, res.Streams, res.Damage)
		}
		_ = r.Close()
		if got := imagesOf(t, where); len(got) != 1 || got[0] != want[0] {
			t.Errorf("stopped at change %d and imported again, the images are %v, want %v", at, got, want)
		}
	}
}

func again(where string) int { return child(where, os.Getenv(childVariable+"_IMAGE")) }

func imagesOf(t *testing.T, where string) []string {
	t.Helper()
	names, err := filepath.Glob(where + "/composefs/images/*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

func TestKilledAtEveryChange(t *testing.T) { interrupted(t, crash.Trace) }

func TestFullDisk(t *testing.T) {
	interrupted(t, func(root string, at int, argv ...string) (crash.Run, error) {
		if at == 0 {
			return crash.Trace(root, 0, argv...)
		}
		return crash.TraceFull(root, at, argv...)
	})
}
