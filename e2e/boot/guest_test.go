package boot

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/internal/lab"
)

// rootArgs are the kernel arguments of a host whose disk is labelled root.
var rootArgs = []string{"root=LABEL=root", "rw", "console=ttyS0", "panic=1"}

// scriptTimeout is generous: the import of a whole image on an emulated
// processor takes a minute where nothing else runs.
const scriptTimeout = 15 * time.Minute

// guest is a booted machine whose steps fail the test.
type guest struct {
	*lab.Guest
	t *testing.T
	// brought is where kedge is on a host whose image has none.
	brought string
}

func (g *guest) program() string {
	if g.brought != "" {
		return g.brought
	}
	return "kedge"
}

func start(t *testing.T, m *lab.Machine) *guest {
	t.Helper()
	began := time.Now()
	g, err := m.Boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Kill()
		t.Logf("%s took %.0f s of processor", g.Console, g.CPU().Seconds())
	})
	guest := &guest{Guest: g, t: t}
	// The agent is early; a user's boot ends when every unit has started.
	state, err := g.WaitBooted(scriptTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("booted %s (%s) in %.0f s: %s", g.Entry.Title, g.Entry.File, time.Since(began).Seconds(), state)
	if state != "running" {
		t.Logf("failed units:\n%s", guest.output("systemctl list-units --failed --no-legend; journalctl -b -p err --no-pager | tail -n 20"))
	}
	return guest
}

// reboot shuts the guest down and starts what the boot entries then say.
func (g *guest) reboot(m *lab.Machine) *guest {
	g.t.Helper()
	if err := g.Shutdown("reboot", scriptTimeout); err != nil {
		g.t.Fatal(err)
	}
	return start(g.t, m)
}

// output runs a script whose exit code does not matter.
func (g *guest) output(script string) string {
	g.t.Helper()
	out, err := g.Run("{ "+script+"; } || true", scriptTimeout)
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// sh runs a script that must succeed and returns its output, trimmed.
func (g *guest) sh(script string) string {
	g.t.Helper()
	out, err := g.Run(script, scriptTimeout)
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// kedge runs kedge in the guest; its output goes to the test's log.
func (g *guest) kedge(args string) string {
	g.t.Helper()
	began := time.Now()
	out := g.sh(g.program() + " " + args)
	g.t.Logf("guest: kedge %s (%.1f s)\n%s", args, time.Since(began).Seconds(), out)
	return out
}

// exitCode runs a script and returns its exit code.
func (g *guest) exitCode(script string) int {
	g.t.Helper()
	_, err := g.Run(script, scriptTimeout)
	if err == nil {
		return 0
	}
	if exit, ok := err.(*lab.ExitError); ok { //nolint:errorlint // Run returns it bare
		return exit.Code
	}
	g.t.Fatal(err)
	return -1
}

// want checks that a script prints what is expected.
func (g *guest) want(what, script, want string) {
	g.t.Helper()
	if got := g.sh(script); got != want {
		g.t.Errorf("%s: `%s` printed %q, want %q", what, script, got, want)
	}
}

// entry is the part of a status entry that the tests look at.
type entry struct {
	Image struct {
		Image struct {
			Image     string `json:"image"`
			Transport string `json:"transport"`
		} `json:"image"`
		ImageDigest string `json:"imageDigest"`
	} `json:"image"`
	OSTree struct {
		Stateroot string `json:"stateroot"`
		Checksum  string `json:"checksum"`
	} `json:"ostree"`
}

type status struct {
	Status struct {
		Booted   *entry `json:"booted"`
		Staged   *entry `json:"staged"`
		Rollback *entry `json:"rollback"`
	} `json:"status"`
}

func (g *guest) status() status {
	g.t.Helper()
	var s status
	out := g.sh("kedge status --json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		g.t.Fatalf("kedge status --json: %v\n%s", err, out)
	}
	if s.Status.Booted == nil {
		g.t.Fatalf("kedge status shows no booted deployment:\n%s", out)
	}
	return s
}

// checkHealth looks for what must hold on every booted host of the ostree backend.
func (g *guest) checkHealth() {
	g.t.Helper()
	g.checkRoot()
	g.want("no unit of kedge failed", "systemctl list-units --failed --no-legend 'kedge*'", "")
}

// checkRoot is checkHealth without the units.
func (g *guest) checkRoot() {
	g.t.Helper()
	checks := map[string]string{
		"libostree and the kernel agree on the booted root": `
			booted=$(ostree admin status | sed -n 's/^\* [^ ]* \([0-9a-f]*\)\..*/\1/p')
			[ -n "$booted" ] && findmnt -n -o FSROOT --target /etc | grep -q "/$booted\."`,
		"/usr is read-only":              "! touch /usr/.e2e 2>/dev/null",
		"/sysroot is read-only":          "! touch /sysroot/.e2e 2>/dev/null",
		"nothing is left half-finalized": "[ ! -e /boot/ostree/finalize-failure.stamp ]",
	}
	for what, script := range maps.All(checks) {
		if out, err := g.Run(script, scriptTimeout); err != nil {
			g.t.Errorf("not so: %s: %v\n%s", what, err, out)
		}
	}
}
