package host

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

// degradedLife: a new base cannot take all that is asked for.
func degradedLife(t *testing.T) []step {
	l := newPackageLab(t, "dnf")
	push := func(version int) step {
		return act("image", func(s *stage) { s.refs["a"], _ = s.pushImage("a", l.image(s.t, "dnf", version)) })
	}
	few := func(on bool) step { return act("repository", func(*stage) { l.few.Store(on) }) }
	return []step{
		push(1),
		{name: "install", do: doInstall("a", "rw")},
		act("repository", func(s *stage) { l.configure(s, 0) }),
		{name: "add", do: doPackages(PackagesOptions{Add: []string{"lab-anchor", "lab-chain", "lab-nice"}})},
		push(2), few(true),
		{name: "upgrade leaves out what does not resolve", do: doUpgrade(UpgradeOptions{}), check: func(t *testing.T, s *stage) {
			wantFiles(0, "usr/bin/lab-anchor", "!usr/bin/lab-chain", "usr/lib/modules/6.1.0-2-test/vmlinuz")(t, s)
			if r := s.last.(*v1.Result); len(r.Warnings) < 2 || !strings.Contains(strings.Join(r.Warnings, "\n"), "lab-chain is left out") {
				t.Errorf("warnings = %q, want what is left out", r.Warnings)
			}
		}},
		{name: "status of a degraded host", do: doStatus, check: func(t *testing.T, s *stage) {
			if e := s.last.(*v1.Host).Status.OtherDeployments[0]; !e.Kedge.Degraded || len(e.Kedge.Packages.LeftOut) != 2 {
				t.Errorf("status = %+v, want it degraded", e.Kedge)
			}
		}},
		{name: "list of a degraded host", do: doListPackages},
		{name: "upgrade tries again, in vain", do: doUpgrade(UpgradeOptions{}), check: func(t *testing.T, s *stage) {
			if r := s.last.(*v1.Result); r.Changed || len(r.Warnings) == 0 {
				t.Errorf("upgrade that tries again in vain = %+v", r)
			}
		}},
		few(false),
		{name: "upgrade tries again", do: doUpgrade(UpgradeOptions{}), check: wantFiles(0, "usr/bin/lab-anchor", "usr/bin/lab-chain")},
		{name: "status of a host that is whole", do: doStatus},
		{name: "require", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}, Required: true})},
		push(3), few(true),
		{name: "upgrade is held by what is required", do: doUpgrade(UpgradeOptions{}), kind: fault.Held, check: wantFiles(0, "usr/lib/modules/6.1.0-2-test/vmlinuz", "usr/bin/lab-chain")},
		few(false),
		{name: "upgrade with what is required", do: doUpgrade(UpgradeOptions{}), check: wantFiles(0, "usr/lib/modules/6.1.0-3-test/vmlinuz", "usr/bin/lab-chain")},
		{name: "add what the image has", do: doPackages(PackagesOptions{Add: []string{"lab-tool"}})},
		{name: "list with what is inactive", do: doListPackages},
	}
}

func TestPackagesOnAMovingBase(t *testing.T) { conform(t, degradedLife) }

// rpmOSTreeLife: names that rpm-ostree recorded are carried over.
func rpmOSTreeLife(t *testing.T) []step {
	l := newPackageLab(t, "dnf")
	return []step{
		act("image", func(s *stage) { s.refs["a"], _ = s.pushImage("a", l.image(s.t, "dnf", 1)) }),
		{name: "install", do: doInstall("a", "rw")},
		act("repository", func(s *stage) { l.configure(s, 0) }),
		record("\n[packages]\nrequested=lab-chain;\n\n[overrides]\nremove=lab-editor;\n"),
		{name: "list", do: doListPackages},
		{name: "upgrade", do: doUpgrade(UpgradeOptions{}), check: wantFiles(0, "usr/bin/lab-chain", "!usr/bin/lab-editor")},
		{name: "status", do: doStatus},
		record("\n[rpmostree]\ninitramfs-etc=/etc/crypttab;\n"),
		{name: "what cannot be carried over", do: doPackages(PackagesOptions{Remove: []string{"lab-chain"}}), kind: fault.Conflict},
	}
}

