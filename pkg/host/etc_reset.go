package host

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// EtcResetOptions say what EtcReset does.
type EtcResetOptions struct {
	Paths []string // with or without /etc
	// Remove takes away what the image has not; else that stays.
	Remove bool
}

// EtcReset makes paths in /etc what the image of the deployment has that runs, or
// on a sysroot that is not booted of the default one. It writes that /etc in
// place: a file is replaced in one step, each is its own commit point, and the
// history says which. What is staged takes it over at shutdown.
func (h *Host) EtcReset(ctx context.Context, o EtcResetOptions) (*v1.EtcReset, error) {
	r, err := h.etcReset(ctx, o)
	return r, wrap("etc reset", err)
}

func (h *Host) etcReset(ctx context.Context, o EtcResetOptions) (*v1.EtcReset, error) {
	var names []string
	for _, p := range o.Paths {
		name, err := etcName(p)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	_, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	_, d, err := h.etcOwner()
	if err != nil {
		return nil, err
	}
	defaults, err := h.etcDefaults(ctx, d)
	if err != nil {
		return nil, err
	}
	dst, labels, err := h.openEtcToWrite(ctx, d)
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	reset := &etcmerge.Reset{Ctx: ctx, Defaults: defaults, Etc: dst, Labels: labels, Remove: o.Remove}
	for _, name := range names {
		if err = reset.Path(name); err != nil {
			break
		}
	}
	out := &v1.EtcReset{ID: d.id, Reset: []string{}}
	for _, name := range reset.Done {
		out.Reset = append(out.Reset, "/etc/"+name)
	}
	slices.Sort(out.Reset)
	if len(out.Reset) > 0 {
		h.record(v1.HistoryEntry{Verb: "etc reset", Result: "done", ID: d.id, Image: d.origin.text, Detail: someOf(out.Reset)})
	}
	if ctx.Err() != nil && len(out.Reset) > 0 {
		err = fault.New(fault.Interrupted, "run the command again for the rest", "interrupted; reset before that: %s", someOf(out.Reset))
	} else if err != nil && len(out.Reset) > 0 {
		err = fmt.Errorf("%w (reset before that: %s)", err, someOf(out.Reset))
	}
	return out, err
}

// etcName returns a path below /etc. All of /etc is refused: a machine without
// its identity, users and file systems is no machine with defaults.
func etcName(p string) (string, error) {
	name := path.Clean("/" + strings.TrimPrefix(p, "/etc"))[1:]
	if strings.HasPrefix(p, "/") && p != "/etc" && !strings.HasPrefix(p, "/etc/") || slices.Contains(strings.Split(p, "/"), "..") {
		return "", fault.New(fault.Usage, "name a path below /etc", "%q is not in /etc", p)
	}
	if name == "" {
		return "", fault.New(fault.Usage, "name what is to be reset; kedge etc diff lists what differs", "all of /etc is not reset at once")
	}
	return name, nil
}

// openEtcToWrite opens the /etc of what runs, or would run, and the labels of
// what is written there.
func (h *Host) openEtcToWrite(ctx context.Context, d *deployment) (*dirfd.Dir, etcmerge.Labeler, error) {
	var root *os.Root
	var err error
	if h.Booted() {
		root, err = os.OpenRoot(h.cfg.Machine)
	} else {
		var vardir *os.Root
		if root, vardir, err = h.store.OpenDeployment(d); err == nil {
			_ = vardir.Close()
			err = h.checkEtcInPlace(ctx, d)
		}
	}
	if root != nil {
		defer root.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	policy, err := selinux.Load(root)
	if err != nil {
		return nil, nil, err
	}
	dst, err := dirfd.Open(root, "etc")
	if err != nil || policy == nil {
		return dst, nil, err
	}
	return dst, policy, nil
}

// checkEtcInPlace refuses an /etc that is not what it looks like until it is
// mounted: an overlay.
func (h *Host) checkEtcInPlace(ctx context.Context, d *deployment) error {
	shown, err := h.store.OpenEtc(ctx, d)
	if err != nil {
		return err
	}
	defer shown.Close()
	if source.IsOverlay(shown) {
		return fault.New(fault.Conflict, "boot it and run the command there", "the /etc of %s is an overlay on its image's", d.id)
	}
	return nil
}
