package layering_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

func TestRefusedRequests(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := w.open(t)
		defer w.close(t, s)
		noPackage := filepath.Join(t.TempDir(), "no-package")
		write(t, noPackage, "this is text\n")
		for _, tc := range []struct {
			name string
			req  layering.Request
			kind fault.Kind
			say  string // in the error or its hint
		}{
			{"no such package", layering.Request{Install: []string{"lab-chian"}}, fault.NotFound, "lab-chain"},
			{"a dependency that nobody has", layering.Request{Install: []string{"lab-orphan"}}, fault.Conflict, "lab-nowhere"},
			{"a conflict with the base", layering.Request{Install: []string{"lab-foe"}}, fault.Conflict, "lab-base"},
			{"shell characters", layering.Request{Install: []string{"lab-anchor; touch /tmp/x"}}, fault.Usage, "not the name"},
			{"a substitution", layering.Request{Install: []string{"$(id)"}}, fault.Usage, "not the name"},
			{"an option", layering.Request{Install: []string{"--allow-unauthenticated"}}, fault.Usage, "not the name"},
			{"a pattern", layering.Request{Install: []string{"lab-*"}}, fault.Usage, "not the name"},
			{"no name", layering.Request{Install: []string{""}}, fault.Usage, "not the name"},
			{"a long name", layering.Request{Install: []string{strings.Repeat("x", 1<<16)}}, fault.Usage, "not the name"},
			{"to remove shell characters", layering.Request{Remove: []string{"lab-tool|id"}}, fault.Usage, "not the name"},
			{"to replace shell characters", layering.Request{Replace: []layering.Replacement{{Name: "lab-tool;id"}}}, fault.Usage, "not the name"},
			{"to replace and to remove", layering.Request{Replace: []layering.Replacement{{Name: "lab-tool"}}, Remove: []string{"lab-tool"}}, fault.Conflict, "to be removed"},
			{"to replace with a version that nobody has", layering.Request{Replace: []layering.Replacement{{Name: w.version("lab-tool", "9")}}}, fault.NotFound, "9"},
			{"to replace with what is no package", layering.Request{Replace: []layering.Replacement{{File: noPackage}}}, fault.Usage, "not a"},
			{"a file that is no package", layering.Request{Files: []string{noPackage}}, fault.Usage, "not a"},
			{"a file that is not there", layering.Request{Files: []string{noPackage + "-missing"}}, fault.NotFound, "missing"},
			{"a directory", layering.Request{Files: []string{t.TempDir()}}, fault.Usage, "not a file"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				_, err := s.Resolve(t.Context(), tc.req)
				if fault.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err, fault.HintOf(err)), tc.say) {
					t.Errorf("%v (%v, hint %q), want %v with %q", err, fault.KindOf(err), fault.HintOf(err), tc.kind, tc.say)
				}
			})
		}
	})
}

func TestLocalFile(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		file := filepath.Join(w.made, map[string]string{"apt": "deb/lab-link_2.1_all.deb", "dnf": "rpm/lab-link-2.1-1.noarch.rpm"}[w.engine])
		r, err := w.add(t, layering.Request{Files: []string{file}})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.installed(); got != "lab-anchor 1.0, lab-link 2.1" {
			t.Errorf("locked: %s", got)
		}
		for _, p := range r.lock.Install {
			if local := p.Name == "lab-link"; local != (p.Repository == "") || local != p.Requested {
				t.Errorf("the lock has %+v", p)
			}
		}
		r.has(t, "usr/bin/lab-link", "usr/bin/lab-anchor")
	})
}

func TestRepositories(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		file := map[string]string{"apt": "lab-anchor_1.0_all.deb", "dnf": "lab-anchor-1.0-1.noarch.rpm"}[w.engine]
		good, err := os.ReadFile(filepath.Join(w.made, map[string]string{"apt": "deb", "dnf": "rpm"}[w.engine], file))
		if err != nil {
			t.Fatal(err)
		}
		s := w.open(t)
		defer w.close(t, s)
		lock, err := s.Resolve(t.Context(), layering.Request{Install: []string{"lab-anchor"}})
		if err != nil {
			t.Fatal(err)
		}
		// Nothing is fetched yet, or the cache was emptied meanwhile.
		if err := os.RemoveAll(filepath.Join(w.cache, "packages")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Make(t.Context(), lock); err == nil {
			t.Error("a layer is made of packages that nobody fetched")
		}
		bad := append([]byte{}, good...)
		bad[len(bad)/2] ^= 1
		w.repo.replace(file, bad)
		if err := s.Fetch(t.Context(), lock); fault.KindOf(err) != fault.Untrusted {
			t.Errorf("a package that is not the one in the lock: %v, want untrusted", err)
		}
		w.repo.replace(file, good)
		if err := s.Fetch(t.Context(), lock); err != nil {
			t.Fatal(err)
		}
		w.repo.requests()
		if err := s.Fetch(t.Context(), lock); err != nil {
			t.Fatal(err)
		}
		if asked := w.repo.requests(); len(asked) > 0 {
			t.Errorf("fetching again what is in the cache asks for %q", asked)
		}
		w.repo.Close()
		down := *w
		down.work = t.TempDir()
		_, err = down.add(t, layering.Request{Install: []string{"lab-link"}})
		if fault.KindOf(err) != fault.Unavailable {
			t.Errorf("a repository that is down: %v, want unavailable", err)
		}
	})
}

