package host

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/fault"
)

// step is one verb of a host's life, and what is to come of it.
type step struct {
	name string
	do   func(*stage) (any, error)
	// kind is what it fails with; 0 is success.
	kind fault.Kind
	// check looks at what cannot be seen by comparing backends.
	check func(*testing.T, *stage)
}

// stage is a world in which steps are taken one after the other.
type stage struct {
	*world
	ctx  context.Context
	refs map[string]string // by tag
	// elsewhere is another registry.
	elsewhere string
	last      any // what the step gave
}

func (s *stage) image(tag string, version int, more ...smallimage.Entry) {
	ref, _ := s.push(tag, version, more...)
	s.refs[tag] = ref
}

// on opens the host for one verb, as a command does.
func (s *stage) on(verb func(*Host) (any, error)) (any, error) {
	h, err := Open(s.ctx, s.config())
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return verb(h)
}

// The verbs.

func doInstall(tag string, kargs ...string) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return Install(s.ctx, s.config(), s.options(s.refs[tag], kargs...))
	}
}

func doSwitch(o SwitchOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		o := o
		if ref, ok := s.refs[o.Image]; ok {
			o.Image = ref
		} else {
			o.Image = s.registry + "/os:" + o.Image
		}
		return s.on(func(h *Host) (any, error) { return h.Switch(s.ctx, o) })
	}
}

func doUpgrade(o UpgradeOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Upgrade(s.ctx, o) })
	}
}

func doDeploy(target string) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Deploy(s.ctx, target) })
	}
}

func doKargs(o KargsOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Kargs(s.ctx, o) })
	}
}

func doPin(index int, pinned bool) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Pin(s.ctx, index, pinned) })
	}
}

func doCleanup(o CleanupOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Cleanup(s.ctx, o) })
	}
}

func doFsck(o FsckOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Fsck(s.ctx, o) })
	}
}

func doDiff(a, b string) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.Diff(s.ctx, a, b) })
	}
}

func doPlan(o PlanOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		o := o
		if o.Image != "" {
			o.Image = s.refs[o.Image]
		}
		return s.on(func(h *Host) (any, error) { return h.Plan(s.ctx, o) })
	}
}

func doRollback(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.Rollback(s.ctx) })
}

func doCheckUpgrade(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.CheckUpgrade(s.ctx, "") })
}

func doStatus(s *stage) (any, error) {
	st, err := ReadStatus(s.ctx, s.config())
	if err == nil {
		s.fitsSchema(st)
	}
	return st, err
}

func doImages(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.Images(s.ctx) })
}

func doHistory(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.History(s.ctx) })
}

func doHistoryOfChanges(s *stage) (any, error) {
	list, err := doHistory(s)
	return slices.DeleteFunc(list.([]v1.HistoryEntry), func(e v1.HistoryEntry) bool { return e.Verb == verbRemove }), err
}

func doShowKargs(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.ShowKargs(s.ctx) })
}

func doSelfInstall(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.SelfInstall(s.ctx, "test") })
}

func doFinalize(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return nil, h.Finalize(s.ctx) })
}

func doBootComplete(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return nil, h.BootComplete(s.ctx) })
}

// etc returns a file of the /etc of the deployment at an index.
func (s *stage) etc(index int, name string) string {
	s.t.Helper()
	h, err := Open(s.ctx, s.config())
	must(s.t, err)
	defer h.Close()
	list, err := h.store.Deployments()
	must(s.t, err)
	return s.path(list[index].id, "etc/"+name)
}

func wantEtc(index int, name, want string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		if got, err := os.ReadFile(s.etc(index, name)); err != nil || string(got) != want {
			t.Errorf("/etc/%s of deployment %d = %q, %v; want %q", name, index, got, err, want)
		}
	}
}

func wantIntact(t *testing.T, s *stage) { s.agree() }

// wantShared: what shares a directory on the composefs backend is said to.
func wantShared(t *testing.T, s *stage) {
	warnings := s.last.(*v1.Host).Status.Kedge.Warnings
	if shared := slices.ContainsFunc(warnings, composefsForm.MatchString); shared != (s.backend == "composefs") {
		t.Errorf("warnings = %q", warnings)
	}
}

// act changes the world between verbs.
func act(name string, do func(*stage)) step {
	return step{name: name, do: func(s *stage) (any, error) { do(s); return nil, nil }}
}

