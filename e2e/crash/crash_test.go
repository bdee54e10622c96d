package crash

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

// sample is how many kill points a run takes unless KEDGE_NIGHTLY is set, which
// takes all.
const sample = 90

// scenario is a change of a sysroot that is killed again and again.
type scenario struct {
	backend offline.Backend
	kedge   string
	before  string   // the sysroot to start from
	argv    []string // with SYSROOT for the sysroot
	after   string   // what an undisturbed run makes of it
	states  map[string]offline.Listing
}

func (s *scenario) command(sysroot string) []string {
	argv := []string{s.kedge}
	for _, a := range s.argv {
		argv = append(argv, strings.ReplaceAll(a, "SYSROOT", sysroot))
	}
	return argv
}

// images writes a layout with three versions of the small OS and returns the
// reference of a version.
func images(t *testing.T) func(version int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	smallimage.Layout(t, dir, map[string]v1.Image{
		"v1": smallimage.New(t, "1", smallimage.OS(1)),
		"v2": smallimage.New(t, "2", smallimage.OS(2)),
		"v3": smallimage.New(t, "3", smallimage.OS(3)),
	})
	return func(version int) string { return fmt.Sprintf("oci:%s:v%d", dir, version) }
}

// onAll runs a test on each backend.
func onAll(t *testing.T, test func(*testing.T, offline.Backend)) {
	need(t)
	for _, b := range offline.Backends {
		t.Run(string(b), func(t *testing.T) { test(t, b) })
	}
}

func TestSwitchKilledAtEveryChange(t *testing.T) {
	onAll(t, func(t *testing.T, b offline.Backend) {
		switching(t, b).run(t)
	})
}

// switching is a switch of a host that has been lived in.
func switching(t *testing.T, b offline.Backend) *scenario {
	kedge, image := offline.BuildKedge(t), images(t)
	return &scenario{backend: b, kedge: kedge, before: b.Install(t, kedge, image(1)), argv: []string{"--sysroot", "SYSROOT", "switch", image(2)}}
}

func TestInstallKilledAtEveryChange(t *testing.T) {
	onAll(t, func(t *testing.T, b offline.Backend) {
		empty := filepath.Join(t.TempDir(), "sysroot")
		if err := os.Mkdir(empty, 0o755); err != nil {
			t.Fatal(err)
		}
		s := scenario{backend: b, kedge: offline.BuildKedge(t), before: empty}
		s.argv = append(append([]string{"install", "to-filesystem"}, b.Flags()...), "--image", images(t)(1), "--karg", "rw", "SYSROOT")
		s.run(t)
	})
}

func need(t *testing.T) {
	t.Helper()
	lab.Need(t, "ostree", "cp", "go")
	lab.NeedRoot(t)
}

// TestSwitchOnAFullDisk lets the disk run full at each change of a switch.
func TestSwitchOnAFullDisk(t *testing.T) { onAll(t, switchOnAFullDisk) }

func switchOnAFullDisk(t *testing.T, b offline.Backend) {
	if runtime.GOARCH != "amd64" {
		lab.Skip(t, "calls are made to fail on amd64 alone")
	}
	s := switching(t, b)
	calls := s.prepare(t)
	before := s.leftBy(t, s.before)
	for _, k := range killPoints(calls) {
		t.Run(fmt.Sprintf("%04d-%s", k, calls[k-1].Name), func(t *testing.T) {
			t.Parallel()
			sysroot := offline.Copy(t, s.before)
			run, err := TraceFull(sysroot, k, s.command(sysroot)...)
			if err != nil {
				t.Fatal(err)
			}
			s.checkBootable(t, sysroot)
			if run.Exit == 0 {
				return // behind the commit point
			}
			if run.Exit != fault.NoSpace.ExitCode() || !strings.Contains(run.Output, "hint: ") {
				t.Errorf("full from %s on: exit status %d, want %d\n%s", calls[k-1], run.Exit, fault.NoSpace.ExitCode(), run.Output)
			}
			if d := offline.Differences(s.leftBy(t, sysroot), before); d != "" {
				t.Errorf("full from %s on, the sysroot is not as it was:%s", calls[k-1], d)
			}
		})
	}
}

// run kills one run at each change.
func (s *scenario) run(t *testing.T) {
	calls := s.prepare(t)
	s.killAt(t, calls, killPoints(calls))
}

// killAt kills one run at each of some changes.
func (s *scenario) killAt(t *testing.T, calls []Call, points []int) {
	t.Helper()
	t.Logf("%d changes, killed at %d of them", len(calls), len(points))
	for _, k := range points {
		t.Run(fmt.Sprintf("%04d-%s", k, calls[k-1].Name), func(t *testing.T) {
			t.Parallel()
			s.kill(t, k)
		})
	}
}

