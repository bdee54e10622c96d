package boot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/e2e/crash"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/karg"
)

// dirRepo is a repository without ostree: a commit is a directory of its name.
type dirRepo struct{ path string }

func (r dirRepo) Checkout(_ context.Context, commit string, parent *os.Root, name string) error {
	src := filepath.Join(r.path, commit)
	return filepath.WalkDir(src, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, _ := filepath.Rel(src, p)
		dst := filepath.Join(name, below)
		switch {
		case e.IsDir():
			return parent.Mkdir(dst, 0o755)
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return parent.Symlink(target, dst)
		}
		return os.Link(p, filepath.Join(parent.Name(), dst))
	})
}

func (dirRepo) CommitVersion(commit string) (string, error) { return commit[:2], nil }

func (r dirRepo) Refs(prefix string) (map[string]string, error) {
	return (&cliRepo{path: r.path}).Refs(prefix)
}

func (r dirRepo) SetRefs(ctx context.Context, refs map[string]string) error {
	return (&cliRepo{path: r.path}).SetRefs(ctx, refs)
}

// commitOf names the commit that holds a tree.
func commitOf(c string) string { return strings.Repeat(hex.EncodeToString([]byte(c)), 32) }

// crashWorld is a world in one directory, with commits "1", "2" and "3".
func crashWorld(t testing.TB) *world {
	t.Helper()
	top := t.TempDir()
	t.Cleanup(func() { _, _ = tryRun("chattr", "-R", "-f", "-i", top) })
	w := &world{t: t, dir: top + "/sysroot", host: top + "/host"}
	for _, d := range []string{w.dir, w.host} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, Init(w.dir))
	for _, c := range []string{"1", "2", "3"} {
		osTree("kernel "+c).with(tree{"usr/etc/version": c, "var/lib/app/data": "seed"}).write(t, filepath.Join(w.dir, "ostree/repo", commitOf(c)))
	}
	must(t, os.MkdirAll(filepath.Join(w.dir, "ostree/repo/refs/heads"), 0o755))
	return w
}

func crashOpen(w *world) (*Sysroot, error) {
	o := w.options()
	o.Repo = dirRepo{filepath.Join(w.dir, "ostree/repo")}
	s, err := Open(w.dir, o)
	if err != nil {
		return nil, err
	}
	return s, s.Lock(context.Background())
}

// operations are what is killed. Each finds the sysroot that prepare made.
var operations = map[string]func(ctx context.Context, s *Sysroot) error{
	"deploy": func(ctx context.Context, s *Sysroot) error {
		if err := s.Cleanup(ctx); err != nil {
			return err
		}
		if err := s.requireStateroot("os"); err != nil {
			if err := s.InitStateroot("os"); err != nil {
				return err
			}
		}
		r := DeployRequest{Stateroot: "os", Commit: commitOf("2"), Merge: s.MergeFor("os")}
		d, err := s.Deploy(ctx, r)
		if err != nil {
			return err
		}
		if err := s.Write(ctx, s.With(d, Retention{Merge: r.Merge})); err != nil {
			return err
		}
		return s.Cleanup(ctx)
	},
	"rollback": func(ctx context.Context, s *Sysroot) error {
		list := s.Deployments()
		return s.Write(ctx, s.WithDefault(list[len(list)-1]))
	},
	"stage": func(ctx context.Context, s *Sysroot) error {
		if err := s.Cleanup(ctx); err != nil {
			return err
		}
		_, err := s.Stage(ctx, StageRequest{DeployRequest: DeployRequest{Stateroot: "os", Commit: commitOf("3"), Merge: s.MergeFor("os")}})
		return err
	},
	"finalize": func(ctx context.Context, s *Sysroot) error {
		if _, err := s.Finalize(ctx); err != nil {
			return err
		}
		return s.Cleanup(ctx)
	},
}

