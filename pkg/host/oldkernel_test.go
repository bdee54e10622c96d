package host

import (
	"context"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fstree"
)

func TestOldKernel(t *testing.T) {
	for version, old := range map[string]bool{
		"6.1.0-42-amd64": true, "6.5.13": true, "5.14.0-503.el9.x86_64": true, "4.18.0": true,
		"6.6.0": false, "6.12.117+deb13-amd64": false, "6.18": false, "10.1": false,
		"next": false, "6": false,
	} {
		image := fstree.New()
		dir := image.Root
		for _, name := range []string{"usr", "lib", "modules", version} {
			child := fstree.NewDir(0o755)
			dir.Set(name, child)
			dir = child
		}
		if got := composefsBackend.oldKernel(image.Lookup); got != nil {
			t.Errorf("modules of Linux %s without the kernel: %+v", version, got)
		}
		dir.Set("vmlinuz", &fstree.Inode{Mode: unix.S_IFREG | 0o644})
		if got := composefsBackend.oldKernel(image.Lookup); (len(got) > 0) != old {
			t.Errorf("Linux %s: %+v", version, got)
		}
		if got := ostreeBackend.oldKernel(image.Lookup); got != nil {
			t.Errorf("Linux %s on the ostree backend: %+v", version, got)
		}
	}
}

// TestOldKernelIsSaid: whoever installs, plans or switches to an image learns of
// its kernel before it does not boot. The lab's small images have Linux 6.1.
func TestOldKernelIsSaid(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx, want := context.Background(), w.backend == "composefs"
		says := func(verb string, warnings []string) {
			t.Helper()
			got := slices.ContainsFunc(warnings, func(s string) bool {
				return strings.Contains(s, "Linux 6.6 or newer") && strings.Contains(s, "6.1.0-")
			})
			if got != want {
				t.Errorf("%s says of the old kernel: %v, want %v: %q", verb, got, want, warnings)
			}
		}
		ref, _ := w.push("stable", 1)
		says("install", w.install(ref).Warnings)
		next, _ := w.push("next", 2)
		plan := func(when string, o PlanOptions) {
			t.Helper()
			p, err := w.open().Plan(ctx, o)
			must(t, err)
			var lacks []string
			for _, m := range p.Missing {
				lacks = append(lacks, m.What+": "+m.Consequence)
			}
			says("plan of an image that is "+when, lacks)
		}
		plan("not here", PlanOptions{Image: next, Inspect: true})
		says("switch", w.do(func(h *Host) (*v1.Result, error) {
			return h.Switch(ctx, SwitchOptions{Image: next, AllowMissingVerity: true})
		}).Warnings)
		plan("here", PlanOptions{Image: ref})
	})
}
