package assess

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// put writes a script beneath a root.
func put(t *testing.T, root, name, body string, mode os.FileMode) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(body), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

// judge finds and runs the checks beneath a root.
func judge(t *testing.T, root string) (*v1.Health, []v1.HealthCheck) {
	t.Helper()
	checks, problems := Find(root)
	for _, p := range problems {
		t.Errorf("problem: %v", p)
	}
	var all []v1.HealthCheck
	h, err := Run(t.Context(), root, checks, func(Check) {}, func(r v1.HealthCheck) { all = append(all, r) })
	if err != nil {
		t.Fatal(err)
	}
	return h, all
}

func TestOutcomes(t *testing.T) {
	const sh = "#!/bin/sh\n"
	for name, tc := range map[string]struct {
		path, body string
		mode       os.FileMode
		config     string
		// what is to come of it
		state, outcome, status, output string
	}{
		"good":                  {path: localDir + "/a", body: sh + "echo fine", mode: 0o755, state: v1.HealthGood, outcome: v1.CheckPassed},
		"image's own":           {path: imageDir + "/a", body: sh, mode: 0o755, state: v1.HealthGood, outcome: v1.CheckPassed},
		"fails":                 {path: localDir + "/a", body: sh + "echo one; echo two >&2; exit 3", mode: 0o755, state: v1.HealthFailed, outcome: v1.CheckFailed, status: "exit status 3", output: "one\ntwo\n"},
		"killed":                {path: localDir + "/a", body: sh + "kill -9 $$", mode: 0o755, state: v1.HealthFailed, outcome: v1.CheckFailed, status: "signal: killed"},
		"not executable":        {path: localDir + "/a", body: sh, mode: 0o644, state: v1.HealthGood, outcome: v1.CheckNotExecutable, status: "mode -rw-r--r--"},
		"no program":            {path: localDir + "/a", body: "no shebang and no ELF", mode: 0o755, state: v1.HealthFailed, outcome: v1.CheckFailed, status: "exec format error"},
		"interpreter missing":   {path: localDir + "/a", body: "#!/absent/sh\n", mode: 0o755, state: v1.HealthFailed, outcome: v1.CheckFailed, status: "no such file"},
		"hangs":                 {path: localDir + "/a", body: sh + "echo begun; sleep 100", mode: 0o755, config: `timeout = "300ms"`, state: v1.HealthFailed, outcome: v1.CheckTimedOut, status: "after 300ms", output: "begun\n"},
		"hangs against TERM":    {path: localDir + "/a", body: sh + "trap '' TERM INT HUP; while :; do sleep 100; done", mode: 0o755, config: "[timeouts]\na = \"300ms\"", state: v1.HealthFailed, outcome: v1.CheckTimedOut, status: "after 300ms"},
		"huge output":           {path: localDir + "/a", body: sh + "head -c 50000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1", mode: 0o755, state: v1.HealthFailed, outcome: v1.CheckFailed, output: "xxx\nend\n"},
		"disabled":              {path: localDir + "/a", body: sh + "exit 1", mode: 0o755, config: `disabled = ["a"]`, state: v1.HealthGood, outcome: v1.CheckDisabled},
		"greenboot required":    {path: "/etc/greenboot/check/required.d/a.sh", body: "[[ 1 == 1 ]] && exit 4", mode: 0o644, state: v1.HealthFailed, outcome: v1.CheckFailed, status: "exit status 4"},
		"greenboot, no shebang": {path: "/usr/lib/greenboot/check/required.d/a.sh", body: "[[ 1 == 1 ]]", mode: 0o644, state: v1.HealthGood, outcome: v1.CheckPassed},
		"greenboot wanted":      {path: "/usr/lib/greenboot/check/wanted.d/a.sh", body: "exit 4", mode: 0o755, state: v1.HealthGood, outcome: v1.CheckFailed, status: "exit status 4"},
		"greenboot program":     {path: "/etc/greenboot/check/required.d/a", body: sh + "exit 1", mode: 0o755, state: v1.HealthFailed, outcome: v1.CheckFailed},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			put(t, root, tc.path, tc.body, tc.mode)
			put(t, root, "/etc/kedge/health.toml", tc.config, 0o644)
			began := time.Now()
			h, all := judge(t, root)
			if time.Since(began) > 30*time.Second {
				t.Errorf("it took %v", time.Since(began))
			}
			if len(all) != 1 || all[0].Path != tc.path {
				t.Fatalf("checks = %+v, want %s", all, tc.path)
			}
			r := all[0]
			if h.State != tc.state || r.Outcome != tc.outcome || !strings.Contains(r.Status, tc.status) || !strings.HasSuffix(r.Output, tc.output) {
				t.Errorf("%s, %+v; want %s, %s %q with output %q", h.State, r, tc.state, tc.outcome, tc.status, tc.output)
			}
			if len(r.Output) > maxOutput+100 {
				t.Errorf("%d bytes of output are kept", len(r.Output))
			}
			if failed := h.State == v1.HealthFailed; failed != (h.Check == tc.path) || failed != strings.Contains(h.Reason, tc.path) {
				t.Errorf("verdict = %+v", h)
			}
		})
	}
}

