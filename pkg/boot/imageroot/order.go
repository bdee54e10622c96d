package imageroot

import (
	"fmt"
	"slices"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Retention says which deployments stay when a new one comes.
type Retention struct {
	Merge *Deployment // what the new one continues; stays
	All   bool        // every deployment stays
}

// With returns the list for Write in which the deployment fresh is new. The
// booted one and the merge source always stay, and of what is pinned one entry
// for each image; of the rest what the retention says. A staged one goes, and
// so does an entry that is the same as fresh.
func (s *Sysroot) With(fresh *Deployment, r Retention) []*Deployment {
	booted := s.Booted()
	list := []*Deployment{fresh}
	for _, d := range s.list {
		if d.Staged || d.same(fresh) {
			continue
		}
		pinned := d.Pinned() && !slices.ContainsFunc(list, d.sameState)
		if r.All || pinned || d.same(booted) || d.same(r.Merge) {
			list = append(list, d)
		}
	}
	return list
}

// WithDefault returns the list for Write in which d is the default and all
// others keep their order. A staged deployment goes.
func (s *Sysroot) WithDefault(d *Deployment) []*Deployment {
	d.again = true
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
