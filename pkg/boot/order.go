package boot

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
// booted one, the merge source, what is pinned and what is of other stateroots
// always stay; of the rest what the retention or Retain says. A staged one goes.
func (s *Sysroot) With(fresh *Deployment, r Retention) []*Deployment {
	always := s.always(fresh, r)
	return order.With(s.list, fresh, func(d *Deployment) bool { return always(d) || s.keep != nil && s.keep(d) })
}

// always says what stays without Retain.
func (s *Sysroot) always(fresh *Deployment, r Retention) func(*Deployment) bool {
	booted := s.Booted()
	return func(d *Deployment) bool {
		return r.All || d.Pinned() || d.Stateroot != fresh.Stateroot || d.same(booted) || d.same(r.Merge)
	}
}

// fitting is With, without those of Retain that /boot has no room for.
func (s *Sysroot) fitting(fresh *Deployment, r Retention) ([]*Deployment, error) {
	list := s.With(fresh, r)
	if s.boot == nil {
		return list, nil
	}
	always := order.With(s.list, fresh, s.always(fresh, r))
	return retention.Fit(list, func(d *Deployment) bool { return !slices.Contains(always, d) }, func(list []*Deployment) (bool, error) {
		need, free, gain, err := s.bootSpace(list)
		if err != nil || !bootdir.Fits(need, free+gain) {
			return false, err
		}
		need, free, gain, err = s.mirrorSpace(list)
		return err == nil && bootdir.Fits(need, free+gain), err
	})
}

// WithDefault returns the list for Write in which d is the default and all
// others keep their order. A staged deployment goes.
func (s *Sysroot) WithDefault(d *Deployment) []*Deployment {
	s.again = d.Stateroot + "/" + d.Name()
	return order.First(s.list, d)
}

// SetPinned pins a deployment, so that no retention removes it, or unpins it.
func (s *Sysroot) SetPinned(d *Deployment, pinned bool) error {
	err := retention.SetPinned(d.Staged, d.Origin, transient, pinned, func(o *keyfile.File) error { return s.SetOrigin(d, o) })
	if err != nil {
		return fmt.Errorf("pin deployment %s: %w", d.Name(), err)
	}
	return nil
}
