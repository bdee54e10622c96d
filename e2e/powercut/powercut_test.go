package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
)

// states is how many disks are made for each operation; steps share them.
// KEDGE_POWERCUT_STATES asks for another number than 24 and, nightly, 240.
func (r *record) states(steps int) int {
	n := 24
	if os.Getenv("KEDGE_NIGHTLY") != "" {
		n = 240
	}
	if asked, err := strconv.Atoi(os.Getenv("KEDGE_POWERCUT_STATES")); err == nil && asked > 0 {
		n = asked
	}
	if r.control {
		n = min(n, 100)
	}
	return n / steps
}

// seed makes the random cuts of a log the same each time.
const seed = 4

// TestPowerCut cuts the power at instants of every step of the story.
func TestPowerCut(t *testing.T) {
	if testing.Short() {
		t.Skip("two minutes; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-storage-daemon", "ostree", "mkfs.ext4", "fsfreeze", "cmp", "go")
	kedge := offline.BuildKedge(t)
	for _, fs := range filesystems() {
		t.Run(fs.kind, func(t *testing.T) {
			lab.Need(t, "mkfs."+fs.kind, fs.check[0])
			dir := scratch(t)
			var table table
			for _, r := range live(t, dir, kedge, fs) {
				t.Run(r.name(), func(t *testing.T) {
					table.add(r, r.cut(t, dir, kedge))
					t.Logf("so far:\n%s", &table)
				})
			}
			table.check(t, fs)
		})
	}
}

// result is what became of the disks of a step or an operation: what boots, and
// of that what has another damage.
type result struct{ states, old, fresh, lost, damaged int }

func (r *result) add(o *result) {
	r.states += o.states
	r.old += o.old
	r.fresh += o.fresh
	r.lost += o.lost
	r.damaged += o.damaged
}

// count counts a disk that boots into id, or has a problem.
func (r *result) count(s span, id string, problem error) {
	r.states++
	if problem != nil && !errors.As(problem, &damage{}) {
		r.lost++
		return
	}
	if problem != nil {
		r.damaged++
	}
	if id == s.old {
		r.old++
	} else {
		r.fresh++
	}
}

// span is a step in a record: entries between its marks.
type span struct {
	name       string
	begin, end int
	steps      int    // of its operation
	old, fresh string // what boots before and after it
}

// cut makes and checks the disks of a record, and returns the results by step.
func (r *record) cut(t *testing.T, dir, kedge string) map[string]*result {
	c := &checker{t: t, kedge: kedge, fs: r.fs, backend: r.backend, whole: map[string]*deployment{}}
	spans := r.learn(t, c, dir)
	results := map[string]*result{}
	work := newReplayer(t, r, filepath.Join(dir, "work.img"))
	rnd := rand.New(rand.NewPCG(seed, 0))
	limit := make(chan struct{}, 4*runtime.NumCPU()) // most of a check is waiting for mounts
	var checks sync.WaitGroup
	var mu sync.Mutex
	n := 0
	for _, s := range spans {
		res := &result{}
		results[s.name] = res
		for _, cut := range r.cuts(s, rnd) {
			n++
			image := filepath.Join(dir, fmt.Sprintf("cut-%d.img", n))
			limit <- struct{}{}
			if err := errors.Join(work.Make(t.Context(), cut, image), r.fs.identify(image)); err != nil {
				t.Fatal(err)
			}
			checks.Go(func() {
				defer func() { os.Remove(image); <-limit }()
				id, err := c.check(image, []string{s.old, s.fresh})
				mu.Lock()
				defer mu.Unlock()
				res.count(s, id, err)
				if err != nil && (!r.control || res.lost+res.damaged == 1) {
					t.Logf("%s, power cut after entry %d of %d..%d with %d pieces of later writes: %v", s.name, cut.Flushed, s.begin, s.end, len(cut.Kept), err)
				}
			})
		}
	}
	checks.Wait()
	return results
}

// cuts are the cuts of a step in the order of the log: after flushes, and at
// random instants between them.
func (r *record) cuts(s span, rnd *rand.Rand) []lab.Cut {
	n := r.states(s.steps)
	cuts := r.log.FlushCuts(s.begin, s.end)
	if len(cuts) > n/3 {
		rnd.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
		cuts = cuts[:n/3]
	}
	cuts = append(cuts, r.log.RandomCuts(s.begin, s.end, n-len(cuts), rnd)...)
	slices.SortStableFunc(cuts, func(a, b lab.Cut) int { return a.Flushed - b.Flushed })
	return cuts
}

func newReplayer(t *testing.T, r *record, image string) *lab.Replayer {
	t.Helper()
	copyDisk(t, r.before, image)
	p, err := lab.NewReplayer(r.log, image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); os.Remove(image) })
	return p
}

// learn finds the steps by their marks, and takes the disks at rest for whole.
func (r *record) learn(t *testing.T, c *checker, dir string) []span {
	t.Helper()
	marks, err := r.log.Marks(diskSize)
	if err != nil {
		t.Fatal(err)
	}
	rest := newReplayer(t, r, filepath.Join(dir, "rest.img"))
	var spans []span
	for _, m := range marks {
		image := filepath.Join(dir, "mark.img")
		if err := errors.Join(rest.Make(t.Context(), lab.Cut{Flushed: m.Entry + 1}, image), r.fs.identify(image)); err != nil {
			t.Fatal(err)
		}
		id, err := c.learn(image)
		if err != nil {
			t.Fatalf("at rest (%s): %v", m.Text, err)
		}
		os.Remove(image)
		if name, ok := strings.CutPrefix(m.Text, story.Begin); ok {
			spans = append(spans, span{name: name, begin: m.Entry + 1, old: id})
		} else {
			last := &spans[len(spans)-1]
			last.end, last.fresh = m.Entry, id
		}
	}
	n := 0
	for _, boot := range story.Boots {
		for _, s := range boot {
			if n == len(spans) || spans[n].name != s.Name {
				t.Fatalf("the log has the marks %v, want those of the story", marks)
			}
			spans[n].steps = len(boot)
			n++
		}
	}
	return spans
}

// programFile is a file of an image with a program or library of this machine.
func programFile(t *testing.T, name, program string) smallimage.Entry {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && strings.Contains(program, "/") {
		path = program
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return smallimage.File(name, 0o755, string(b))
}
