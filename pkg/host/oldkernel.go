package host

import (
	"context"
	"fmt"
	"path"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// linuxVersion is the first two numbers of a kernel's.
type linuxVersion struct{ major, minor int }

func (v linuxVersion) before(o linuxVersion) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

// composefsLinux is the first Linux whose overlayfs takes the contents of a
// composefs image from a store and compares them with the image's digests. A
// distribution may have added that to an older one: the version is reason to say
// something, not to refuse.
var composefsLinux = linuxVersion{6, 6}

// oldKernel says that the kernel beside the modules of an image is older
// than the backend needs. A unified kernel image, and a version that is none, it
// passes over.
func (b *backend) oldKernel(lookup func(path string) *fstree.Inode) []v1.PlanMissing {
	const modules = "usr/lib/modules"
	dir := lookup(modules)
	if b != composefsBackend || dir == nil {
		return nil
	}
	for _, e := range dir.Entries() {
		var has linuxVersion
		if n := lookup(path.Join(modules, e.Name, "vmlinuz")); n == nil || !n.IsRegular() {
			continue
		}
		if _, err := fmt.Sscanf(e.Name, "%d.%d", &has.major, &has.minor); err == nil && has.before(composefsLinux) {
			return []v1.PlanMissing{{
				What:        fmt.Sprintf("Linux %d.%d or newer", composefsLinux.major, composefsLinux.minor),
				Consequence: fmt.Sprintf("the image does not boot, unless what composefs needs was added to its Linux %s (the boot menu leads back)", e.Name),
			}}
		}
	}
	return nil
}

// kernelWarnings are what oldKernel finds in a root that was just imported, for
// the result of the operation.
func (h *Host) kernelWarnings(ctx context.Context, root string) (warnings []string) {
	if h.backend != composefsBackend {
		return nil
	}
	image, err := h.store.Tree(ctx, root)
	if err != nil {
		h.cfg.Log.Warn("the version of the image's kernel is not known", "error", err)
		return nil
	}
	for _, m := range h.backend.oldKernel(image.Lookup) {
		warnings = append(warnings, "the image lacks "+m.What+": "+m.Consequence)
	}
	return warnings
}