// life is a host from its installation on: each verb, each on a sysroot that is
// not booted, and again on one that is.
func life() []step {
	docs := smallimage.File("usr/share/more", 0, "more\n")
	return []step{
		act("images", func(s *stage) { s.image("a", 1); s.image("b", 2, docs); s.image("bad", 3, smallimage.Kernel("7.0")...) }),
		{name: "status of nothing", do: doStatus, kind: fault.NotFound},
		{name: "install an image that is not there", do: doInstall("absent"), kind: fault.Usage},
		{name: "install a bad image", do: doInstall("bad"), kind: fault.Conflict},
		{name: "install", do: doInstall("a", "root=LABEL=root", "rw"), check: wantIntact},
		{name: "status", do: doStatus},
		{name: "install again", do: doInstall("a"), kind: fault.Conflict},
		{name: "history", do: doHistory},
		{name: "image list", do: doImages},
		{name: "kargs", do: doShowKargs},
		{name: "fsck", do: doFsck(FsckOptions{})},
		{name: "rollback to nothing", do: doRollback, kind: fault.Conflict},
		{name: "upgrade to the same", do: doUpgrade(UpgradeOptions{})},
		{name: "upgrade --check of the same", do: doCheckUpgrade},
		{name: "plan of nothing", do: doPlan(PlanOptions{})},
		{name: "plan switch", do: doPlan(PlanOptions{Image: "b"})},
		{name: "plan switch --inspect", do: doPlan(PlanOptions{Image: "b", Inspect: true})},
		{name: "plan switch --inspect to a bad image", do: doPlan(PlanOptions{Image: "bad", Inspect: true}), check: func(t *testing.T, s *stage) {
			if p := s.last.(*v1.Plan); p.Possible || len(p.Problems) != 1 || !strings.Contains(p.Problems[0], "two kernels") {
				t.Errorf("plan of what switch refuses: possible %v, problems %q", p.Possible, p.Problems)
			}
		}},
		{name: "--download-only of what is not booted", do: doSwitch(SwitchOptions{Image: "b", DownloadOnly: true}), kind: fault.Usage},
		act("edits in /etc", func(s *stage) {
			s.write(s.etc(0, "edited.conf"), "by the admin\n")
			s.write(s.etc(0, "added.conf"), "by the admin\n")
			must(s.t, os.Remove(s.etc(0, "hostname")))
		}),
		{name: "switch to what is not there", do: doSwitch(SwitchOptions{Image: "nothing"}), kind: fault.NotFound},
		{name: "switch to a bad image", do: doSwitch(SwitchOptions{Image: "bad"}), kind: fault.Conflict, check: wantIntact},
		{name: "switch", do: doSwitch(SwitchOptions{Image: "b"}), check: func(t *testing.T, s *stage) {
			wantEtc(0, "edited.conf", "by the admin\n")(t, s)
			wantEtc(0, "added.conf", "by the admin\n")(t, s)
			wantEtc(0, "default.conf", "version=2\n")(t, s)
			wantEtc(1, "default.conf", "version=1\n")(t, s)
			if _, err := os.Stat(s.etc(0, "hostname")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("/etc/hostname, which the admin removed, is back: %v", err)
			}
			wantIntact(t, s)
		}},
		{name: "status after the switch", do: doStatus},
		{name: "diff", do: doDiff("", "")},
		{name: "diff of indexes", do: doDiff("0", "1")},
		{name: "diff with nothing", do: doDiff("9", "0"), kind: fault.NotFound},
		{name: "switch to the same", do: doSwitch(SwitchOptions{Image: "b"})},
		{name: "rollback", do: doRollback, check: wantIntact},
		{name: "status after the rollback", do: doStatus},
		{name: "rollback again", do: doRollback},
		{name: "kargs edit", do: doKargs(KargsOptions{Append: []string{"quiet"}, Delete: []string{"rw"}}), check: wantIntact},
		{name: "kargs edit to the same", do: doKargs(KargsOptions{Replace: []string{"root=LABEL=root"}})},
		{name: "kargs edit of what leads to the root", do: doKargs(KargsOptions{Append: []string{"composefs=x"}}), kind: fault.Usage},
		{name: "kargs edit of nothing", do: doKargs(KargsOptions{Delete: []string{"absent"}}), kind: fault.NotFound},
		{name: "kargs after the edit", do: doShowKargs},
		{name: "status of two entries of one image", do: doStatus, check: wantShared},
		act("a new b", func(s *stage) { s.image("b", 4) }),
		{name: "upgrade --check", do: doCheckUpgrade},
		{name: "status after the check", do: doStatus},
		{name: "plan upgrade", do: doPlan(PlanOptions{})},
		{name: "upgrade", do: doUpgrade(UpgradeOptions{}), check: wantEtc(0, "added.conf", "by the admin\n")},
		{name: "pin", do: doPin(1, true)},
		{name: "pin again", do: doPin(1, true)},
		{name: "pin nothing", do: doPin(7, true), kind: fault.NotFound},
		{name: "switch to a", do: doSwitch(SwitchOptions{Image: "a"}), check: wantIntact},
		{name: "status with a pin", do: doStatus},
		{name: "deploy the pinned version", do: doDeploy("2.0")},
		{name: "deploy it again", do: doDeploy("2.0")},
		{name: "deploy an index", do: doDeploy("1")},
		{name: "deploy nothing", do: doDeploy("9.9"), kind: fault.NotFound},
		{name: "unpin", do: doPin(1, false), check: wantIntact},
		{name: "status without a pin", do: doStatus},
		{name: "cleanup", do: doCleanup(CleanupOptions{})},
		{name: "cleanup --rollback", do: doCleanup(CleanupOptions{Rollback: true}), check: wantIntact},
		{name: "fsck after the clean-up", do: doFsck(FsckOptions{})},
		{name: "image list after the clean-up", do: doImages},
		act("damage", func(s *stage) { s.damageLargest() }),
		{name: "fsck --repair", do: doFsck(FsckOptions{Repair: true}), check: func(t *testing.T, s *stage) {
			if c := s.last.(*v1.Check); len(c.Repaired) == 0 || len(c.Problems) > 0 {
				t.Errorf("fsck --repair = %+v, want all repaired", c)
			}
			wantIntact(t, s)
		}},
		{name: "self install", do: doSelfInstall},
		{name: "self install again", do: doSelfInstall},
		{name: "history of all", do: doHistory},
	}
}