// TestLeavesNothing: what a check leaves in its group is gone, and what left the
// group does not hold up the verdict.
func TestLeavesNothing(t *testing.T) {
	root := t.TempDir()
	put(t, root, localDir+"/10-forks", "#!/bin/sh\nsleep 1000 & echo $! >"+root+"/forked\nexit 0\n", 0o755)
	put(t, root, localDir+"/20-leaves", "#!/bin/sh\nsetsid sh -c 'echo $$ >"+root+"/left; exec sleep 1000' &\nwhile ! [ -s "+root+"/left ]; do sleep 0.01; done\n", 0o755)
	began := time.Now()
	h, _ := judge(t, root)
	if h.State != v1.HealthGood || h.Passed != 2 {
		t.Errorf("verdict = %+v, want two that passed", h)
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("the checks took %v", d)
	}
	pid := func(name string) int {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := pid("forked"); running(n) {
		t.Errorf("process %d of the check still runs", n)
	}
	if p, err := os.FindProcess(pid("left")); err == nil {
		_ = p.Kill() // systemd does it, with the unit's control group
	}
}

// running tells a process that runs from one that is dead and not waited for.
func running(pid int) bool {
	for range 100 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(text), ") Z ") {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return true
}

// TestKillsItsParent runs the checks in a process of their own, which a check
// kills: it must end at once, with a status that fails a unit.
func TestKillsItsParent(t *testing.T) {
	if root := os.Getenv("KEDGE_TEST_ROOT"); root != "" {
		judge(t, root)
		os.Exit(0)
	}
	root := t.TempDir()
	put(t, root, localDir+"/a", "#!/bin/sh\nkill -9 $PPID\nexit 0\n", 0o755)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=TestKillsItsParent$")
	cmd.Env = append(os.Environ(), "KEDGE_TEST_ROOT="+root)
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.String() != "signal: killed" {
		t.Errorf("the runner ended with %v, want to be killed", err)
	}
}

// TestThousand: many checks are no problem, nor is what a verdict keeps of them.
func TestThousand(t *testing.T) {
	root := t.TempDir()
	for i := range 1000 {
		body := "#!/bin/sh\nexit 0\n"
		dir := localDir
		if i%2 == 1 {
			dir, body = "/etc/greenboot/check/wanted.d", "#!/bin/sh\nhead -c 10000 /dev/zero | tr '\\0' y\nexit 1\n"
		}
		put(t, root, fmt.Sprintf("%s/%04d", dir, i), body, 0o755)
	}
	h, all := judge(t, root)
	if len(all) != 1000 || h.State != v1.HealthGood || h.Passed != 500 || len(h.Checks) != maxChecks {
		t.Errorf("%d run, verdict %s with %d passed and %d kept", len(all), h.State, h.Passed, len(h.Checks))
	}
}

func TestStopsAtFirstFailure(t *testing.T) {
	root := t.TempDir()
	for name, body := range map[string]string{"10-good": "exit 0", "20-bad": "exit 1", "30-later": "touch " + root + "/ran"} {
		put(t, root, localDir+"/"+name, "#!/bin/sh\n"+body+"\n", 0o755)
	}
	h, all := judge(t, root)
	if h.Check != localDir+"/20-bad" || h.Passed != 1 || all[2].Outcome != v1.CheckNotRun {
		t.Errorf("verdict = %+v, results %+v", h, all)
	}
	if _, err := os.Stat(root + "/ran"); err == nil {
		t.Error("a check ran after one that failed")
	}
}

// TestCancelled: a shutdown while checks run is no verdict.
func TestCancelled(t *testing.T) {
	root := t.TempDir()
	put(t, root, localDir+"/a", "#!/bin/sh\nsleep 1000\n", 0o755)
	checks, _ := Find(root)
	ctx, cancel := context.WithCancel(t.Context())
	h, err := Run(ctx, root, checks, func(Check) { time.AfterFunc(100*time.Millisecond, cancel) }, func(v1.HealthCheck) {})
	if h != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("verdict %+v, %v; want none", h, err)
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{
		imageDir + "/20-b", imageDir + "/10-a", imageDir + "/30-masked", localDir + "/20-b", localDir + "/15-c",
		"/usr/lib/greenboot/check/required.d/01.sh", "/etc/greenboot/check/required.d/00.sh", "/etc/greenboot/check/required.d/off.sh",
		"/etc/greenboot/check/wanted.d/05.sh",
	} {
		put(t, root, name, "#!/bin/sh\n", 0o755)
	}
	put(t, root, "/etc/greenboot/check/required.d/README", "no check\n", 0o644)
	put(t, root, localDir+"/.hidden", "", 0o755)
	if err := os.Symlink(os.DevNull, root+localDir+"/30-masked"); err != nil {
		t.Fatal(err)
	}
	put(t, root, greenbootConfig, "GREENBOOT_MAX_BOOT_ATTEMPTS=3\nDISABLED_HEALTHCHECKS=( \"off.sh\"\n 'other.sh' )\n", 0o644)
	put(t, root, "/usr/lib/kedge/health.toml", "timeout = \"5m\"\n", 0o644)
	put(t, root, "/etc/kedge/health.toml", "[timeouts]\n20-b = \"2s\"\n", 0o644)
	if n := Tries(root); n != DefaultTries {
		t.Errorf("tries = %d where nothing is said", n)
	}
	put(t, root, "/etc/kedge/health.toml", "tries = 1\n[timeouts]\n20-b = \"2s\"\n", 0o644)
	if n := Tries(root); n != 1 {
		t.Errorf("tries = %d, want 1", n)
	}
	checks, problems := Find(root)
	if len(problems) > 0 {
		t.Error(problems)
	}
	var got []string
	for _, c := range checks {
		got = append(got, fmt.Sprint(c.Path, " ", c.Required, " ", c.Disabled, " ", c.Timeout))
	}
	want := []string{
		imageDir + "/10-a true false 5m0s", localDir + "/15-c true false 5m0s", localDir + "/20-b true false 2s",
		localDir + "/30-masked true true 5m0s",
		"/usr/lib/greenboot/check/required.d/01.sh true false 5m0s", "/etc/greenboot/check/required.d/00.sh true false 5m0s",
		"/etc/greenboot/check/required.d/off.sh true true 5m0s", "/etc/greenboot/check/wanted.d/05.sh false false 5m0s",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("checks:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestBadConfig(t *testing.T) {
	for name, text := range map[string]string{
		"no TOML": "timeout 3", "unknown key": `timeuot = "3s"`, "no time": `timeout = "soon"`, "many tries": "tries = 6", "negative": "[timeouts]\na = \"-3s\"", "too large": strings.Repeat("#", maxConfig+1),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			put(t, root, localDir+"/a", "#!/bin/sh\n", 0o755)
			put(t, root, "/etc/kedge/health.toml", text, 0o644)
			checks, problems := Find(root)
			if len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), "/etc/kedge/health.toml: ") {
				t.Errorf("problems = %v", problems)
			}
			if len(checks) != 1 || checks[0].Timeout != DefaultTimeout {
				t.Errorf("checks = %+v, want one with the default time-out", checks)
			}
		})
	}
}
