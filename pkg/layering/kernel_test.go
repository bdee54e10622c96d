package layering_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

const modules = "usr/lib/modules/"

// TestKernel: whatever a package does to the kernel, the layer's root has one,
// with an initramfs that dracut made for it and lists of its modules; the same
// ones whenever it is made.
func TestKernel(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		upgrade := map[string]string{"apt": "lab-kernel=2.0", "dnf": "lab-kernel-2.0"}[w.engine]
		for name, tc := range map[string]struct {
			req     layering.Request
			version string
		}{
			"another version": {layering.Request{Install: []string{upgrade}}, "7.0.0-lab"},
			"from /boot":      {layering.Request{Install: []string{"lab-kernel-boot"}, Remove: []string{"lab-kernel"}}, "8.0.0-boot"},
		} {
			t.Run(name, func(t *testing.T) {
				w.makesTwins(t, 0)
				r, err := w.add(t, tc.req)
				if err != nil {
					t.Fatal(err)
				}
				dir := modules + tc.version
				r.has(t, dir+"/vmlinuz", dir+"/initramfs.img", dir+"/modules.dep", dir+"/modules.dep.bin")
				if got := content(r, dir+"/vmlinuz"); got != "the kernel "+tc.version+"\n" {
					t.Errorf("vmlinuz is %q", got)
				}
				if e := r.files[dir+"/initramfs.img"]; e == nil || e.Size < 1<<20 {
					t.Errorf("the initramfs: %+v", e)
				}
				if e := r.files[modules+".wh.6.0.0-lab"]; e == nil {
					t.Errorf("the base's kernel is still there")
				}
				for name := range r.files {
					if strings.HasPrefix(name, "boot") {
						t.Errorf("the layer has %s", name)
					}
				}
				if tc.version != "7.0.0-lab" {
					return
				}
				w.makesTwins(t, 1)
				w.forgetTimes(t, "usr/lib/dracut/dracut-functions.sh", "usr/bin/sed")
				again, err := w.add(t, tc.req)
				if err != nil {
					t.Fatal(err)
				}
				if again.DiffID != r.DiffID {
					t.Errorf("made once more: %v, want %s", again.DiffID, r.DiffID)
					wantSameFiles(t, r, again)
				}
			})
		}
	})
}

// makesTwins has the base's dracut put two files with the same content into every
// initramfs, made so many seconds apart: what a busy machine does to files that
// are made one after the other.
func (w *world) makesTwins(t *testing.T, seconds int) {
	t.Helper()
	dir := filepath.Join(w.base.Root, "usr/lib/dracut/modules.d/99twins")
	write(t, filepath.Join(dir, "module-setup.sh"), fmt.Sprintf(`#!/bin/bash
check() { return 0; }
install() {
    local i
    for i in 0 1; do
        echo "one of two" >"$initdir/etc/twin-$i"
        touch -d "@$((2000000000 + i * %d))" "$initdir/etc/twin-$i"
    done
}
`, seconds))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
}

// forgetTimes gives files of the base the time that all have in an ostree
// repository.
func (w *world) forgetTimes(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		file := filepath.Join(w.base.Root, name)
		st, err := os.Stat(file)
		if err == nil {
			err = os.Chtimes(file, time.Time{}, time.Unix(0, 0))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Chtimes(file, time.Time{}, st.ModTime()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKernelRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		_, err := w.add(t, layering.Request{Install: []string{"lab-kernel-boot"}})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.HintOf(err), "lab-kernel") {
			t.Errorf("a second kernel: %v (hint %q)", err, fault.HintOf(err))
		}
		_, err = w.add(t, layering.Request{Remove: []string{"lab-kernel"}})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "no kernel") {
			t.Errorf("no kernel at all: %v", err)
		}
	})
}

// TestKernelModule: a module for the base's kernel leaves that and its initramfs
// as they are.
func TestKernelModule(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		r := w.mustAdd(t, "lab-module")
		dir := modules + "6.0.0-lab/"
		r.has(t, dir+"extra/lab.ko", dir+"modules.dep") // which the base does not have
		r.lacks(t, dir+"vmlinuz", dir+"initramfs.img")
	})
}
