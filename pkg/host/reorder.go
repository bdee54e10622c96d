package host

import (
	"context"
	"regexp"
	"strconv"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// RollbackMergeEtc goes back to the root of the previous deployment with the
// machine's /etc as it is: a new deployment of that root, with that one's kernel
// arguments and origin, whose /etc is the current one's merged into its
// defaults. On the booted host it is staged.
func (h *Host) RollbackMergeEtc(ctx context.Context) (*v1.Result, error) {
	r, err := h.rollbackMergeEtc(ctx)
	return r, wrap("rollback", err)
}

func (h *Host) rollbackMergeEtc(ctx context.Context) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	target, current := list.rollback(), list.current()
	switch s := list.staged(); {
	case target == nil:
		return nil, fault.New(fault.Conflict, "kedge status shows what is kept", "there is no deployment to go back to")
	case target.index < current.index:
		return nil, fault.New(fault.Conflict, "kedge rollback undoes it", "a rollback to %s waits for the reboot", target.id)
	case s != nil && s.foreign:
		return nil, h.changeable(list)
	}
	h.cfg.Progress.Step(v1.TaskStaging, "Deploying the previous root with the current /etc")
	return h.deploy(ctx, "rollback", list, deployRequest{
		root: target.root, base: target, stateroot: target.stateroot, kargs: append(karg.Args{}, target.kargs...),
	})
}

// Rollback makes the previous deployment what the next boot takes; where it is
// that already, the current one again. A staged deployment is discarded.
func (h *Host) Rollback(ctx context.Context) (*v1.Result, error) {
	r, err := h.reorder(ctx, "rollback", func(list deployments) (*deployment, error) {
		target := list.rollback()
		if target == nil {
			hint := "kedge status shows what is kept"
			if list.staged() != nil {
				hint = "kedge cleanup --staged discards what is staged"
			}
			return nil, fault.New(fault.Conflict, hint, "there is no deployment to go back to")
		}
		if current := list.current(); target.index < current.index {
			return current, nil
		}
		return target, nil
	})
	return r, wrap("rollback", err)
}

// reorder makes a deployment that is there what the next boot takes.
func (h *Host) reorder(ctx context.Context, verb string, choose func(deployments) (*deployment, error)) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := choose(list)
	if err != nil {
		return nil, err
	}
	if d == list.next() {
		return &v1.Result{Operation: verb, ID: d.id, Image: d.status(), Staged: d.staged}, nil
	}
	if d.staged {
		return nil, fault.New(fault.Conflict, "kedge upgrade --from-downloaded takes it", "deployment %s is downloaded only", d.id)
	}
	if s := list.staged(); s != nil && s.foreign {
		return nil, fault.New(fault.Conflict, "reboot into it, or discard it with kedge cleanup --staged",
			"the staged deployment %s was staged by another program and would be lost", s.id)
	}
	if err := h.store.SetDefault(ctx, d); err != nil {
		return nil, err
	}
	h.changed(ctx, verb, list, d)
	return result(verb, d), nil
}

var (
	indexForm  = regexp.MustCompile(`^[0-9]{1,4}$`)
	digestForm = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)
)

// Deploy goes to a deployment by its index, or to an image by its digest or
// version: a kept one is made the default, any other is fetched from the
// repository that the host follows. The reference in the origin stays.
func (h *Host) Deploy(ctx context.Context, target string) (*v1.Result, error) {
	r, err := h.deployTarget(ctx, target)
	return r, wrap("deploy "+target, err)
}

func (h *Host) deployTarget(ctx context.Context, target string) (*v1.Result, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	if indexForm.MatchString(target) {
		index, err := strconv.Atoi(target)
		if err != nil {
			return nil, err
		}
		return h.reorder(ctx, "deploy", func(list deployments) (*deployment, error) { return list.at(index) })
	}
	if kept := list.find(func(d *deployment) bool { return d.matches(target) }); kept != nil {
		return h.reorder(ctx, "deploy", func(list deployments) (*deployment, error) {
			if d := list.find(func(d *deployment) bool { return d.id == kept.id }); d != nil {
				return d, nil
			}
			return nil, fault.New(fault.NotFound, "run the command again", "deployment %s is gone", kept.id)
		})
	}
	follow, err := h.followedRef("")
	if err != nil {
		return nil, err
	}
	fetch, err := chooseFrom(follow, target)
	if err != nil {
		return nil, err
	}
	r, err := h.move(ctx, move{verb: "deploy", fetch: fetch, follow: follow})
	if fault.KindOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "kedge status shows the versions and digests that are kept here; a version that is not kept is looked for as a tag",
			"no kept deployment matches, and %w", err)
	}
	return r, err
}

// chooseFrom returns the digest, or the tag that is called like the version, in
// the repository of a reference.
func chooseFrom(follow ocibridge.Reference, target string) (ocibridge.Reference, error) {
	if digestForm.MatchString(target) {
		return follow.WithDigest("sha256:" + trimDigest(target))
	}
	if follow.Transport != ocibridge.Registry {
		return follow, fault.New(fault.NotFound, "kedge status shows the versions that are kept here", "no kept deployment has the version %q", target)
	}
	return follow.WithTag(target)
}

func trimDigest(d string) string { return strings.TrimPrefix(d, "sha256:") }

// matches reports whether a digest (with or without "sha256:") or a version
// names the deployment's image.
func (d *deployment) matches(target string) bool {
	if d.root == target || d.id == target {
		return true
	}
	return d.image != nil && (d.image.version == target && target != "" || trimDigest(d.image.digest) == trimDigest(target) || trimDigest(d.imageDigest()) == trimDigest(target))
}