// TestSignatures: apt's repositories are signed as a whole, dnf's package by
// package.
func TestSignatures(t *testing.T) {
	for _, tc := range []struct {
		engine, repository, name string
		kind                     fault.Kind
	}{
		{"apt", "deb-signed", "lab-anchor", 0},
		{"apt", "deb-forged", "lab-anchor", fault.Untrusted},
		{"apt", "deb", "lab-anchor", fault.Untrusted}, // not signed at all
		{"dnf", "rpm-signed", "lab-anchor", 0},
		{"dnf", "rpm-signed", "lab-bonus", fault.Untrusted},
		{"dnf", "rpm-signed", "lab-postbird", fault.Untrusted},
		{"dnf5", "rpm-signed", "lab-anchor", 0},
		{"dnf5", "rpm-signed", "lab-bonus", fault.Untrusted},
		{"dnf5", "rpm-signed", "lab-postbird", fault.Untrusted},
	} {
		t.Run(tc.engine+"/"+tc.repository+"/"+tc.name, func(t *testing.T) {
			w := newWorld(t, tc.engine)
			w.configureSigned(t, serve(t, filepath.Join(w.made, tc.repository)).URL)
			_, err := w.add(t, layering.Request{Install: []string{tc.name}})
			if fault.KindOf(err) != tc.kind {
				t.Errorf("%v, want kind %q", err, tc.kind)
			}
			if err != nil {
				t.Log(err)
			}
		})
	}
}

func TestNoPackageManager(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "bwrap")
	opt := layering.Options{Work: t.TempDir(), Cache: t.TempDir()}
	_, err := layering.Open(t.Context(), layering.Base{Root: t.TempDir()}, opt)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.HintOf(err), "dnf 4 or apt") {
		t.Errorf("a base without a package manager: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	_, err = layering.Open(t.Context(), layering.Base{Root: t.TempDir()}, opt)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.HintOf(err), "bubblewrap") {
		t.Errorf("a machine without bubblewrap: %v", err)
	}
}

func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := w.open(t)
		defer w.close(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := s.Resolve(ctx, layering.Request{Install: []string{"lab-chain"}}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while resolving: %v", err)
		}
		first, err := build(t.Context(), s, layering.Request{Install: []string{"lab-chain"}})
		if err != nil {
			t.Fatalf("the session after a cancelled call: %v", err)
		}
		for _, after := range []time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			if _, err := s.Make(ctx, first.lock); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cancelled while making: %v", err)
			}
			cancel()
		}
		for after := range 20 { // at every moment of the sandbox's start
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(after)*time.Millisecond)
			_, _ = s.Packages(ctx)
			_, _ = s.Resolve(ctx, layering.Request{Install: []string{"lab-chain"}})
			cancel()
		}
		if pid := runningIn(t, w.work); pid != "" {
			t.Errorf("process %s of a cancelled call still runs", pid)
		}
		again, err := s.Make(t.Context(), first.lock)
		if err != nil || again.DiffID != first.DiffID {
			t.Errorf("after calls that were cancelled: %v, layer %+v, want %s again", err, again, first.DiffID)
		}
	})
}

// TestCacheOnly: what was once fetched needs no repository.
func TestCacheOnly(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		first := w.mustAdd(t, "lab-link")
		w.repo.Close()
		opt := w.options(t)
		opt.CacheOnly = true
		s, err := layering.Open(t.Context(), w.base, opt)
		if err != nil {
			t.Fatal(err)
		}
		defer w.close(t, s)
		again, err := build(t.Context(), s, layering.Request{Install: []string{"lab-link"}})
		if err != nil || again.DiffID != first.DiffID {
			t.Errorf("from the cache alone: %v, %v, want %s", err, again, first.DiffID)
		}
		if _, err := build(t.Context(), s, layering.Request{Install: []string{"lab-sender"}}); err == nil {
			t.Error("a package is installed that nobody fetched")
		}
	})
}

