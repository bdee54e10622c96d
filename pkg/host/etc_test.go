package host

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
)

func doEtcDiff(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.EtcDiff(s.ctx) })
}

func doEtcConflicts(target string) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.EtcConflicts(s.ctx, target) })
	}
}

func doEtcReset(remove bool, paths ...string) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) {
			return h.EtcReset(s.ctx, EtcResetOptions{Paths: paths, Remove: remove})
		})
	}
}

func doRollbackMergeEtc(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.RollbackMergeEtc(s.ctx) })
}

// told are the changes that a step gave, a word each for what matters.
func told(v any) (out []string) {
	var list []v1.EtcChange
	switch v := v.(type) {
	case []v1.EtcChange:
		list = v
	case *v1.Result:
		list = v.Etc
	case *v1.Plan:
		list = v.Etc
	}
	for _, c := range list {
		line := strings.Join([]string{c.Path, c.Change, c.Image, c.Result}, " ")
		for _, l := range c.Lines {
			line += " " + l.Key + ":" + l.Change
		}
		for _, n := range c.Notes {
			line += " (" + n + ")"
		}
		if c.Conflict {
			line += " !"
		}
		out = append(out, line)
	}
	return out
}

func wantTold(want ...string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		if got := told(s.last); !slices.Equal(got, want) {
			t.Errorf("told:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func wantGone(index int, name string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		if _, err := os.Lstat(s.etc(index, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("/etc/%s of deployment %d: %v, want it gone", name, index, err)
		}
	}
}

func all(checks ...func(*testing.T, *stage)) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		for _, c := range checks {
			c(t, s)
		}
	}
}

const (
	rootUser = "root:x:0:0:root:/root:/bin/sh\n"
	svcUser  = "svc:x:990:990::/:/usr/sbin/nologin\n"
	annUser  = "ann:x:1000:1000:Ann:/home/ann:/bin/sh\n"
)

// etcImages are two images that differ in /etc.
func etcImages(s *stage) {
	s.image("a", 1)
	s.image("b", 2, smallimage.File("etc/passwd", 0, rootUser+svcUser), smallimage.File("etc/shadow", 0o400, "root:*:1::::::\nsvc:!:1::::::\n"),
		smallimage.File("etc/ruled.conf", 0, "image\n"),
		smallimage.File(etcmerge.ImageRules+"/10-image.toml", 0, "[[path]]\nmatch = [\"ruled.conf\"]\npolicy = \"take-image\"\n"))
}

// etcEdits is what the admin does.
func etcEdits(etc func(name string) string) func(*stage) {
	return func(s *stage) {
		s.write(etc("passwd"), rootUser+annUser)
		s.write(etc("edited.conf"), "by the admin\n")
		s.write(etc("ruled.conf"), "by the admin\n")
		s.write(etc("added/by/admin"), "1\n")
		must(s.t, os.Chmod(etc("shadow"), 0o640))
		must(s.t, os.Remove(etc("hostname")))
	}
}

var etcConflictLines = []string{
	"/etc/edited.conf modified changed kept !",
	"/etc/passwd modified changed merged",
	"/etc/ruled.conf added changed taken !",
	"/etc/shadow attributes changed merged (owner, mode or extended attributes were changed on both sides: the machine's stay) !",
}

var etcStagedLines = slices.DeleteFunc(slices.Clone(etcConflictLines), func(l string) bool { return !strings.HasSuffix(l, "!") })

