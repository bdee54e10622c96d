package host

import (
	"context"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// InitramfsOptions say which initramfs the host is to have.
type InitramfsOptions struct {
	// Regenerate has the image's dracut make it on this host; otherwise it is the
	// image's own again.
	Regenerate bool
	// Args are for dracut, after kedge's own.
	Args []string
}

// ChangeInitramfs has the initramfs made on this host, or takes the image's own
// again, in one new deployment. Packages stay as they are.
func (h *Host) ChangeInitramfs(ctx context.Context, o InitramfsOptions) (*v1.Result, error) {
	change := PackagesOptions{Verb: "initramfs", StockInitramfs: !o.Regenerate}
	if o.Regenerate {
		change.Initramfs = &layering.Initramfs{Args: o.Args}
	}
	return h.ChangePackages(ctx, change)
}

// An initramfs of the host's own stands in the origin where rpm-ostree has it.
const (
	groupRPMOSTree = "rpmostree"

	keyRegenerate    = "regenerate-initramfs"
	keyInitramfsArgs = "initramfs-args"
)

func readInitramfs(f *keyfile.File) *layering.Initramfs {
	if !f.Bool(groupRPMOSTree, keyRegenerate, false) {
		return nil
	}
	args, _ := f.List(groupRPMOSTree, keyInitramfsArgs)
	return &layering.Initramfs{Args: args}
}

func writeInitramfs(f *keyfile.File, i *layering.Initramfs) {
	if i == nil {
		return
	}
	f.Set(groupRPMOSTree, keyRegenerate, "true")
	if len(i.Args) > 0 {
		f.SetList(groupRPMOSTree, keyInitramfsArgs, i.Args)
	}
}

// initramfsKept reports whether a key of rpm-ostree's group means the same to
// kedge. rpm-ostree's dracut has the host's /etc and kedge's the image's, so of
// another program's arguments those with a path are left alone.
func initramfsKept(f *keyfile.File, key string, ours bool) bool {
	i := readInitramfs(f)
	if i == nil || key != keyRegenerate && key != keyInitramfsArgs {
		return false
	}
	return ours || i.Check() == nil && !slices.ContainsFunc(i.Args, func(a string) bool { return strings.Contains(a, "/") })
}

func sameInitramfs(a, b *layering.Initramfs) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.Args, b.Args)
}

// ownInitramfs is what status says of an initramfs that was made on this host;
// nil for the image's own.
func ownInitramfs(d *deployment) *v1.Initramfs {
	i := d.origin.wants.initramfs
	if i == nil {
		return nil
	}
	return &v1.Initramfs{Args: append([]string{}, i.Args...)}
}

// checkDracut warns of a configuration of dracut that this host has and its
// image has not, since dracut has the image's. Where another program wanted the
// initramfs, its dracut had this host's: that is refused.
func (h *Host) checkDracut(ctx context.Context, d *deployment) (warnings []string, err error) {
	e, err := h.openEtc(ctx, d)
	if err != nil {
		return nil, err
	}
	defer e.close()
	m, err := etcmerge.Plan(ctx, etcmerge.Sides{Base: e.defaults, Local: e.local, Image: e.defaults})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range m.Changes {
		if strings.HasPrefix(c.Path, "dracut.conf") {
			names = append(names, "/etc/"+c.Path)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	const hint = "put it into the image, or give it as arguments: kedge initramfs --regenerate --arg …"
	if !d.packagesDone() {
		return nil, fault.New(fault.Conflict, hint, "the initramfs is made with the image's /etc, and dracut is configured in this host's: %s", someOf(names))
	}
	return []string{"dracut does not see what this host changes in " + someOf(names) + "; " + hint}, nil
}