// bootedLife is what is different on a host that runs.
func bootedLife() []step {
	shutdown := act("shutdown", func(s *stage) { s.shutdown() })
	return []step{
		act("images", func(s *stage) { s.image("a", 1); s.image("b", 2) }),
		{name: "install", do: doInstall("a", "rw")},
		act("boot", func(s *stage) { s.boot() }),
		{name: "status", do: doStatus},
		{name: "install over it", do: doInstall("b"), kind: fault.Conflict},
		{name: "from-downloaded of nothing", do: doUpgrade(UpgradeOptions{FromDownloaded: true}), kind: fault.NotFound},
		{name: "plan switch", do: doPlan(PlanOptions{Image: "b"})},
		{name: "switch stages", do: doSwitch(SwitchOptions{Image: "b"}), check: wantIntact},
		{name: "status with a staged one", do: doStatus},
		{name: "kargs of the staged one", do: doKargs(KargsOptions{Append: []string{"quiet"}})},
		{name: "diff", do: doDiff("", "")},
		act("edits after the staging", func(s *stage) { s.write(s.machine+"/etc/late.conf", "late\n") }),
		shutdown,
		{name: "boot complete", do: doBootComplete},
		{name: "status after the reboot", do: doStatus, check: wantEtc(0, "late.conf", "late\n")},
		{name: "rollback queues", do: doRollback, check: wantIntact},
		{name: "status with a queued rollback", do: doStatus},
		{name: "rollback undone", do: doRollback},
		act("a new b", func(s *stage) { s.image("b", 3) }),
		{name: "download only", do: doUpgrade(UpgradeOptions{DownloadOnly: true})},
		{name: "status of the download", do: doStatus},
		{name: "shutdown leaves a download alone", do: doFinalize, check: wantIntact},
		{name: "status of the download still", do: doStatus},
		{name: "download again", do: doUpgrade(UpgradeOptions{DownloadOnly: true})},
		{name: "from downloaded", do: doUpgrade(UpgradeOptions{FromDownloaded: true})},
		shutdown,
		{name: "status of the upgraded", do: doStatus, check: wantIntact},
		// A, B, and A again.
		{name: "switch to a", do: doSwitch(SwitchOptions{Image: "a"})},
		shutdown,
		{name: "switch back to b", do: doSwitch(SwitchOptions{Image: "b"}), check: wantIntact},
		{name: "status of going back", do: doStatus},
		shutdown,
		{name: "status after going back", do: doStatus, check: func(t *testing.T, s *stage) {
			wantEtc(0, "late.conf", "late\n")(t, s)
			wantIntact(t, s)
		}},
		{name: "kargs of what runs", do: doKargs(KargsOptions{Append: []string{"debug"}}), check: wantIntact},
		{name: "status of two entries of one image", do: doStatus, check: wantShared},
		{name: "cleanup --staged", do: doCleanup(CleanupOptions{Staged: true})},
		// What comes again is the same deployment on composefs, and another one on
		// ostree, where the one before goes.
		{name: "history", do: doHistoryOfChanges},
	}
}

// TestConformance takes the same steps on both backends. What they print has to
// be the same but for what is the backend's by nature.
func TestConformance(t *testing.T) {
	for name, steps := range map[string]func() []step{"offline": life, "booted": bootedLife, "health": healthLife, "etc": etcLife, "kargs": kargsLife, "etc of what runs": bootedEtcLife} {
		t.Run(name, func(t *testing.T) { conform(t, func(*testing.T) []step { return steps() }) })
	}
}