// TestNoSpaceForCache: a disk that is full while repositories are read is named
// as that, whatever the package manager makes of it.
func TestNoSpaceForCache(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if err := unix.Mount("tmpfs", w.cache, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(w.cache, unix.MNT_DETACH) })
		_, err := w.add(t, layering.Request{Install: []string{"lab-anchor"}})
		if fault.KindOf(err) != fault.NoSpace {
			t.Errorf("a cache of 64 KiB: %v (%v), want no space", err, fault.KindOf(err))
		}
	})
}

// TestFullAtEachStep: a disk that is full at a step ends that step and no other
// thing; with space, the same session goes on.
func TestFullAtEachStep(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("eight runs of each package manager; KEDGE_NIGHTLY=1")
	}
	each(t, func(t *testing.T, w *world) {
		disk := t.TempDir()
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=400m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		w.cache, w.work = filepath.Join(disk, "cache"), filepath.Join(disk, "work")
		layout := layering.Layout{Root: openRoot(t, disk)}
		base, _ := w.baseImage(t)
		s := w.open(t)
		defer w.close(t, s)
		req := layering.Request{Install: []string{"lab-link"}}
		var lock *layering.Lock
		var layer *layering.Layer
		for _, step := range []struct {
			name string
			run  func() (err error)
		}{
			{"resolve", func() (err error) { lock, err = s.Resolve(t.Context(), req); return err }},
			{"fetch", func() error {
				// One manager fetches while it chooses.
				if err := os.RemoveAll(filepath.Join(w.cache, "packages")); err != nil {
					return err
				}
				return s.Fetch(t.Context(), lock)
			}},
			{"make", func() (err error) { layer, err = s.Make(t.Context(), lock); return err }},
			{"add", func() error { _, err := layout.Add("full", base, req, lock, layer); return err }},
		} {
			full := filepath.Join(disk, "full")
			fill(t, full)
			if err := step.run(); fault.KindOf(err) != fault.NoSpace {
				t.Errorf("%s on a full disk: %v (%v), want no space", step.name, err, fault.KindOf(err))
			}
			if err := os.Remove(full); err != nil {
				t.Fatal(err)
			}
			if err := step.run(); err != nil {
				t.Fatalf("%s with space again: %v", step.name, err)
			}
		}
	})
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// fill writes a file until its file system is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
}

// TestClock: apt's repositories say when they are good; a clock that is behind or
// ahead makes them what they are not. Those of dnf say nothing of time.
func TestClock(t *testing.T) {
	for name, dates := range map[string]string{
		"behind": "Date: Thu, 01 Jan 2099 00:00:00 UTC\n",
		"ahead":  "Date: Wed, 01 Jan 2025 00:00:00 UTC\nValid-Until: Thu, 02 Jan 2025 00:00:00 UTC\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "apt")
			release, err := os.ReadFile(filepath.Join(w.made, "deb/Release"))
			if err != nil {
				t.Fatal(err)
			}
			// The lab's image does not ask how long a repository is good.
			write(t, filepath.Join(w.etc, "apt/sources.list"), "deb [trusted=yes check-valid-until=yes] "+w.repo.URL+" ./\n")
			before, rest, _ := strings.Cut(string(release), "Date: ")
			_, after, _ := strings.Cut(rest, "\n")
			w.repo.replace("Release", []byte(before+dates+after))
			_, err = w.add(t, layering.Request{Install: []string{"lab-anchor"}})
			if fault.KindOf(err) != fault.Untrusted || !strings.Contains(fault.HintOf(err), "clock") {
				t.Errorf("%v (%v, hint %q)", err, fault.KindOf(err), fault.HintOf(err))
			}
		})
	}
}

// What the process that is to be killed works on.
const (
	killedDir  = "KEDGE_TEST_KILLED"
	killedBase = "KEDGE_TEST_BASE"
)

// TestKilled: a session that was killed leaves a directory, which the next one
// removes, and no mount and no process.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		s, err := layering.Open(t.Context(), layering.Base{Root: os.Getenv(killedBase), Created: created}, layering.Options{Work: dir, Cache: filepath.Join(dir, "../cache")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Packages(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	w := newWorld(t, "apt")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), killedDir+"="+w.work, killedBase+"="+w.base.Root)
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("the session ended by itself (%v):\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(w.work, "*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("the killed session left %q (%v), want its directory", left, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), w.work) {
		t.Errorf("the killed session left mounts (%v)", err)
	}
	w.close(t, w.open(t))
}
