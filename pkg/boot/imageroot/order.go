package imageroot

import (
	"fmt"
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/retention"
)

// Retention says which deployments stay when a new one comes.
type Retention struct {
	Merge *Deployment // what the new one continues; stays
	All   bool        // every deployment stays
}

var order = retention.Order[*Deployment]{
	Staged: func(d *Deployment) bool { return d.Staged },
	Same:   (*Deployment).same,
}

// Retain has With keep what keep says, beside what it always keeps. Where Stage
// finds /boot too small for that, the last of them go.
func (s *Sysroot) Retain(keep func(*Deployment) bool) { s.keep = keep }

// With returns the list for Write in which the deployment fresh is new. The
// booted one and the merge source always stay, and of what is pinned one entry
// for each image; of the rest what the retention or Retain says. A staged one
// goes, and so does an entry that is the same as fresh.
func (s *Sysroot) With(fresh *Deployment, r Retention) []*Deployment {
	always := s.always(fresh, r)
	return order.With(s.list, fresh, func(d *Deployment) bool { return always(d) || s.keep != nil && s.keep(d) })
}

// always says what stays without Retain; it is asked once for each.
func (s *Sysroot) always(fresh *Deployment, r Retention) func(*Deployment) bool {
	booted, pinned := s.Booted(), []*Deployment{fresh}
	return func(d *Deployment) bool {
		if d.Pinned() && !slices.ContainsFunc(pinned, d.sameState) {
			pinned = append(pinned, d)
			return true
		}
		return r.All || d.same(booted) || d.same(r.Merge)
	}
}

// fitting is With, without those of Retain that /boot has no room for.
func (s *Sysroot) fitting(images *images, fresh *Deployment, r Retention) ([]*Deployment, error) {
	if _, err := s.bootDir(); err != nil {
		return nil, err
	}
	always := order.With(s.list, fresh, s.always(fresh, r))
	return retention.Fit(s.With(fresh, r), func(d *Deployment) bool { return !slices.Contains(always, d) }, func(list []*Deployment) (bool, error) {
		need, free, err := s.kernelSpace(images, list)
		if err != nil || bootdir.Fits(need, free) {
			return err == nil, err
		}
		gain, err := s.kernelsBut(kernelNames(list))
		return err == nil && bootdir.Fits(need, free+gain), err
	})
}

// WithDefault returns the list for Write in which d is the default and all
// others keep their order. A staged deployment goes.
func (s *Sysroot) WithDefault(d *Deployment) []*Deployment {
	d.again = true
	return order.First(s.list, d)
}

// SetPinned pins a deployment, so that no retention removes it, or unpins it.
// Entries with one image are pinned together.
func (s *Sysroot) SetPinned(d *Deployment, pinned bool) error {
	err := retention.SetPinned(d.Staged, d.Origin, kedgeGroup, pinned, func(o *keyfile.File) error { return s.SetOrigin(d, o) })
	if err != nil {
		return fmt.Errorf("pin deployment %s: %w", d.Name(), err)
	}
	return nil
}