// etcLife is a life in which everything is about /etc.
func etcLife() []step {
	at := func(index int) func(*stage) func(string) string {
		return func(s *stage) func(string) string { return func(name string) string { return s.etc(index, name) } }
	}
	edit := func(s *stage) { etcEdits(at(0)(s))(s) }
	bad := smallimage.File(etcmerge.ImageRules+"/10-image.toml", 0, "[[path]]\nmatch = \"x\"\n")
	return []step{
		act("images", func(s *stage) {
			etcImages(s)
			s.image("bad", 3, bad)
			s.image("dir", 4, smallimage.Dir("etc/added"), smallimage.File("etc/added/by", 0, ""), smallimage.Dir("etc/ruled.conf"))
		}),
		{name: "etc diff of nothing", do: doEtcDiff, kind: fault.NotFound},
		{name: "install", do: doInstall("a", "rw")},
		{name: "etc diff of a fresh one", do: doEtcDiff, check: wantTold()},
		{name: "etc conflicts of the first", do: doEtcConflicts(""), kind: fault.NotFound},
		act("edits", edit),
		{name: "etc diff", do: doEtcDiff, check: wantTold(
			"/etc/added added unchanged kept", "/etc/added/by added unchanged kept", "/etc/added/by/admin added unchanged kept",
			"/etc/edited.conf modified unchanged kept", "/etc/hostname removed unchanged kept",
			"/etc/passwd modified unchanged kept ann:added", "/etc/ruled.conf added unchanged kept", "/etc/shadow attributes unchanged kept",
		)},
		{name: "plan", do: doPlan(PlanOptions{Image: "b"}), check: func(t *testing.T, s *stage) {
			if p := s.last.(*v1.Plan); p.Etc != nil {
				t.Errorf("/etc under an image that is not here: %v", p.Etc)
			}
		}},
		{name: "plan --inspect", do: doPlan(PlanOptions{Image: "b", Inspect: true}), check: func(t *testing.T, s *stage) {
			got := slices.DeleteFunc(told(s.last), func(l string) bool { return strings.Contains(l, " unchanged ") })
			if !slices.Equal(got, etcConflictLines) {
				t.Errorf("planned:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(etcConflictLines, "\n"))
			}
		}},
		{name: "plan --inspect of what cannot be merged", do: doPlan(PlanOptions{Image: "dir", Inspect: true}), check: func(t *testing.T, s *stage) {
			if p := s.last.(*v1.Plan); p.Possible || !strings.Contains(strings.Join(p.Problems, "\n"), "/etc/ruled.conf") {
				t.Errorf("plan = %v, want it impossible for /etc/ruled.conf", p.Problems)
			}
		}},
		{name: "plan --inspect of bad rules", do: doPlan(PlanOptions{Image: "bad", Inspect: true}), check: func(t *testing.T, s *stage) {
			if p := s.last.(*v1.Plan); p.Possible || !strings.Contains(strings.Join(p.Problems, "\n"), "10-image.toml: line 2") {
				t.Errorf("plan = %v, want it impossible for the rules", p.Problems)
			}
		}},
		{name: "switch to bad rules", do: doSwitch(SwitchOptions{Image: "bad"}), kind: fault.Corrupt, check: wantIntact},
		{name: "switch to what cannot be merged", do: doSwitch(SwitchOptions{Image: "dir"}), kind: fault.Conflict, check: wantIntact},
		{name: "switch", do: doSwitch(SwitchOptions{Image: "b"}), check: all(
			wantTold(etcStagedLines...),
			wantEtc(0, "passwd", rootUser+svcUser+annUser), wantEtc(0, "edited.conf", "by the admin\n"), wantEtc(0, "ruled.conf", "image\n"),
			wantEtc(0, "shadow", "root:*:1::::::\nsvc:!:1::::::\n"), wantEtc(0, "added/by/admin", "1\n"), wantGone(0, "hostname"), wantIntact,
			func(t *testing.T, s *stage) {
				if st, err := os.Stat(s.etc(0, "shadow")); err != nil || st.Mode().Perm() != 0o640 {
					t.Errorf("/etc/shadow: %v, %v, want the admin's mode", st.Mode(), err)
				}
			},
		)},
		{name: "etc conflicts of what was merged", do: doEtcConflicts(""), check: wantTold(etcConflictLines...)},
		{name: "etc conflicts by its index", do: doEtcConflicts("0"), check: wantTold(etcConflictLines...)},
		{name: "etc conflicts with nothing", do: doEtcConflicts("7"), kind: fault.NotFound},
		{name: "etc conflicts with what is not staged", do: doEtcConflicts("staged"), kind: fault.NotFound},
		{name: "etc conflicts with a version that is not here", do: doEtcConflicts("9.9"), kind: fault.NotFound},
		{name: "reset a file", do: doEtcReset(false, "/etc/edited.conf", "hostname"), check: all(wantEtc(0, "edited.conf", "default=2\n"), wantEtc(0, "hostname", "small\n"))},
		{name: "reset what is so already", do: doEtcReset(false, "/etc/edited.conf")},
		{name: "reset what the image has not", do: doEtcReset(false, "/etc/added/by"), kind: fault.NotFound, check: wantEtc(0, "added/by/admin", "1\n")},
		{name: "reset --remove", do: doEtcReset(true, "added/by"), check: wantGone(0, "added/by")},
		{name: "reset everything", do: doEtcReset(true, "/etc"), kind: fault.Usage},
		{name: "reset elsewhere", do: doEtcReset(true, "/usr/lib"), kind: fault.Usage},
		{name: "reset further up", do: doEtcReset(true, "a/../../usr"), kind: fault.Usage},
		{name: "etc diff after the resets", do: doEtcDiff, check: wantTold(
			"/etc/added added unchanged kept", "/etc/passwd modified unchanged kept ann:added", "/etc/shadow attributes unchanged kept",
		)},
		act("a later edit", func(s *stage) { s.write(s.etc(0, "later.conf"), "later\n") }),
		{name: "rollback --merge-etc", do: doRollbackMergeEtc, check: all(
			wantEtc(0, "later.conf", "later\n"), wantEtc(0, "passwd", rootUser+annUser), wantEtc(0, "edited.conf", "default=1\n"), wantIntact,
		)},
		{name: "status after it", do: func(s *stage) (any, error) {
			st, err := ReadStatus(s.ctx, s.config())
			if err != nil {
				return nil, err
			}
			// On the composefs backend the old entry is the new one.
			return st.Status.OtherDeployments[0].Kedge.Version + " " + strings.Join(st.Status.OtherDeployments[0].Kedge.Kargs, " "), nil
		}},
		act("rules of the machine's that are broken", func(s *stage) { s.write(s.etc(0, etcmerge.MachineRules+"/x.toml"), "[[path]]\n") }),
		{name: "switch", do: doSwitch(SwitchOptions{Image: "b"}), kind: fault.Conflict, check: wantIntact},
		act("rules that forbid", func(s *stage) {
			s.write(s.etc(0, etcmerge.MachineRules+"/x.toml"), "[[path]]\nmatch = [\"*.conf\"]\npolicy = \"fail\"\n")
			s.write(s.etc(0, "edited.conf"), "by the admin again\n")
		}),
		{name: "switch against them", do: doSwitch(SwitchOptions{Image: "b"}), kind: fault.Conflict, check: wantIntact},
		act("other rules in the place of the image's", func(s *stage) {
			must(s.t, os.Remove(s.etc(0, etcmerge.MachineRules+"/x.toml")))
			s.write(s.etc(0, "ruled.conf"), "by the admin\n")
			must(s.t, os.Symlink("/dev/null", s.etc(0, etcmerge.MachineRules+"/10-image.toml")))
		}),
		{name: "switch with them", do: doSwitch(SwitchOptions{Image: "b"}), check: wantEtc(0, "ruled.conf", "by the admin\n")},
	}
}

// bootedEtcLife is what is different on a host that runs.
func bootedEtcLife() []step {
	shutdown := act("shutdown", func(s *stage) { s.shutdown() })
	running := func(s *stage) func(string) string {
		return func(name string) string { return s.machine + "/etc/" + name }
	}
	return []step{
		act("images", etcImages),
		{name: "install", do: doInstall("a", "rw")},
		act("boot", func(s *stage) { s.boot() }),
		act("edits", func(s *stage) { etcEdits(running(s))(s) }),
		{name: "etc diff", do: doEtcDiff},
		{name: "switch", do: doSwitch(SwitchOptions{Image: "b"}), check: wantTold(etcStagedLines...)},
		{name: "etc conflicts", do: doEtcConflicts(""), check: wantTold(etcConflictLines...)},
		{name: "etc conflicts staged", do: doEtcConflicts("staged"), check: wantTold(etcConflictLines...)},
		act("a user is added after the staging", func(s *stage) {
			s.write(running(s)("passwd"), rootUser+annUser+"bob:x:1001:1001::/home/bob:/bin/sh\n")
		}),
		{name: "reset what runs", do: doEtcReset(false, "edited.conf")},
		shutdown,
		{name: "etc diff after the reboot", do: doEtcDiff, check: all(
			wantEtc(0, "passwd", rootUser+svcUser+annUser+"bob:x:1001:1001::/home/bob:/bin/sh\n"), wantEtc(0, "edited.conf", "default=2\n"),
		)},
		{name: "rollback --merge-etc stages", do: doRollbackMergeEtc},
		{name: "rollback --merge-etc again", do: doRollbackMergeEtc},
		act("a late edit", func(s *stage) { s.write(running(s)("late.conf"), "late\n") }),
		shutdown,
		{name: "etc diff after going back", do: doEtcDiff, check: all(
			wantEtc(0, "late.conf", "late\n"), wantEtc(0, "passwd", rootUser+annUser+"bob:x:1001:1001::/home/bob:/bin/sh\n"), wantIntact,
		)},
		{name: "rollback --merge-etc once more", do: doRollbackMergeEtc},
		{name: "history", do: doHistoryOfChanges},
	}
}

// TestEtcDiffAgainstOSTree holds etc diff against ostree admin config-diff, which
// lists the same paths but for attributes, which it tells as modified.
func TestEtcDiffAgainstOSTree(t *testing.T) {
	w := newWorld(t)
	lab.Need(t, "ostree")
	ref, _ := w.push("a", 1, smallimage.Dir("etc/d"), smallimage.File("etc/d/a", 0, "a\n"), smallimage.Dir("etc/gone"), smallimage.File("etc/gone/b", 0, "b\n"))
	id := w.install(ref).ID
	etc := func(name string) string { return w.path(id, "etc/"+name) }
	etcEdits(etc)(&stage{world: w})
	must(t, os.RemoveAll(etc("gone")))
	must(t, os.Remove(etc("d/a")))
	must(t, os.Symlink("x", etc("d/a")))

	theirs := []string{}
	for line := range strings.Lines(w.ostree("admin", "config-diff", "--sysroot="+w.dir, "--os=default")) {
		if f := strings.Fields(line); len(f) == 2 {
			theirs = append(theirs, strings.Replace(f[0], "D", "R", 1)+" /etc/"+f[1])
		}
	}
	h := w.open()
	changes, err := h.EtcDiff(t.Context())
	must(t, err)
	letters := map[string]string{"added": "A", "modified": "M", "removed": "R", "attributes": "M"}
	var ours []string
	for _, c := range changes {
		ours = append(ours, letters[c.Change]+" "+c.Path)
	}
	slices.Sort(theirs)
	slices.Sort(ours)
	if !slices.Equal(theirs, ours) || len(ours) < 8 {
		t.Errorf("ostree admin config-diff:\n%s\nkedge etc diff:\n%s", strings.Join(theirs, "\n"), strings.Join(ours, "\n"))
	}
}