func TestPackagesOfRPMOSTree(t *testing.T) { conform(t, rpmOSTreeLife) }

// bootedPackages: on a host that runs, packages are staged.
func bootedPackages(t *testing.T) []step {
	l := newPackageLab(t, "apt")
	return []step{
		act("image", func(s *stage) { s.refs["a"], _ = s.pushImage("a", l.image(s.t, "apt", 1)) }),
		{name: "install", do: doInstall("a", "rw")},
		act("boot", func(s *stage) { l.configure(s, 0); s.boot() }),
		{name: "add stages", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}}), check: wantFiles(1, "!usr/bin/lab-chain")},
		{name: "status with a staged one", do: doStatus},
		{name: "add to what is staged", do: doPackages(PackagesOptions{Add: []string{"lab-daemon"}})},
		{name: "list of what is staged", do: doListPackages},
		act("shutdown", func(s *stage) { s.shutdown() }),
		{name: "status after the reboot", do: doStatus, check: wantFiles(0, "usr/bin/lab-chain", "usr/lib/systemd/system/lab-daemon.service")},
		{name: "list of the database", do: func(s *stage) (any, error) {
			return s.on(func(h *Host) (any, error) { return h.Packages(s.ctx, true) })
		}, check: func(t *testing.T, s *stage) {
			if all := s.last.(*v1.PackageList).All; len(all) < 50 || !slices.ContainsFunc(all, func(p v1.Package) bool { return p.Name == "lab-link" }) {
				t.Errorf("the database has %d packages, want those of the image and lab-link", len(all))
			}
			nothingLeft(t, s)
		}},
		{name: "remove both stages the plain image", do: doPackages(PackagesOptions{Remove: []string{"lab-chain", "lab-daemon"}}), check: wantIntact},
		act("shutdown", func(s *stage) { s.shutdown() }),
		{name: "status of the plain image", do: doStatus, check: wantFiles(0, "!usr/bin/lab-chain")},
	}
}

func TestPackagesOnABootedHost(t *testing.T) { conform(t, bootedPackages) }

// killedAt names the sysroot of a host on which the child works.
const killedAt = "KEDGE_TEST_KILLED"

// tell prints the steps of an operation.
type tell struct{ silent }

func (tell) Step(_, description string) { fmt.Println("step:", description) }

// TestPackagesKilled kills a program that adds packages when it begins each of
// its steps.
func TestPackagesKilled(t *testing.T) {
	if dir := os.Getenv(killedAt); dir != "" {
		w := &world{t: t, dir: dir, machine: os.Getenv(killedAt + "_MACHINE"), conf: os.Getenv(killedAt + "_CONF")}
		cfg := w.config()
		cfg.Progress = tell{}
		h, err := Open(context.Background(), cfg)
		must(t, err)
		_, err = h.ChangePackages(context.Background(), PackagesOptions{Verb: "pkg add", Add: []string{"lab-chain"}})
		must(t, err)
		return
	}
	l := newPackageLab(t, "apt")
	onBoth(t, func(t *testing.T, w *world) {
		s := &stage{world: w, ctx: t.Context(), refs: map[string]string{}}
		s.refs["a"], _ = s.pushImage("a", l.image(t, "apt", 1))
		_, err := doInstall("a", "rw")(s)
		must(t, err)
		l.configure(s, 0)
		before, err := s.on(func(h *Host) (any, error) { return h.store.Deployments() })
		must(t, err)
		for _, at := range []string{"Choosing", "Fetching", "Installing", "Importing", "Deploying"} {
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestPackagesKilled$")
			child.Env = append(os.Environ(), killedAt+"="+w.dir, killedAt+"_MACHINE="+w.machine, killedAt+"_CONF="+w.conf)
			out, err := child.StdoutPipe()
			must(t, err)
			must(t, child.Start())
			seen := false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "step: "+at) {
					seen = true
					must(t, child.Process.Kill())
				}
			}
			_ = child.Wait() // it was killed
			if !seen {
				t.Fatalf("there was no step %s", at)
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			must(t, err)
			if strings.Contains(string(mounts), w.dir) {
				t.Errorf("killed at %s: mounts are left:\n%s", at, mounts)
			}
			after, err := s.on(func(h *Host) (any, error) { return h.store.Deployments() })
			must(t, err)
			if a, b := before.(deployments), after.(deployments); len(b) != len(a) || b[0].id != a[0].id {
				t.Errorf("killed at %s: deployments are %+v", at, b)
			}
			if _, err := doCleanup(CleanupOptions{})(s); err != nil {
				t.Errorf("killed at %s: cleanup: %v", at, err)
			}
			nothingLeft(t, s)
			w.agree()
		}
		if _, err := doPackages(PackagesOptions{Add: []string{"lab-chain"}})(s); err != nil {
			t.Error(err)
		}
		wantFiles(0, "usr/bin/lab-chain")(t, s)
	})
}

