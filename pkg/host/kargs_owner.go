package host

import (
	"context"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
)

// keyUserKargs names, in groupKedge of an origin file, the arguments that kedge
// kargs has set. Other programs carry the group along.
const keyUserKargs = "user-kargs"

// ListKargs returns the arguments that the next boot has, without those that lead
// to the root, and whose each is.
func (h *Host) ListKargs(ctx context.Context) ([]v1.Karg, error) {
	list, err := h.listKargs(ctx)
	return list, wrap("kargs", err)
}

func (h *Host) listKargs(ctx context.Context) ([]v1.Karg, error) {
	d, err := h.followed()
	if err != nil {
		return nil, err
	}
	image, err := h.store.ImageKargs(ctx, d)
	if err != nil {
		return nil, err
	}
	return ownersOf(d.kargs, image, d.origin.userKargs), nil
}

// ownersOf says whose each argument is. What a user set counts before what the
// image brings; what neither did is the machine's.
func ownersOf(args, image, user karg.Args) []v1.Karg {
	image, user = slices.Clone(image), slices.Clone(user)
	take := func(from *karg.Args, arg string) bool {
		i := slices.Index(*from, arg)
		if i >= 0 {
			*from = slices.Delete(*from, i, i+1)
		}
		return i >= 0
	}
	out := make([]v1.Karg, 0, len(args))
	for _, a := range args {
		owner := v1.KargMachine
		switch {
		case take(&user, a):
			owner = v1.KargUser
		case take(&image, a):
			owner = v1.KargImage
		}
		out = append(out, v1.Karg{Arg: a, Owner: owner})
	}
	return out
}

// userKargs returns which of the arguments after an edit a user has set: those
// of before that are still there, and what is new.
func userKargs(user, before, after karg.Args) karg.Args {
	out, rest := karg.Args{}, slices.Clone(after)
	without := func(list karg.Args, arg string) karg.Args {
		if i := slices.Index(list, arg); i >= 0 {
			return slices.Delete(list, i, i+1)
		}
		return list
	}
	for _, a := range user {
		if rest.Contains(a) {
			out, rest = append(out, a), without(rest, a)
		}
		before = without(slices.Clone(before), a)
	}
	for _, a := range before {
		rest = without(rest, a)
	}
	return append(out, rest...)
}

// originFrom returns the origin of a new deployment that continues another one.
func (r deployRequest) originFrom(base *keyfile.File) *keyfile.File {
	f := base.Clone()
	if r.userKargs != nil {
		f.SetList(groupKedge, keyUserKargs, r.userKargs)
	}
	return f
}