// TestMain runs one operation where the crash test asks for it.
func TestMain(m *testing.M) {
	if op, spec, ok := strings.Cut(os.Getenv("KEDGE_BOOT_OPERATION"), "@"); ok {
		dir, host, _ := strings.Cut(spec, "@")
		s, err := crashOpen(&world{dir: dir, host: host})
		if err == nil {
			err = operations[op](context.Background(), s)
			s.Close()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runOperation runs an operation in a process that is killed at its kill-th
// change; 0 lets it finish.
func runOperation(t testing.TB, w *world, op string, kill int) crash.Run {
	t.Helper()
	t.Setenv("KEDGE_BOOT_OPERATION", op+"@"+w.dir+"@"+w.host)
	run, err := crash.Trace(filepath.Dir(w.dir), kill, os.Args[0])
	must(t, err)
	if !run.Killed && run.Exit != 0 {
		t.Fatalf("%s: exit status %d: %s", op, run.Exit, run.Output)
	}
	return run
}

// prepare makes the sysroot that an operation begins with.
func prepare(t testing.TB, op string) *world {
	t.Helper()
	w := crashWorld(t)
	if op == "deploy" {
		return w
	}
	ctx := context.Background()
	s, err := crashOpen(w)
	must(t, err)
	must(t, s.InitStateroot("os"))
	for _, c := range []string{"1", "2"} {
		w.deployFrom(s, commitOf(c))
	}
	s.Close()
	if op == "rollback" {
		return w
	}
	w.boot(s.list[0])
	if op == "finalize" {
		s, err := crashOpen(w)
		must(t, err)
		must(t, operations["stage"](ctx, s))
		must(t, os.WriteFile(filepath.Join(w.dir, s.Booted().Dir(), "etc/late"), []byte("late"), 0o644))
		s.Close()
	}
	return w
}

func (w *world) deployFrom(s *Sysroot, commit string) {
	w.t.Helper()
	ctx := context.Background()
	d, err := s.Deploy(ctx, DeployRequest{Stateroot: "os", Commit: commit, Merge: s.MergeFor("os")})
	must(w.t, err)
	must(w.t, s.Write(ctx, s.With(d, Retention{All: true})))
	must(w.t, s.Cleanup(ctx))
}

// TestKilledAnywhere kills each operation at its changes. After every kill the default boots, and the next run finishes and leaves nothing behind.
func TestKilledAnywhere(t *testing.T) {
	lab.NeedRoot(t)
	for op := range operations {
		t.Run(op, func(t *testing.T) {
			w := prepare(t, op)
			before := defaults(t, w)
			run := runOperation(t, w, op, 0)
			after := defaults(t, w)
			t.Logf("%d changes, the default goes from %q to %q", len(run.Calls), before, after)
			// All points take two minutes; every tenth one is for each change of the code.
			step := 10
			if os.Getenv("KEDGE_NIGHTLY") != "" {
				step = 1
			}
			for kill := 1; kill <= len(run.Calls); kill += step {
				w := prepare(t, op)
				killed := runOperation(t, w, op, kill)
				at := fmt.Sprintf("killed at change %d, %s", kill, killed.Calls[len(killed.Calls)-1])
				if got := defaults(t, w); got != before && got != after {
					t.Fatalf("%s: the default is %q, want %q or %q", at, got, before, after)
				}
				if op == "finalize" || op == "stage" || op == "deploy" {
					runOperation(t, w, op, 0)
				}
				if got := defaults(t, w); op != "rollback" && got != after {
					t.Fatalf("%s: after the next run the default is %q, want %q", at, got, after)
				}
				leftovers(t, w, at)
			}
		})
	}
}

// defaults follows the default boot entry as a boot loader and the initramfs
// do, and returns the version of the tree it leads to; "" where there is no
// entry yet.
func defaults(t testing.TB, w *world) string {
	t.Helper()
	boot := filepath.Join(w.dir, "boot")
	if _, err := os.Stat(filepath.Join(boot, "loader/entries")); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	e, err := lab.DefaultEntry(boot)
	must(t, err)
	for _, f := range []string{e.Linux, e.Initrd} {
		if b, err := os.ReadFile(filepath.Join(boot, f)); err != nil || len(b) == 0 {
			t.Fatalf("the default entry's %s: %v, %d bytes", f, err, len(b))
		}
	}
	link := karg.Parse(e.Options).Values("ostree")[0]
	dir, err := filepath.EvalSymlinks(filepath.Join(w.dir, link))
	must(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "etc/version"))
	must(t, err)
	kernel, err := os.ReadFile(filepath.Join(boot, e.Linux))
	must(t, err)
	if string(kernel) != "kernel "+string(b) {
		t.Fatalf("the default entry boots %q with a root of version %q", kernel, b)
	}
	return string(b)
}

// leftovers fails where something is on disk that the list does not reach.
func leftovers(t testing.TB, w *world, at string) {
	t.Helper()
	s, err := crashOpen(w)
	must(t, err)
	defer s.Close()
	must(t, s.Cleanup(context.Background()))
	if len(s.Problems()) > 0 {
		t.Errorf("%s: %v", at, s.Problems())
	}
	var deployments, kernels []string
	for _, d := range s.Deployments() {
		deployments = append(deployments, d.Name(), d.Name()+".origin")
		kernels = append(kernels, d.bootName())
	}
	for dir, want := range map[string][]string{
		"ostree/deploy/os/deploy": deployments,
		"boot/ostree":             kernels,
		"boot":                    {"boot", "loader", loaderDir(s.version), "ostree"},
		"boot/loader":             {"entries"},
		"ostree":                  {"lock", "repo", "deploy", fmt.Sprintf("boot.%d", s.version), fmt.Sprintf("boot.%d.%d", s.version, s.sub), "kedge"},
		"ostree/deploy/os/var":    {".ostree-selabeled", "lib"},
	} {
		names, err := dirfd.ReadNames(s.root, dir)
		must(t, err)
		for _, n := range names {
			if !slices.Contains(want, n) {
				t.Errorf("%s: %s/%s was left behind", at, dir, n)
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(w.dir, "ostree/deploy/os/var/lib/app/data")); string(b) != "seed" {
		t.Errorf("%s: the image's /var came out as %q, %v", at, b, err)
	}
}
