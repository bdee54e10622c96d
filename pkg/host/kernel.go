package host

import (
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// errOnlyUnified is what the ostree backend answers an image with that has no
// separate kernel: the one in the unified kernel image is signed with a command
// line, which cannot have an argument ostree= for each deployment.
var errOnlyUnified = fault.New(fault.Conflict, "install it with --backend composefs",
	"the image has a unified kernel image alone, which cannot boot from the ostree backend")

// checkEtc refuses a tree without defaults of /etc, which lie at name: the root
// would have no users, and the next change would have nothing to compare its /etc
// with.
func checkEtc(t *fstree.Tree, name string) error {
	const hint = "rebuild the image so that /etc is a directory"
	switch n := t.Lookup(name); {
	case n == nil:
		return fault.New(fault.Conflict, hint, "the image has no /etc")
	case !n.IsDir():
		return fault.New(fault.Conflict, hint, "the image's /etc is not a directory")
	}
	return nil
}

// checkKernel refuses a tree that package boot would refuse for its kernels,
// while nothing of it is in the repository yet.
func checkKernel(t *fstree.Tree) error {
	const modules = "usr/lib/modules"
	found := ""
	if dir := t.Resolve(modules); dir != nil {
		for _, e := range dir.Entries() {
			n := t.Resolve(modules + "/" + e.Name + "/vmlinuz")
			if n == nil || !n.IsRegular() {
				continue
			}
			if found != "" {
				return fault.New(fault.Conflict, "an image must hold one kernel: remove the other directory in /usr/lib/modules",
					"the image has two kernels, %s and %s", found, e.Name)
			}
			found = e.Name
		}
	}
	if found != "" {
		return nil
	}
	for _, old := range []string{"usr/lib/ostree-boot", "boot"} { // libostree's former places
		if dir := t.Resolve(old); dir != nil {
			for _, e := range dir.Entries() {
				if strings.HasPrefix(e.Name, "vmlinuz-") {
					return nil
				}
			}
		}
	}
	if n, err := uki.Find(t); n != nil || err != nil {
		return errOnlyUnified
	}
	return fault.New(fault.Conflict, "the image needs /usr/lib/modules/VERSION/vmlinuz and initramfs.img", "the image has no kernel")
}
