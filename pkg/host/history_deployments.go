package host

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// What the history calls changes that are no verbs of a user.
const (
	verbBoot     = "boot"     // a boot was judged
	verbFinalize = "finalize" // a staged deployment was put in place
	verbRemove   = "remove"   // a deployment went
)

// recordGone records that a deployment went, and why.
func (h *Host) recordGone(g goodbye) {
	e := historyOf(verbRemove, g.d)
	e.Result, e.Detail = "done", g.why
	h.record(e)
}

// verbCleanup is what removals were recorded as by older versions.
const verbCleanup = "cleanup"

// aside are the verbs that neither make a deployment nor make one the default.
var aside = []string{verbBoot, verbFinalize, verbRemove, verbCleanup, "pin", "unpin", "quarantine clear", "self install", "etc reset", "fsck"}

func makes(verb string) bool { return !slices.Contains(aside, verb) }

// lastUses returns when each deployment was last deployed, made the default or
// booted, by its id.
func lastUses(entries []v1.HistoryEntry) map[string]time.Time {
	uses := map[string]time.Time{}
	for _, e := range entries {
		if e.Verb == verbBoot || e.Verb == verbFinalize || makes(e.Verb) {
			uses[e.ID] = e.Time
		}
		// What was the default until then was in use until then.
		if e.Previous != "" {
			uses[e.Previous] = e.Time
		}
	}
	return uses
}

// HistoryOfDeployments returns every deployment that is or was there, the newest
// first: why it was made, what came of it, and why it went.
func (h *Host) HistoryOfDeployments(context.Context) ([]v1.DeploymentHistory, error) {
	entries, err := h.readHistory()
	if err != nil {
		return nil, wrap("history", err)
	}
	list, err := h.store.Deployments()
	if err != nil {
		return nil, wrap("history", err)
	}
	return deploymentsOf(entries, list), nil
}

// deploymentsOf tells deployments from what happened to them, oldest first, and
// from those that there are.
func deploymentsOf(entries []v1.HistoryEntry, list deployments) []v1.DeploymentHistory {
	var past pastDeployments
	for _, e := range entries {
		past.happened(e)
	}
	for _, d := range slices.Backward(list) {
		p := past.live(d.id)
		if p == nil {
			// Another program made it, or it is older than what is recorded.
			e := historyOf("", d)
			e.Time = d.made.UTC()
			p = past.add(e)
		}
		p.State = v1.DeploymentKept
		if d.staged {
			p.State = v1.DeploymentStaged
		}
		if d.booted && !d.staged {
			p.State = v1.DeploymentBooted
		}
	}
	out := make([]v1.DeploymentHistory, 0, len(past))
	for _, p := range slices.Backward(past) {
		if p.State == "" {
			p.State, p.RemovedBecause = v1.DeploymentRemoved, "another program removed it"
		}
		out = append(out, *p)
	}
	return out
}

// pastDeployments are deployments, the oldest first. State is "" until it is
// known.
type pastDeployments []*v1.DeploymentHistory

// live returns the deployment that has an id; nil where it was removed, or is not
// known.
func (l pastDeployments) live(id string) *v1.DeploymentHistory {
	for _, p := range slices.Backward(l) {
		if p.ID == id && p.Removed == nil {
			return p
		}
	}
	return nil
}

func (l *pastDeployments) add(e v1.HistoryEntry) *v1.DeploymentHistory {
	p := &v1.DeploymentHistory{ID: e.ID, Image: e.Image, Digest: e.Digest, Version: e.Version, Made: e.Time, Reason: e.Verb, Result: v1.ResultNone}
	*l = append(*l, p)
	return p
}

// happened takes in one line of the history.
func (l *pastDeployments) happened(e v1.HistoryEntry) {
	if e.ID == "" {
		return
	}
	p := l.live(e.ID)
	gone := e.Verb == verbRemove || e.Verb == verbCleanup
	if p == nil {
		made := e
		switch {
		case makes(e.Verb):
		case e.Verb == verbBoot || e.Verb == verbFinalize || gone:
			made.Verb = "" // it was made before what is recorded, or by another program
		default:
			return
		}
		p = l.add(made)
	}
	switch {
	case e.Verb == verbBoot:
		p.Result, p.Detail = e.Result, e.Detail
		p.LastBoot = &e.Time
	case e.Verb == "rollback" && strings.HasPrefix(e.Detail, "by the "):
		if from := l.live(e.Previous); from != nil {
			from.Result, from.Detail = v1.HealthFailed, "rolled back "+e.Detail
		}
	case gone:
		p.State, p.Removed, p.RemovedBecause = v1.DeploymentRemoved, &e.Time, e.Detail
		l.closeUp(e.ID)
	}
}

var numbered = regexp.MustCompile(`^([0-9a-f]{64,128})(?:\.([0-9]{1,4}))?$`)

// closeUp gives the deployments with the same composefs image, which are numbered,
// the numbers that they have once one went.
func (l pastDeployments) closeUp(gone string) {
	number := func(id string) (digest string, n int, ok bool) {
		m := numbered.FindStringSubmatch(id)
		if m == nil {
			return "", 0, false
		}
		n, err := strconv.Atoi("0" + m[2])
		return m[1], n, err == nil
	}
	digest, n, ok := number(gone)
	if !ok {
		return
	}
	for _, p := range l {
		if p.Removed != nil || !strings.HasPrefix(p.ID, digest) {
			continue // of thousands nearly all
		}
		d, m, ok := number(p.ID)
		switch {
		case !ok || d != digest || m <= n:
		case m == 1:
			p.ID = digest
		default:
			p.ID = fmt.Sprintf("%s.%d", digest, m-1)
		}
	}
}
