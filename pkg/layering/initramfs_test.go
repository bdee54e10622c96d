package layering_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// TestInitramfs: an initramfs of this host's own, without any package.
func TestInitramfs(t *testing.T) {
	w := newWorld(t, "apt")
	dir := modules + "6.0.0-lab/"
	r, err := w.add(t, layering.Request{Initramfs: &layering.Initramfs{Args: []string{"--include", "/etc/os-release", "/etc/lab-release"}}})
	if err != nil {
		t.Fatal(err)
	}
	r.has(t, dir+"initramfs.img")
	r.lacks(t, dir+"vmlinuz")
	plain, err := w.add(t, layering.Request{Initramfs: &layering.Initramfs{}})
	if err != nil || plain.DiffID == r.DiffID {
		t.Errorf("dracut's arguments make no difference (%v)", err)
	}
	for arg, say := range map[string]string{"--no-such-option": "no-such-option", "--help": "made no"} {
		_, err = w.add(t, layering.Request{Initramfs: &layering.Initramfs{Args: []string{arg}}})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), say) {
			t.Errorf("%s, with which dracut makes nothing: %v", arg, err)
		}
	}
	program := filepath.Join(w.base.Root, "usr/bin/dracut")
	if err := os.Rename(program, program+"-away"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Rename(program+"-away", program); err != nil {
			t.Error(err)
		}
	}()
	_, err = w.add(t, layering.Request{Initramfs: &layering.Initramfs{}})
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "no dracut") || !strings.Contains(fault.HintOf(err), "add dracut") {
		t.Errorf("an image without dracut: %v (hint %q)", err, fault.HintOf(err))
	}
	if asked := w.repo.requests(); len(asked) > 0 {
		t.Errorf("without a package, the repository was asked for %q", asked)
	}
}

// TestInitramfsAlone: on every engine, an initramfs without a package changes the
// kernel's directory and nothing else; the same request gives the same layer.
func TestInitramfsAlone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		req := layering.Request{Initramfs: &layering.Initramfs{Args: []string{"--modules", "base"}}}
		var layers []*result
		for range 2 {
			r, err := w.add(t, req)
			if err != nil {
				t.Fatal(err)
			}
			layers = append(layers, r)
		}
		for _, name := range slices.Sorted(maps.Keys(layers[0].files)) {
			if !strings.HasPrefix(name, modules+"6.0.0-lab") && !strings.HasPrefix(modules, name+"/") && name != strings.TrimSuffix(modules, "/") {
				t.Errorf("the layer has %s", name)
			}
		}
		if layers[0].DiffID != layers[1].DiffID {
			t.Errorf("made once more: %s, want %s", layers[1].DiffID, layers[0].DiffID)
			wantSameFiles(t, layers[0], layers[1])
		}
	})
}

func TestInitramfsArguments(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		kind fault.Kind
	}{
		{"none", nil, 0},
		{"an option and its value", []string{"--add-drivers", "nvme vfio-pci"}, 0},
		{"nothing", []string{""}, fault.Usage},
		{"a line end", []string{"--kver\nx"}, fault.Usage},
		{"this machine", []string{"--hostonly"}, fault.Usage},
		{"this machine, short", []string{"-H"}, fault.Usage},
		{"too many", slices.Repeat([]string{"-v"}, 1000), fault.Usage},
		{"too long", []string{strings.Repeat("x", 1<<20)}, fault.Usage},
	} {
		if err := (&layering.Initramfs{Args: tc.args}).Check(); fault.KindOf(err) != tc.kind {
			t.Errorf("%s: %v, want kind %v", tc.name, err, tc.kind)
		}
	}
}

// TestMicrodnf: an image whose only package manager kedge does not use is told
// apart from one without any.
func TestMicrodnf(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "bwrap")
	root := t.TempDir()
	for _, name := range []string{"usr/bin/microdnf", "usr/bin/rpm", "usr/lib/sysimage/rpm/rpmdb.sqlite"} {
		write(t, root+"/"+name, "here\n")
	}
	_, err := layering.Open(t.Context(), layering.Base{Root: root, Created: created}, layering.Options{Work: t.TempDir(), Cache: t.TempDir()})
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "microdnf") || !strings.Contains(fault.HintOf(err), "dnf5") {
		t.Errorf("an image with microdnf alone: %v (hint %q)", err, fault.HintOf(err))
	}
}