// interrupter ends an operation when it begins a step.
type interrupter struct {
	silent
	at     string
	cancel context.CancelFunc
	seen   bool
}

func (i *interrupter) Step(_, description string) {
	if strings.HasPrefix(description, i.at) {
		i.seen = true
		i.cancel()
	}
}

// TestPackagesInterrupted presses Ctrl-C when a program that adds packages begins
// each of its steps: the host is as it was, and nothing is left.
func TestPackagesInterrupted(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("goes through the steps of TestPackagesKilled once more; KEDGE_NIGHTLY=1")
	}
	for _, engine := range []string{"apt", "dnf"} {
		t.Run(engine, func(t *testing.T) {
			l := newPackageLab(t, engine)
			onBoth(t, func(t *testing.T, w *world) {
				s := &stage{world: w, ctx: t.Context(), refs: map[string]string{}}
				s.refs["a"], _ = s.pushImage("a", l.image(t, engine, 1))
				_, err := doInstall("a", "rw")(s)
				must(t, err)
				l.configure(s, 0)
				before, err := s.on(func(h *Host) (any, error) { return h.store.Deployments() })
				must(t, err)
				for _, at := range []string{"Choosing", "Fetching", "Installing", "Importing", "Deploying"} {
					ctx, cancel := context.WithCancel(t.Context())
					i := &interrupter{at: at, cancel: cancel}
					cfg := w.config()
					cfg.Progress = i
					h, err := Open(ctx, cfg)
					must(t, err)
					_, err = h.ChangePackages(ctx, PackagesOptions{Verb: "pkg add", Add: []string{"lab-chain"}})
					h.Close()
					cancel()
					if !i.seen || fault.KindOf(err) != fault.Interrupted {
						t.Errorf("interrupted at %s (%v): %v (%v)", at, i.seen, err, fault.KindOf(err))
					}
					after, err := s.on(func(h *Host) (any, error) { return h.store.Deployments() })
					must(t, err)
					if a, b := before.(deployments), after.(deployments); len(b) != len(a) || b[0].id != a[0].id {
						t.Errorf("interrupted at %s: deployments are %+v", at, b)
					}
					nothingLeft(t, s)
					w.agree()
				}
				if _, err := doPackages(PackagesOptions{Add: []string{"lab-chain"}})(s); err != nil {
					t.Error(err)
				}
				wantFiles(0, "usr/bin/lab-chain")(t, s)
			})
		})
	}
}

// TestPackagesWithoutTools: what is missing is named, with exit code 4.
func TestPackagesWithoutTools(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ref, _ := w.push("a", 1)
		w.install(ref)
		_, err := w.try(func(h *Host) (*v1.Result, error) {
			return h.ChangePackages(t.Context(), PackagesOptions{Verb: "pkg add", Add: []string{"htop"}})
		})
		wantKind(t, err, fault.Conflict, "package manager")
		t.Setenv("PATH", t.TempDir())
		_, err = w.try(func(h *Host) (*v1.Result, error) {
			return h.ChangePackages(t.Context(), PackagesOptions{Verb: "pkg add", Add: []string{"htop"}})
		})
		wantKind(t, err, fault.Conflict, "bwrap")
		if !strings.Contains(fault.HintOf(err), "bubblewrap") {
			t.Errorf("hint = %q, want the package that has it", fault.HintOf(err))
		}
	})
}
