package retention

import (
	"fmt"
	"slices"
	"time"
)

// Deployment is what a policy knows of one.
type Deployment struct {
	Stateroot string
	Booted    bool
	Staged    bool
	Pinned    bool
	// Good: its last boot that was judged was good.
	Good bool
	// Used is when it was last deployed, made the default or booted.
	Used time.Time
	// Kernel tells kernels in /boot apart.
	Kernel string
}

// Fate is what becomes of a deployment. At most one of both is set; one with
// neither stays as long as there is room.
type Fate struct {
	// Needed is why it always stays.
	Needed string
	// Gone is why it goes.
	Gone string
}

// Decide says what becomes of the deployments of a boot menu, in its order: the
// default first, before it a staged one. What always stays: the booted one, the
// default, the staged one, pinned ones, those of other stateroots, where a
// rollback leads, and the last that is known to be good where none of these is.
func (p Policy) Decide(list []Deployment, now time.Time) []Fate {
	fates := make([]Fate, len(list))
	needed(list, fates)
	room := p.Keep
	counts := func(i int) bool {
		return list[i].Stateroot == stateroot(list) && !list[i].Staged && !list[i].Pinned
	}
	for i := range list {
		if counts(i) && fates[i].Needed != "" {
			room--
		}
	}
	for i, d := range list {
		switch {
		case fates[i].Needed != "":
		case p.MaxAge > 0 && now.Sub(d.Used) > p.MaxAge:
			fates[i].Gone = fmt.Sprintf("not used since %s (max-age)", d.Used.UTC().Format(time.DateOnly))
		case room <= 0:
			fates[i].Gone = fmt.Sprintf("more than %d deployments (keep)", p.Keep)
		default:
			room--
		}
	}
	return fates
}

// needed notes which deployments always stay, and why.
func needed(list []Deployment, fates []Fate) {
	keep := func(i int, why string) {
		if i >= 0 && fates[i].Needed == "" {
			fates[i].Needed = why
		}
	}
	find := func(match func(Deployment) bool) int { return slices.IndexFunc(list, match) }
	first, current := defaultOf(list), currentOf(list)
	keep(find(func(d Deployment) bool { return d.Booted && !d.Staged }), "booted")
	keep(first, "the default")
	rollback := -1
	for i, d := range list {
		switch {
		case d.Staged:
			keep(i, "staged")
		case d.Pinned:
			keep(i, "pinned")
		case d.Stateroot != stateroot(list):
			keep(i, "of another stateroot")
		}
		if rollback < 0 && i != current && !d.Staged && d.Stateroot == stateroot(list) {
			rollback = i
		}
	}
	keep(rollback, "a rollback leads to it")
	for _, i := range []int{first, current, rollback} {
		if i >= 0 && list[i].Good {
			return
		}
	}
	keep(find(func(d Deployment) bool { return d.Good && !d.Staged && d.Stateroot == stateroot(list) }), "the last that is known to be good")
}

func defaultOf(list []Deployment) int {
	return slices.IndexFunc(list, func(d Deployment) bool { return !d.Staged })
}

// currentOf returns what runs, or would run.
func currentOf(list []Deployment) int {
	if i := slices.IndexFunc(list, func(d Deployment) bool { return d.Booted && !d.Staged }); i >= 0 {
		return i
	}
	return defaultOf(list)
}

func stateroot(list []Deployment) string {
	if i := currentOf(list); i >= 0 {
		return list[i].Stateroot
	}
	return ""
}

// Oldest returns which deployment is given up next where room is short: of those
// that are not needed the one that goes anyway, or else was not used for the
// longest time. With kernels, only one that has a kernel which nothing needed
// boots. -1 is none.
func Oldest(list []Deployment, fates []Fate, kernels bool) int {
	boots := map[string]bool{}
	for i, d := range list {
		if fates[i].Needed != "" {
			boots[d.Kernel] = true
		}
	}
	oldest := -1
	for i, d := range list {
		if fates[i].Needed != "" || kernels && boots[d.Kernel] {
			continue
		}
		better := oldest < 0 || fates[oldest].Gone == "" && fates[i].Gone != "" ||
			(fates[oldest].Gone == "") == (fates[i].Gone == "") && !d.Used.After(list[oldest].Used)
		if better {
			oldest = i
		}
	}
	return oldest
}
