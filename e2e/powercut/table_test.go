package powercut

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/powercut/story"
)

// table is the report.
type table struct{ rows []*row }

type row struct {
	operation     string
	backend       offline.Backend
	real, control result
}

// add adds the results of a record by step.
func (a *table) add(r *record, results map[string]*result) {
	for _, boot := range story.Boots {
		for _, s := range boot {
			for _, operation := range s.Counts {
				row := a.row(operation, r.backend)
				if r.control {
					row.control.add(results[s.Name])
				} else {
					row.real.add(results[s.Name])
				}
			}
		}
	}
}

func (a *table) row(operation string, b offline.Backend) *row {
	for _, r := range a.rows {
		if r.operation == operation && r.backend == b {
			return r
		}
	}
	a.rows = append(a.rows, &row{operation: operation, backend: b})
	return a.rows[len(a.rows)-1]
}

// check fails the test for each host that is lost or damaged, and where the
// negative control lost none: of an operation, or where few disks were made, of
// all operations of a backend. xfs writes its log every half minute, so that in
// the short life of a host without syncs little comes to the disk.
func (a *table) check(t *testing.T, fs filesystem) {
	t.Helper()
	lost := map[offline.Backend]int{}
	for _, r := range a.rows {
		if r.real.lost > 0 || r.real.damaged > 0 {
			t.Errorf("%s on the %s backend: of %d hosts %d are lost and %d damaged, want none", r.operation, r.backend, r.real.states, r.real.lost, r.real.damaged)
		}
		lost[r.backend] += r.control.lost
		if r.control.lost == 0 && r.control.states >= 100 && fs.kind != "xfs" {
			t.Errorf("%s on the %s backend: of %d hosts without syncs none is lost: the test proves nothing", r.operation, r.backend, r.control.states)
		}
	}
	for _, b := range offline.Backends {
		if lost[b] == 0 {
			t.Errorf("no host of the %s backend without syncs is lost: the test proves nothing", b)
		}
	}
}

// String is the table in Markdown.
func (a *table) String() string {
	var b strings.Builder
	b.WriteString("| operation | backend | states | old root | new root | lost | damaged | without syncs: lost | damaged |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, operation := range story.Operations {
		for _, r := range a.rows {
			if r.operation == operation {
				fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %d | %d | %d of %d | %d |\n", operation, r.backend,
					r.real.states, r.real.old, r.real.fresh, r.real.lost, r.real.damaged, r.control.lost, r.control.states, r.control.damaged)
			}
		}
	}
	return b.String()
}
