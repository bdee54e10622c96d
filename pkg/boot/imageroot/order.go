package imageroot

import (
	"fmt"
	"slices"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Retention says which deployments stay when a new one comes.
type Retention struct {
	Merge *Deployment // what the new one continues; stays
	// All keeps every deployment, Pending those before the booted one,
	// Rollback those behind it.
	All, Pending, Rollback bool
	// NotDefault puts the new deployment behind the booted one instead of
	// making it the default.
	NotDefault bool
}

// With returns the list for Write in which the deployment fresh is new. The
// booted one and the merge source always stay, and of what is pinned one entry
// for each image; of the rest what the retention says. A staged one goes, and
// so does an entry that is the same as fresh.
func (s *Sysroot) With(fresh *Deployment, r Retention) []*Deployment {
	booted := s.Booted()
	if booted == nil && r.Merge == nil && (r.Pending || r.Rollback) {
		r.All = true
	}
	var list []*Deployment
	added, passed := false, false
	if !r.NotDefault {
		list, added = append(list, fresh), true
	}
	for _, d := range s.list {
		if d.Staged {
			continue
		}
		crossover := d.same(booted) || booted == nil && d.same(r.Merge)
		passed = passed || crossover
		if d.same(fresh) {
			continue
		}
		pinned := d.Pinned() && !slices.ContainsFunc(list, d.sameState)
		if r.All || pinned || d.same(booted) || d.same(r.Merge) || r.Pending && !passed || r.Rollback && passed {
			list = append(list, d)
		}
		if !added && crossover {
			list, added = append(list, fresh), true
		}
	}
	if !added {
		list = append(list, fresh)
	}
	return list
}

// Without returns the list for Write that lacks one deployment.
func (s *Sysroot) Without(d *Deployment) []*Deployment {
	return slices.DeleteFunc(s.Deployments(), func(o *Deployment) bool { return o.Staged == d.Staged && o.same(d) })
}

// RollbackTarget returns the deployment that a rollback makes the default:
// where the booted one is the default, the next; where another one waits for
// the reboot, the booted one, so that a second rollback undoes the first. On a
// sysroot that is not booted it is the second. None is a Conflict.
func (s *Sysroot) RollbackTarget() (*Deployment, error) {
	list := slices.DeleteFunc(s.Deployments(), func(d *Deployment) bool { return d.Staged })
	if b := s.Booted(); b != nil && !list[0].same(b) {
		return b, nil
	}
	if len(list) > 1 {
		return list[1], nil
	}
	return nil, fault.New(fault.Conflict, "kedge status shows the deployments that there are", "there is no deployment to roll back to")
}

// WithDefault returns the list for Write in which d is the default and all
// others keep their order. A staged deployment goes.
func (s *Sysroot) WithDefault(d *Deployment) []*Deployment {
	list := []*Deployment{d}
	for _, o := range s.list {
		if !o.Staged && !o.same(d) {
			list = append(list, o)
		}
	}
	return list
}

// SetPinned pins a deployment, so that no retention removes it, or unpins it.
// Entries with one image are pinned together.
func (s *Sysroot) SetPinned(d *Deployment, pinned bool) error {
	if d.Staged {
		return fault.New(fault.Conflict, "pin it after the reboot", "a staged deployment cannot be pinned")
	}
	if d.Pinned() == pinned {
		return nil
	}
	origin := d.Origin.Clone()
	if pinned {
		origin.Set(kedgeGroup, pinnedKey, "true")
	} else {
		origin.Delete(kedgeGroup, pinnedKey)
	}
	if err := s.SetOrigin(d, origin); err != nil {
		return fmt.Errorf("pin deployment %s: %w", d.Name(), err)
	}
	return nil
}
