package imageroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/e2e/crash"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/uki"
)

// version is a tree that says in its kernel, /usr and /etc which it is.
func version(v string) files {
	return osTree("kernel " + v).with(files{"usr/version": v, "etc/version": v})
}

// operations are what is killed. Each finds the sysroot that prepare made, with
// the images' digests in the order of their versions.
var operations = map[string]func(ctx context.Context, s *Sysroot, images []string) error{
	"deploy": func(ctx context.Context, s *Sysroot, images []string) error { return deploy(ctx, s, images[1]) },
	// From one unified kernel image to another.
	"deploy-unified": func(ctx context.Context, s *Sysroot, images []string) error { return deploy(ctx, s, images[2]) },
	// To one that is made on this machine.
	"deploy-local": func(ctx context.Context, s *Sysroot, images []string) error {
		r := request(s, images[2])
		r.Kargs, r.ExactKargs, r.Sign = karg.Args{"rw", "debug"}, true, signer(filepath.Dir(s.root.Name()))
		return deployAs(ctx, s, r)
	},
	"rollback": func(ctx context.Context, s *Sysroot, _ []string) error {
		list := s.Deployments()
		return s.Write(ctx, s.WithDefault(list[len(list)-1]))
	},
	"stage":      func(ctx context.Context, s *Sysroot, images []string) error { return stage(ctx, s, images[2]) },
	"stage-back": func(ctx context.Context, s *Sysroot, images []string) error { return stage(ctx, s, images[0]) },
	"finalize":   finalize,
	// A → B → A: the state directory that gets a new /etc is that of the rollback.
	"finalize-back": finalize,
}

func deploy(ctx context.Context, s *Sysroot, digest string) error {
	return deployAs(ctx, s, request(s, digest))
}

func deployAs(ctx context.Context, s *Sysroot, r DeployRequest) error {
	if err := s.Cleanup(ctx); err != nil {
		return err
	}
	r.Merge = s.MergeFor()
	d, err := s.Deploy(ctx, r)
	if err != nil {
		return err
	}
	if err := s.Write(ctx, s.With(d, Retention{Merge: r.Merge})); err != nil {
		return err
	}
	return s.Cleanup(ctx)
}

func stage(ctx context.Context, s *Sysroot, digest string) error {
	if err := s.Cleanup(ctx); err != nil {
		return err
	}
	_, err := s.Stage(ctx, StageRequest{DeployRequest: request(s, digest)})
	return err
}

func finalize(ctx context.Context, s *Sysroot, _ []string) error {
	if _, err := s.Finalize(ctx); err != nil {
		return err
	}
	return s.Cleanup(ctx)
}

