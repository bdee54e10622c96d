package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestLoopDevice is the composefs backend on a kernel that mounts EROFS from
// block devices alone, as those before 6.12 do: Debian's, with its EROFS module
// built so.
func TestLoopDevice(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("builds a module of the kernel and boots it; KEDGE_NIGHTLY=1")
	}
	t.Parallel()
	lab.Need(t, "bwrap", "strip", "xz")
	w, layout := sealedWorld(t)
	module, err := lab.Make(t.Context(), "erofs-module.sh")
	if err != nil {
		t.Fatal(err)
	}
	w.buildHostImage(t, "os:new-kernel", "one")
	w.buildBlockOnly(t, "os:one", "os:new-kernel", module)
	w.build(t, "os:two", "FROM "+w.Registry.Repo("os:one")+"\nRUN echo two >/usr/share/marker\n")
	disk := w.newDisk(t, "ext4 -O verity")
	w.installSealed(t, disk, layout, "os:one")

	m := w.machine(t, disk)
	g := start(t, m)
	one := g.checkSealed()
	g.checkLoop(one)
	// Roots that are mounted beside the running one take devices of their own,
	// and give them back.
	g.checkRefusals(one)
	g.sh("for i in {1..50}; do [ $(cat /sys/block/loop*/loop/backing_file | wc -l) = 1 ] && exit; sleep 0.2; done; cat /sys/block/loop*/loop/backing_file; exit 1")
	g.checkLoop(one)
	g.kedge("switch " + w.Registry.GuestRepo("os:two"))
	if s := g.status(); s.Status.Staged == nil {
		t.Errorf("after switch, nothing is staged: %+v", s.Status)
	}
}

// buildBlockOnly builds ref from another image with the module that
// hack/lab/erofs-module.sh made in the place of its own, in its initramfs too.
func (w *world) buildBlockOnly(t *testing.T, ref, from, module string) {
	t.Helper()
	files := make(map[string]string)
	for _, name := range []string{"erofs.ko.xz", "initramfs.cpio", "path"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(data)
	}
	path := strings.TrimSpace(files["path"])
	// The kernel unpacks archives one after the other, each from a multiple of
	// four bytes, and what comes later replaces what came before.
	err := w.Build(t.Context(), ref, fmt.Sprintf(`FROM %s
COPY erofs.ko.xz /%s
COPY initramfs.cpio /usr/share/initramfs.cpio
RUN image=$(echo /usr/lib/modules/*/initramfs.img) && truncate -s %%4 "$image" && \
    cat /usr/share/initramfs.cpio >>"$image" && rm /usr/share/initramfs.cpio
`, w.Registry.Repo(from), path), files)
	if err != nil {
		t.Fatal(err)
	}
}

// checkLoop looks for the one loop device of a host, which holds the image that
// is booted, cannot be written, and goes with its mount.
func (g *guest) checkLoop(digest string) {
	g.t.Helper()
	g.want("the image is on a loop device that goes with its mount",
		`cd /sys/block; for d in loop*/loop; do echo "$(cat $d/../ro $d/autoclear | xargs) $(cat $d/backing_file | grep -o 'objects/.*')"; done`,
		"1 1 "+object(digest))
}
