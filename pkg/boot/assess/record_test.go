package assess

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
)

func open(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func update(t *testing.T, root *os.Root, change func(*Records)) {
	t.Helper()
	if err := Update(root, "state", func(r *Records) error { change(r); return nil }); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, root *os.Root) *Records {
	t.Helper()
	r, err := Load(root, "state")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var one, two = v1.Identity{Image: "sha256:1", Kargs: []string{"rw"}}, v1.Identity{Image: "sha256:1", Kargs: []string{"rw", "quiet"}}

func TestJudge(t *testing.T) {
	root, _ := open(t)
	fail := func(boot string) v1.Health { return v1.Health{State: v1.HealthFailed, Boot: boot} }
	var failures []int
	update(t, root, func(r *Records) {
		// Twice in one boot is one failure: that of the check and that of its runner.
		for _, boot := range []string{"a", "a", "b"} {
			failures = append(failures, r.Judge("id", one, fail(boot)).Failures)
		}
		r.Hold(v1.Quarantined{Identity: one, Reason: v1.HeldCheck})
		r.Hold(v1.Quarantined{Identity: two, Reason: v1.HeldExhausted})
	})
	if diff := cmp.Diff([]int{1, 1, 2}, failures); diff != "" {
		t.Errorf("failures in a row: %s", diff)
	}
	r := load(t, root)
	if len(r.Verdicts) != 1 || r.Verdict(one).Failures != 2 || r.Verdict(two) != nil || len(r.Quarantine) != 2 {
		t.Errorf("records = %+v", r)
	}
	update(t, root, func(r *Records) { r.Judge("id", one, v1.Health{State: v1.HealthGood, Boot: "c"}) })
	if r = load(t, root); r.Verdict(one).State != v1.HealthGood || r.Held(one) != nil || r.Held(two) == nil {
		t.Errorf("after a good boot: %+v, want it out of quarantine, and the other in", r)
	}
	if got := func() int { h := r.Judge("id", one, fail("d")); return h.Failures }(); got != 1 {
		t.Errorf("failures after a good boot = %d, want 1", got)
	}
}

// TestJudgeRolledBack: a verdict and a rollback by hand come to the same in either
// order.
func TestJudgeRolledBack(t *testing.T) {
	hand, check := v1.Quarantined{Identity: one, Reason: v1.HeldByHand}, v1.Quarantined{Identity: one, Reason: v1.HeldCheck, Check: "a", Detail: "a failed"}
	byUser := &v1.RollbackRecord{By: v1.ByUser, From: "id"}
	good, failed := v1.Health{State: v1.HealthGood}, v1.Health{State: v1.HealthFailed, Check: "b", Reason: "b failed"}
	for name, tc := range map[string]struct {
		held     v1.Quarantined
		rollback *v1.RollbackRecord
		verdict  v1.Health
		want     string
	}{
		"by hand, good":                {hand, byUser, good, v1.HeldByHand},
		"by hand, fails":               {hand, byUser, failed, v1.HeldCheck + " b b failed"},
		"failed, by hand, good":        {check, byUser, good, v1.HeldByHand},
		"failed, by hand, fails again": {check, byUser, failed, v1.HeldCheck + " a a failed"},
		"failed, good":                 {check, nil, good, ""},
		"failed, by the loader, good":  {check, &v1.RollbackRecord{By: v1.ByLoader, From: "id"}, good, ""},
		"failed, another, good":        {check, &v1.RollbackRecord{By: v1.ByUser, From: "other"}, good, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := Records{Rollback: tc.rollback}
			r.Hold(v1.Quarantined{Identity: two, Reason: v1.HeldCheck})
			r.Hold(tc.held)
			r.Judge("id", one, tc.verdict)
			got := ""
			if q := r.Held(one); q != nil {
				got = strings.TrimSpace(q.Reason + " " + q.Check + " " + q.Detail)
			}
			if got != tc.want || r.Held(two) == nil {
				t.Errorf("held for %q, want %q; the other root is held: %v", got, tc.want, r.Held(two) != nil)
			}
		})
	}
}

func TestHold(t *testing.T) {
	var r Records
	hand := v1.Quarantined{Identity: one, LocalKargs: []string{"rw"}, Reason: v1.HeldByHand}
	r.Hold(hand)
	if r.HeldTarget(one, []string{"rw"}, false) != nil || r.HeldTarget(one, []string{"rw"}, true) == nil {
		t.Error("what was rolled back by hand is held from upgrade, and from nothing else")
	}
	r.Judge("id", one, v1.Health{State: v1.HealthGood, Boot: "a"})
	if r.Held(one) == nil {
		t.Error("a good boot undoes a rollback by hand")
	}
	failed := hand
	failed.Reason = v1.HeldCheck
	r.Hold(failed)
	r.Hold(hand) // does not make less of it
	if q := r.HeldTarget(one, []string{"rw"}, false); len(r.Quarantine) != 1 || q == nil || q.Reason != v1.HeldCheck || q.Key != Key(one) {
		t.Errorf("quarantine = %+v, want the failure", r.Quarantine)
	}
	for name, other := range map[string]v1.Identity{
		"image": {Image: "sha256:2"}, "packages": {Image: one.Image, Packages: "x"}, "initramfs": {Image: one.Image, Initramfs: "x"},
	} {
		if r.HeldTarget(other, []string{"rw"}, true) != nil {
			t.Errorf("another %s is held", name)
		}
	}
	if r.HeldTarget(one, []string{"rw", "debug"}, true) != nil {
		t.Error("other kernel arguments are held")
	}
	for i := range 200 {
		r.Hold(v1.Quarantined{Identity: v1.Identity{Image: fmt.Sprint(i)}, Reason: v1.HeldCheck})
		r.Judge("id", v1.Identity{Image: fmt.Sprint(i)}, v1.Health{State: v1.HealthGood})
		r.Hold(v1.Quarantined{Identity: v1.Identity{Image: fmt.Sprint(i)}, Reason: v1.HeldCheck})
	}
	if len(r.Quarantine) != maxQuarantine || len(r.Verdicts) != maxVerdicts || r.Quarantine[0].Identity.Image != "199" {
		t.Errorf("%d held, %d verdicts", len(r.Quarantine), len(r.Verdicts))
	}
}

// TestUpdateTogether: writers wait for each other.
func TestUpdateTogether(t *testing.T) {
	root, _ := open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := Update(root, "state", func(r *Records) error {
				r.Judge("id", v1.Identity{Image: fmt.Sprint(i)}, v1.Health{State: v1.HealthGood})
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(load(t, root).Verdicts); n != 20 {
		t.Errorf("%d verdicts of 20 are there", n)
	}
}

func TestBadRecords(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		kind fault.Kind
	}{
		"torn": {`{"v":1,"verd`, fault.Corrupt}, "empty": {"", fault.Corrupt}, "of another kind": {`[]`, fault.Corrupt},
		"newer": {`{"v":2}`, fault.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := open(t)
			put(t, dir, "state/"+recordsFile, tc.text, 0o644)
			if _, err := Load(root, "state"); fault.KindOf(err) != tc.kind || fault.HintOf(err) == "" {
				t.Errorf("Load = %v, want one of kind %s", err, tc.kind)
			}
			err := Update(root, "state", func(r *Records) error { r.Judge("id", one, v1.Health{State: v1.HealthGood}); return nil })
			if tc.kind == fault.Conflict {
				if fault.KindOf(err) != fault.Conflict {
					t.Errorf("records of a newer kedge were changed: %v", err)
				}
				return
			}
			if err != nil || load(t, root).Verdict(one) == nil {
				t.Errorf("damaged records were not begun anew: %v", err)
			}
		})
	}
}

func TestUpdateFails(t *testing.T) {
	root, dir := open(t)
	update(t, root, func(r *Records) { r.Judge("id", one, v1.Health{State: v1.HealthGood}) })
	st, err := os.Stat(filepath.Join(dir, "state", recordsFile))
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("no")
	err = Update(root, "state", func(r *Records) error { r.Forget(one); return failure })
	update(t, root, func(*Records) {}) // nothing to write
	after, serr := os.Stat(filepath.Join(dir, "state", recordsFile))
	if !errors.Is(err, failure) || serr != nil || !os.SameFile(st, after) {
		t.Errorf("a change that failed: %v, %v; the file was replaced: %v", err, serr, !os.SameFile(st, after))
	}
}