// TestMain runs one operation where the crash test asks for it.
func TestMain(m *testing.M) {
	if spec := strings.Split(os.Getenv("KEDGE_IMAGEROOT_OPERATION"), "@"); len(spec) == 4 {
		w := &world{dir: spec[1], host: spec[2]}
		s, err := Open(w.dir, w.options())
		if err == nil {
			if err = s.Lock(context.Background()); err == nil {
				err = operations[spec[0]](context.Background(), s, strings.Split(spec[3], ","))
			}
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

// crashWorld is a world with the digests of its images.
type crashWorld struct {
	*world
	images []string
}

// prepare makes the sysroot that an operation begins with.
func prepare(t testing.TB, op string) crashWorld {
	t.Helper()
	w := crashWorld{world: newWorld(t)}
	w.signingKey()
	unified := op == "deploy-unified" || op == "deploy-local"
	for _, v := range []string{"1", "2", "3"} {
		if unified {
			w.images = append(w.images, w.unified(version(v).without("usr/lib/modules/6.1.0/vmlinuz"), "root=UUID=1 rw"))
			continue
		}
		w.images = append(w.images, w.image(version(v)))
	}
	if op == "deploy" {
		return w
	}
	s := w.open()
	for _, digest := range w.images[:2] {
		w.deploy(s, request(s, digest))
	}
	s.Close()
	if op == "rollback" || unified {
		return w
	}
	w.boot(s.list[0])
	switch op {
	case "finalize":
		w.stageAnd(w.images[2])
	case "finalize-back":
		w.stageAnd(w.images[0])
	}
	return w
}

// stageAnd stages an image and changes /etc after it.
func (w crashWorld) stageAnd(digest string) {
	s := w.open()
	w.stage(s, digest)
	w.write(s.Booted().Dir()+"/etc/late", "late")
	s.Close()
}

// run runs an operation in a process that is killed at its kill-th change; 0
// lets it finish.
func (w crashWorld) run(op string, kill int) crash.Run {
	w.t.Helper()
	w.t.(*testing.T).Setenv("KEDGE_IMAGEROOT_OPERATION", strings.Join([]string{op, w.dir, w.host, strings.Join(w.images, ",")}, "@"))
	run, err := crash.Trace(filepath.Dir(w.dir), kill, os.Args[0])
	must(w.t, err)
	if !run.Killed && run.Exit != 0 {
		w.t.Fatalf("%s: exit status %d: %s", op, run.Exit, run.Output)
	}
	return run
}

// TestKilledAnywhere kills each operation at its changes. After every kill the
// default boots, and the next run finishes and leaves nothing behind.
func TestKilledAnywhere(t *testing.T) {
	lab.NeedRoot(t)
	for op := range operations {
		t.Run(op, func(t *testing.T) {
			w := prepare(t, op)
			before := w.defaults()
			run := w.run(op, 0)
			after := w.defaults()
			t.Logf("%d changes, the default goes from %q to %q", len(run.Calls), before, after)
			// Every fifth point is for each change of the code.
			step := 5
			if op == "deploy-local" {
				step = 10
			}
			if os.Getenv("KEDGE_NIGHTLY") != "" {
				step = 1
			}
			for kill := 1; kill <= len(run.Calls); kill += step {
				w := prepare(t, op)
				killed := w.run(op, kill)
				at := fmt.Sprintf("killed at change %d, %s", kill, killed.Calls[len(killed.Calls)-1])
				if got := w.defaults(); got != before && got != after {
					t.Fatalf("%s: the default is %q, want %q or %q", at, got, before, after)
				}
				if op != "rollback" {
					w.run(op, 0)
					if got := w.defaults(); got != after {
						t.Fatalf("%s: after the next run the default is %q, want %q", at, got, after)
					}
				}
				w.leftovers(at)
			}
		})
	}
}

// defaults follows every boot entry as a boot loader and the initramfs do, and
// returns the version of the tree that the default leads to, with what its /etc
// has of the last edit; "" where there is no entry yet.
func (w crashWorld) defaults() string {
	w.t.Helper()
	boot := filepath.Join(w.dir, "boot")
	if _, err := os.Stat(filepath.Join(boot, "loader/entries")); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	list, err := lab.Entries(boot)
	must(w.t, err)
	first := ""
	for i, e := range list {
		if e.EFI != "" {
			e.Options = w.cmdline(e.EFI)
		}
		digest := karg.Parse(e.Options).Values("composefs")[0]
		v := w.read(filepath.Join(repoDir, digest, "usr/version"))
		kernels := map[string]string{e.Linux: "kernel " + v, e.Initrd: "initramfs of kernel " + v}
		if e.EFI != "" {
			kernels = nil
		}
		for file, want := range kernels {
			if got := w.read(file); got != want {
				w.t.Fatalf("entry %s of version %s has %q as %s", e.File, v, got, file)
			}
		}
		dir := filepath.Join(deployDir, digest)
		if got := w.read(dir + "/etc/version"); got != v {
			w.t.Fatalf("entry %s of version %s has the /etc of %q", e.File, v, got)
		}
		if got := w.read(dir + "/var/lib/app/data"); got != "seed" {
			w.t.Fatalf("/var of %s holds %q", e.File, got)
		}
		if i == 0 {
			_, err := os.Stat(filepath.Join(w.dir, dir, "etc/late"))
			first = fmt.Sprintf("%s late=%v", v, err == nil)
		}
	}
	return first
}

// cmdline reads the command line of a unified kernel image, which is whole.
func (w crashWorld) cmdline(name string) string {
	w.t.Helper()
	data := w.read(name)
	u, err := uki.Decode(strings.NewReader(data), int64(len(data)))
	must(w.t, err)
	return u.Cmdline.String()
}

// leftovers fails where something is on disk that the list does not reach.
func (w crashWorld) leftovers(at string) {
	w.t.Helper()
	s, err := Open(w.dir, w.options())
	must(w.t, err)
	defer s.Close()
	must(w.t, s.Lock(context.Background()))
	must(w.t, s.Cleanup(context.Background()))
	if len(s.Problems()) > 0 {
		w.t.Errorf("%s: %v", at, s.Problems())
	}
	var states []string
	boot, loader := []string{"loader"}, []string{"entries"}
	var unified, made, copies []string
	for _, d := range s.Deployments() {
		states = append(states, d.Digest)
		if d.Type == TypeUKI {
			boot = append(boot, "EFI")
			if sum := d.localUKI(); sum != "" {
				made, copies = append(made, sum), append(copies, sum+uki.Suffix)
				must(w.t, s.CheckKernel(context.Background(), d))
			} else {
				unified = append(unified, kernelPrefix+d.Digest+uki.Suffix)
			}
		} else {
			boot = append(boot, kernelPrefix+d.Digest)
		}
		if d.Staged {
			loader = append(loader, "entries.staged")
		}
		w.only(at, d.Dir(), "etc", "var", d.Digest+".origin")
	}
	w.only(at, deployDir, states...)
	w.only(at, "boot", boot...)
	w.only(at, "boot/"+ukiDir, unified...)
	w.only(at, "boot/"+localDir, made...)
	w.only(at, localCopies, copies...)
	w.only(at, "boot/loader", loader...)
	w.only(at, varDir, "lib")
	w.only(at, stateDir, "lock", "pending", path.Base(localCopies))
	if !(s.Staged() != nil && s.Staged().pending) {
		w.only(at, stateDir+"/pending")
	}
}

func (w crashWorld) only(at, dir string, want ...string) {
	w.t.Helper()
	for _, n := range w.names(dir) {
		if !slices.Contains(want, n) {
			w.t.Errorf("%s: %s/%s was left behind", at, dir, n)
		}
	}
}
