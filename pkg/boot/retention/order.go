package retention

import (
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Order is what the lists of deployments of both sysroots have in common; D is
// the sysroot's own type of them.
type Order[D any] struct {
	Staged func(D) bool
	// Same reports whether two values stand for one deployment.
	Same func(a, b D) bool
}

// With returns the list in which fresh is the default, and of the others those
// that stay, in their order. A staged one goes.
func (o Order[D]) With(list []D, fresh D, stays func(D) bool) []D {
	out := []D{fresh}
	for _, d := range list {
		if !o.Staged(d) && !o.Same(d, fresh) && stays(d) {
			out = append(out, d)
		}
	}
	return out
}

// First returns the list in which d is the default and all others keep their
// order. A staged one goes.
func (o Order[D]) First(list []D, d D) []D {
	return o.With(list, d, func(D) bool { return true })
}

// Fit returns the list without as many of the last that can be spared as it takes
// for the rest to fit; the list as it is where that is not enough either.
func Fit[D any](list []D, spare func(D) bool, fits func([]D) (bool, error)) ([]D, error) {
	for next := list; ; {
		ok, err := fits(next)
		if ok || err != nil {
			return next, err
		}
		last := -1
		for i, d := range next {
			if i > 0 && spare(d) {
				last = i
			}
		}
		if last < 0 {
			return list, nil
		}
		next = slices.Delete(slices.Clone(next), last, last+1)
	}
}

// PinnedKey is the key of a pin in an origin; each sysroot has its own group.
const PinnedKey = "pinned"

// IsPinned reports whether an origin pins its deployment.
func IsPinned(origin *keyfile.File, group string) bool { return origin.Bool(group, PinnedKey, false) }

// SetPinned pins the deployment with an origin, or unpins it; write replaces the
// origin.
func SetPinned(staged bool, origin *keyfile.File, group string, on bool, write func(*keyfile.File) error) error {
	if staged {
		return fault.New(fault.Conflict, "pin it after the reboot", "a staged deployment cannot be pinned")
	}
	if IsPinned(origin, group) == on {
		return nil
	}
	origin = origin.Clone()
	if on {
		origin.Set(group, PinnedKey, "true")
	} else {
		origin.Delete(group, PinnedKey)
	}
	return write(origin)
}
