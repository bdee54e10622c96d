package layering_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// shelf is a repository of a few packages that changes while it is used.
type shelf struct {
	w     *world
	dir   string
	moved int // how often it has changed
}

// newShelf makes the world's repository one that has these packages, files of
// the lab's.
func newShelf(t *testing.T, w *world, files ...string) *shelf {
	s := &shelf{w: w, dir: t.TempDir()}
	s.put(t, files...)
	w.repo = serve(t, s.dir)
	w.configure(t, w.repo.URL)
	return s
}

// put makes these packages those that there are.
func (s *shelf) put(t *testing.T, files ...string) {
	t.Helper()
	old, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range old {
		if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(s.dir, filepath.Base(f)), string(raw))
	}
	s.index(t)
}

// index writes the repository's index. HTTP tells times in seconds: each version
// is an hour newer than the one before.
func (s *shelf) index(t *testing.T) {
	t.Helper()
	s.writeIndex(t)
	s.moved++
	at := time.Date(2025, 1, 1, s.moved, 0, 0, 0, time.UTC)
	err := filepath.WalkDir(s.dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, at, at))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *shelf) writeIndex(t *testing.T) {
	t.Helper()
	if s.w.engine == "dnf" {
		root := labRoot(t, s.w.made, "dnf") // that of dnf5 has no such program
		if _, err := lab.Command(t.Context(), "bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run",
			"--bind", s.dir, "/run/shelf", "createrepo_c", "--quiet", "/run/shelf"); err != nil {
			t.Fatal(err)
		}
		return
	}
	debs, err := filepath.Glob(filepath.Join(s.dir, "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	var packages strings.Builder
	for _, f := range debs {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		control, err := lab.Command(t.Context(), "dpkg-deb", "-f", f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&packages, "%s\nFilename: %s\nSize: %d\nSHA256: %x\n\n", strings.TrimSpace(control), filepath.Base(f), len(raw), sha256.Sum256(raw))
	}
	write(t, filepath.Join(s.dir, "Packages"), packages.String())
	write(t, filepath.Join(s.dir, "Release"), fmt.Sprintf("Origin: lab\nSuite: lab\nCodename: lab\nArchitectures: all amd64 arm64\nComponents: main\nDate: Wed, 01 Jan 2025 00:00:00 UTC\nSHA256:\n %x %d Packages\n",
		sha256.Sum256([]byte(packages.String())), packages.Len()))
}

// TestRepositoryMoves: packages vanish and change between the choice and the
// fetching, and what is newer is taken with the next choice.
func TestRepositoryMoves(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		anchor, first, second := w.file("", "lab-anchor", "1.0"), w.file("", "lab-tilde", "1.0~rc1"), w.file("", "lab-tilde", "1.0")
		shelf := newShelf(t, w, anchor, first)
		request := layering.Request{Install: []string{"lab-tilde", "lab-anchor"}}
		s := w.open(t)
		defer w.close(t, s)
		choose := func(want string) *layering.Lock {
			t.Helper()
			lock, err := s.Resolve(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			if got := (&result{lock: lock}).installed(); got != want {
				t.Fatalf("locked: %s, want %s", got, want)
			}
			// One manager fetches while it chooses: as if it had not, or as if the
			// cache had been emptied.
			if err := os.RemoveAll(filepath.Join(w.cache, "packages")); err != nil {
				t.Fatal(err)
			}
			return lock
		}
		old := choose("lab-anchor 1.0, lab-tilde 1.0~rc1")
		shelf.put(t, anchor, second)
		if err := s.Fetch(t.Context(), old); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "lab-tilde") {
			t.Errorf("a package that vanished: %v (%v), want unavailable, with its name", err, fault.KindOf(err))
		}
		lock := choose("lab-anchor 1.0, lab-tilde 1.0")
		if err := s.Fetch(t.Context(), lock); err != nil {
			t.Errorf("chosen again: %v", err)
		}
		lock = choose("lab-anchor 1.0, lab-tilde 1.0")
		// The same name and version with other content, as the repository's own
		// index has it.
		raw, err := os.ReadFile(anchor)
		if err != nil {
			t.Fatal(err)
		}
		other := w.rebuilt(t, raw)
		shelf.put(t, second)
		write(t, filepath.Join(shelf.dir, filepath.Base(anchor)), other)
		shelf.index(t)
		if err := s.Fetch(t.Context(), lock); fault.KindOf(err) != fault.Untrusted {
			t.Errorf("a package that changed: %v (%v), want untrusted", err, fault.KindOf(err))
		}
	})
}

// rebuilt is a package of the lab with the same name and version and other bytes.
func (w *world) rebuilt(t *testing.T, raw []byte) string {
	t.Helper()
	if w.engine == "dnf" {
		// The name in the lead, which rpm does not look at (rpm's file format, "The
		// Lead": 66 bytes of name from byte 10).
		text := string(raw)
		return text[:66] + "rebuilt" + text[73:]
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "old.deb"), string(raw))
	for _, argv := range [][]string{
		{"dpkg-deb", "-R", filepath.Join(dir, "old.deb"), filepath.Join(dir, "root")},
		{"touch", filepath.Join(dir, "root/usr/bin/rebuilt")},
		{"dpkg-deb", "--root-owner-group", "-b", filepath.Join(dir, "root"), filepath.Join(dir, "new.deb")},
	} {
		if _, err := lab.Command(t.Context(), argv[0], argv[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	out, err := os.ReadFile(filepath.Join(dir, "new.deb"))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