// conform takes steps on both backends.
func conform(t *testing.T, steps func(*testing.T) []step) {
	t.Helper()
	list := steps(t) // skips here what would be skipped on both
	var all [][]string
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { all = append(all, run(t, b.name, steps(t))) })
	}
	if len(all) != len(backends) || len(all[0]) != len(all[1]) {
		t.Fatal("a backend did not take all steps")
	}
	for i, s := range list {
		if diff := cmp.Diff(all[0][i], all[1][i]); diff != "" {
			t.Errorf("%s: %s (-) and %s (+) differ:\n%s", s.name, backends[0].name, backends[1].name, diff)
		}
	}
}

func run(t *testing.T, backend string, steps []step) (printed []string) {
	s := &stage{world: newWorldOf(t, backend), ctx: context.Background(), refs: map[string]string{}}
	n := normaliser{stage: s, ids: map[string]string{}}
	for _, step := range steps {
		out, err := step.do(s)
		switch {
		case step.kind == 0 && err != nil:
			t.Fatalf("%s: %v", step.name, err)
		case step.kind != 0:
			wantKind(t, err, step.kind, "")
			if fault.HintOf(err) == "" {
				t.Errorf("%s: the error has no hint: %v", step.name, err)
			}
			out = map[string]string{"error": fault.KindOf(err).String()}
		}
		if s.last = out; step.check != nil {
			step.check(t, s)
		}
		printed = append(printed, n.json(out))
	}
	return printed
}

// normaliser takes out of JSON what differs between backends by nature, and
// between runs.
type normaliser struct {
	*stage
	ids map[string]string // of deployments, by the version of their image
}

// native are the fields that only one backend has, or that are its own sizes.
var native = []string{
	"repaired", "ostree", "composefs", "store", "backend", "generation", "free", "needed", "objects", "bytes", "time",
	"milliseconds",
}

// composefsForm is what the composefs backend alone warns of: the lab's small images
// have an old kernel.
var composefsForm = regexp.MustCompile(`^deployments \d+ and \d+ have the same root|^the image lacks Linux `)

// oldKernelForm is how a plan says the latter.
var oldKernelForm = regexp.MustCompile(`^Linux [0-9.]+ or newer$`)

var hexForm = regexp.MustCompile(`(default/)?\b[0-9a-f]{128}(\.[0-9]+)?\b|default/[0-9a-f]{64}\.[0-9]+`)

func (n *normaliser) json(v any) string {
	n.learn()
	data, err := json.Marshal(v)
	must(n.t, err)
	var any any
	must(n.t, json.Unmarshal(data, &any))
	data, err = json.MarshalIndent(n.value(any), "", "  ")
	must(n.t, err)
	return string(data)
}

// learn notes the deployments that there are.
func (n *normaliser) learn() {
	s, err := ReadStatus(n.ctx, n.config())
	if err != nil {
		return
	}
	entries := s.Status.OtherDeployments
	for _, e := range []*v1.BootEntry{s.Status.Booted, s.Status.Staged, s.Status.Rollback} {
		if e != nil {
			entries = append(entries, *e)
		}
	}
	for _, e := range entries {
		n.ids[e.Kedge.ID] = "<" + e.Kedge.Version + ">"
	}
}

func (n *normaliser) value(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if list, ok := v["warnings"].([]any); ok {
			list = slices.DeleteFunc(list, func(w any) bool { return composefsForm.MatchString(w.(string)) })
			if v["warnings"] = list; len(list) == 0 {
				delete(v, "warnings")
			}
		}
		if list, ok := v["missing"].([]any); ok {
			v["missing"] = slices.DeleteFunc(list, func(m any) bool { return oldKernelForm.MatchString(m.(map[string]any)["what"].(string)) })
		}
		for key, field := range v {
			if slices.Contains(native, key) {
				delete(v, key)
			} else {
				v[key] = n.value(field)
			}
		}
		if v["what"] == needs[n.backend].what {
			v["what"], v["consequence"] = "<what the backend needs>", ""
		}
	case []any:
		for i := range v {
			v[i] = n.value(v[i])
		}
	case string:
		v = strings.NewReplacer(n.dir, "<sysroot>", n.registry, "<registry>", n.machine, "<machine>").Replace(v)
		return hexForm.ReplaceAllStringFunc(v, func(id string) string {
			if version := n.ids[id]; version != "" {
				return version
			}
			return id
		})
	}
	return v
}

// needs are the requirements of the backends.
var needs = map[string]requirement{"ostree": ostreeBackend.needs, "composefs": composefsBackend.needs}
