package host

import (
	"context"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// KargsOptions are edits of kernel arguments, done in the order: delete,
// replace, append.
type KargsOptions struct {
	Append  []string // "key=value" or "key"
	Delete  []string // "key=value", or "key" where it stands once
	Replace []string // "key=old=new", or "key=new" where it stands once
	// AppendMissing and DeletePresent are Append and Delete that do nothing where
	// nothing is to be done.
	AppendMissing []string
	DeletePresent []string
}

// all are the arguments of every edit.
func (o KargsOptions) all() []string {
	return slices.Concat(o.Append, o.Delete, o.Replace, o.AppendMissing, o.DeletePresent)
}

// Empty reports whether there is nothing to do.
func (o KargsOptions) Empty() bool { return len(o.all()) == 0 }

// ShowKargs returns the arguments that the next boot has, without those that lead
// to the root.
func (h *Host) ShowKargs(context.Context) ([]string, error) {
	d, err := h.followed()
	if err != nil {
		return nil, wrap("kargs", err)
	}
	return d.kargs, nil
}

// Kargs makes a new deployment of the same image with other kernel arguments.
func (h *Host) Kargs(ctx context.Context, o KargsOptions) (*v1.Result, error) {
	r, err := h.editKargs(ctx, o)
	return r, wrap("kargs", err)
}

func (h *Host) editKargs(ctx context.Context, o KargsOptions) (*v1.Result, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	base := list.followed()
	switch {
	case base == nil:
		return nil, h.nothingDeployed()
	case base.foreign:
		return nil, h.changeable(list)
	}
	args, err := o.apply(base.kargs)
	if err != nil {
		return nil, err
	}
	if slices.Equal(args, base.kargs) {
		return &v1.Result{Operation: "kargs", ID: base.id, Image: base.status(), Staged: base.staged, Kargs: args}, nil
	}
	h.cfg.Progress.Step(v1.TaskStaging, "Deploying the same image with other kernel arguments")
	r, err := h.deploy(ctx, "kargs", list, deployRequest{
		root: base.root, base: base, stateroot: base.stateroot, kargs: args, hold: base.downloadOnly,
		userKargs: userKargs(base.origin.userKargs, base.kargs, args),
	})
	if err != nil {
		return nil, err
	}
	r.Kargs = args
	return r, nil
}

func (o KargsOptions) apply(args karg.Args) (karg.Args, error) {
	if err := checkKargs(o.all()); err != nil {
		return nil, err
	}
	var err error
	for _, a := range o.Delete {
		if args, err = args.Delete(a); err != nil {
			return nil, err
		}
	}
	for _, a := range o.DeletePresent {
		if args, err = args.DeletePresent(a); err != nil {
			return nil, err
		}
	}
	for _, a := range o.Replace {
		if args, err = args.Replace(a); err != nil {
			return nil, err
		}
	}
	return args.Append(o.Append...).AppendMissing(o.AppendMissing...), nil
}

// checkKargs refuses what would not come back from a boot entry as it was
// given, or would break the boot entry's link to its root.
func checkKargs(list []string) error {
	for _, a := range list {
		switch {
		case !karg.Whole(a):
			return fault.New(fault.Usage, `close every quote, and put quotes around a value with spaces: --append 'key="a b"'`, "%q is not one kernel argument", a)
		case slices.Contains(karg.Root, karg.Key(a)):
			return fault.New(fault.Usage, "kedge sets it for each deployment", "the kernel argument %s= cannot be edited", karg.Key(a))
		}
	}
	return nil
}
