package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestUsrOverlay: /usr is writable, the root is not, and everybody is told.
func TestUsrOverlay(t *testing.T) {
	lab.NeedRoot(t)
	onBoth(t, func(t *testing.T, w *world) {
		ref, _ := w.push("a", 1)
		r := w.install(ref)
		overlay := func(readOnly bool) (*v1.UsrOverlay, error) {
			h, err := Open(context.Background(), w.config())
			must(t, err)
			defer h.Close()
			return h.UsrOverlay(context.Background(), readOnly)
		}
		_, err := overlay(false)
		wantKind(t, err, fault.Conflict, "is not booted")

		w.boot()
		usr := filepath.Join(w.machine, "usr")
		for _, readOnly := range []bool{false, true} {
			if o := w.status().Status.UsrOverlay; o != nil {
				t.Fatalf("an overlay before there is one: %+v", o)
			}
			got, err := overlay(readOnly)
			must(t, err)
			t.Cleanup(func() { _ = unix.Unmount(usr, unix.MNT_DETACH) })
			mode, flag := "readWrite", "unlocked-development"
			if readOnly {
				mode, flag = "readOnly", "unlocked-transient"
			}
			want := v1.UsrOverlay{AccessMode: mode, Persistence: "transient"}
			if *got != want {
				t.Errorf("overlay = %+v, want %+v", *got, want)
			}
			if o := w.status().Status.UsrOverlay; o == nil || *o != want {
				t.Errorf("status shows %+v, want %+v", o, want)
			}
			err = os.WriteFile(usr+"/written", []byte("x"), 0o644)
			if (err == nil) == readOnly {
				t.Errorf("writing with read-only %v: %v", readOnly, err)
			}
			_, err = overlay(false)
			wantKind(t, err, fault.Conflict, "already")
			if _, err := os.Stat(usr + "/bin/sudo"); err != nil {
				t.Errorf("the root is not below the overlay: %v", err)
			}
			if w.backend == "ostree" {
				if _, err := os.Stat(w.path(r.ID, "usr/written")); err == nil {
					t.Error("the overlay wrote into the deployment")
				}
				name := filepath.Base(r.ID)
				if _, err := os.Stat(filepath.Join(w.machine, "run/ostree/deployment-state", name, flag)); err != nil {
					t.Errorf("libostree is not told: %v", err)
				}
			}
			must(t, unix.Unmount(usr, 0))
			if _, err := os.Stat(usr + "/written"); err == nil {
				t.Error("what was written is there without the overlay")
			}
			left, err := filepath.Glob(filepath.Join(w.machine, "run/kedge/usr-overlay-*"))
			must(t, err)
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}
		must(t, unix.Mount("tmpfs", usr, "tmpfs", 0, ""))
		_, err = overlay(false)
		wantKind(t, err, fault.Conflict, "something else")
	})
}