// prepare makes an undisturbed run and returns its changes.
func (s *scenario) prepare(t *testing.T) []Call {
	t.Helper()
	s.after = offline.Copy(t, s.before)
	whole, err := Trace(s.after, 0, s.command(s.after)...)
	if err != nil || whole.Exit != 0 {
		t.Fatalf("the undisturbed run: exit %d, %v\n%s", whole.Exit, err, whole.Output)
	}
	s.states = map[string]offline.Listing{}
	for _, sysroot := range []string{s.before, s.after} {
		for _, dir := range s.deployments(t, sysroot) {
			s.states[dir] = offline.List(t, sysroot+dir)
		}
	}
	// Twice the same is the least to ask of "as an uninterrupted run".
	again := offline.Copy(t, s.before)
	offline.Run(t, s.command(again)...)
	if d := offline.Differences(s.leftBy(t, again), s.leftBy(t, s.after)); d != "" {
		t.Fatalf("two undisturbed runs differ:%s", d)
	}
	return whole.Calls
}

// deployments are those of the sysroot; a directory without boot entries has
// none yet.
func (s *scenario) deployments(t testing.TB, sysroot string) []string {
	t.Helper()
	if !installed(sysroot) {
		return nil
	}
	return s.backend.KedgeDeployments(t, s.kedge, sysroot)
}

func installed(sysroot string) bool {
	_, err := os.Stat(sysroot + "/boot/loader/entries")
	return err == nil
}

// killPoints takes every change where there are few, and of more all that
// happen outside of the object store and the deployments' files, which are
// alike, and as many of the others as fit.
func killPoints(calls []Call) []int {
	var few, alike []int
	for i, c := range calls {
		if bulk(c.Path) {
			alike = append(alike, i+1)
		} else {
			few = append(few, i+1)
		}
	}
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		few, alike = spread(few, sample*2/3), spread(alike, sample/3)
	}
	return append(few, alike...)
}

func bulk(path string) bool {
	for _, part := range []string{"/ostree/repo/objects/", "/ostree/repo/staging", "/ostree/repo/tmp/", "/composefs/objects", "/composefs/kedge-", "/usr/", "/etc/"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return false
}

// spread picks n of all, evenly, the first and the last among them.
func spread(all []int, n int) []int {
	if len(all) <= n {
		return all
	}
	some := make([]int, 0, n)
	for i := range n {
		some = append(some, all[i*(len(all)-1)/(n-1)])
	}
	return some
}

// kill makes one run, killed at change k, and checks what it left and what the
// next run makes of that.
func (s *scenario) kill(t *testing.T, k int) {
	sysroot := offline.Copy(t, s.before)
	run, err := Trace(sysroot, k, s.command(sysroot)...)
	if err != nil {
		t.Fatal(err)
	}
	if !run.Killed {
		t.Logf("this run made only %d changes", len(run.Calls))
	} else {
		t.Logf("killed at %s", run.Calls[len(run.Calls)-1])
	}
	if installed(s.before) {
		s.checkBootable(t, sysroot)
	}
	if d := offline.Differences(s.leftBy(t, sysroot), s.leftBy(t, s.after)); d == "" {
		return // killed when all was done: an installation would refuse to run again
	}
	offline.Run(t, s.command(sysroot)...)
	s.checkBootable(t, sysroot)
	if d := offline.Differences(s.leftBy(t, sysroot), s.leftBy(t, s.after)); d != "" {
		t.Errorf("killed at %s, the rerun does not lead to what an undisturbed run does:%s", run.Calls[len(run.Calls)-1], d)
	}
}

// checkBootable holds libostree or the boot entries, and kedge, against each
// other and the deployments against whole ones.
func (s *scenario) checkBootable(t *testing.T, sysroot string) {
	t.Helper()
	theirs, ours := s.backend.Deployments(t, sysroot), s.backend.KedgeDeployments(t, s.kedge, sysroot)
	if fmt.Sprint(theirs) != fmt.Sprint(ours) || len(theirs) == 0 {
		t.Fatalf("there are the deployments %v, kedge status says %v", theirs, ours)
	}
	if next := s.backend.BootDefault(t, sysroot); next != theirs[0] {
		t.Errorf("the boot entry leads to %s, the first deployment is %s", next, theirs[0])
	}
	for _, dir := range theirs {
		whole, ok := s.states[dir]
		if !ok {
			t.Errorf("deployment %s is none of the undisturbed run", dir)
		} else if diff := offline.Differences(offline.List(t, sysroot+dir), whole); diff != "" {
			t.Errorf("deployment %s is not whole:%s", dir, diff)
		}
	}
	s.backend.Fsck(t, s.kedge, sysroot)
}

// leftBy lists a sysroot without what differs from run to run by design.
func (s *scenario) leftBy(t *testing.T, sysroot string) offline.Listing {
	t.Helper()
	l := offline.List(t, sysroot)
	maps.DeleteFunc(l, s.backend.Indifferent)
	return l
}
