package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/jsonschema"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with testdata/NAME.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (go test ./cmd/kedge -update): %s", file, diff)
	}
}

// kedge runs a command line in this process.
func kedge(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, err bytes.Buffer
	status = run(context.Background(), args, &out, &err)
	return out.String(), err.String(), status
}

func TestHelp(t *testing.T) {
	app := newApp(&env{})
	seen := 0
	check := func(name string, args ...string) {
		out, stderr, status := kedge(t, append(args, "--help")...)
		if status != 0 || stderr != "" {
			t.Errorf("kedge %s --help: status %d, %s", strings.Join(args, " "), status, stderr)
		}
		if !strings.Contains(out, "Example:\n  ") {
			t.Errorf("kedge %s --help has no example", strings.Join(args, " "))
		}
		for line := range strings.Lines(out) {
			if len(line) > 121 && !strings.HasPrefix(line, "  kedge ") {
				t.Errorf("kedge %s --help has a line of %d characters: %s", strings.Join(args, " "), len(line), line)
			}
		}
		golden(t, "help/"+name+".txt", out)
		seen++
	}
	check("kedge")
	forEach(app.Commands, nil, func(above []*cli.Command, c *cli.Command) {
		if c.Hidden || len(above) > 0 && above[0].Hidden {
			return
		}
		path := append(above[:len(above):len(above)], c)
		check(strings.ReplaceAll(names(path), " ", "-"), strings.Fields(names(path))...)
	})
	if seen < 20 {
		t.Errorf("only %d pages were checked", seen)
	}
}

func TestManPages(t *testing.T) {
	pages := manPages(newApp(&env{}))
	golden(t, "man/kedge.8", pages["kedge.8"])
	golden(t, "man/kedge-switch.8", pages["kedge-switch.8"])
	for _, verb := range []string{"status", "install-to-filesystem", "plan-upgrade", "self-install"} {
		if !strings.Contains(pages["kedge-"+verb+".8"], ".SH EXAMPLE\n") {
			t.Errorf("there is no page kedge-%s(8) with an example", verb)
		}
	}
	dir := t.TempDir()
	if _, stderr, status := kedge(t, "man", dir); status != 0 {
		t.Fatal(stderr)
	}
	lab.Need(t, "groff")
	files, err := filepath.Glob(dir + "/*.8")
	if err != nil || len(files) != len(pages) {
		t.Fatalf("kedge man wrote %d of %d pages: %v", len(files), len(pages), err)
	}
	for _, f := range files {
		if out, err := exec.Command("groff", "-man", "-Tascii", "-ww", "-z", f).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("groff %s: %v %s", filepath.Base(f), err, out)
		}
	}
}

func TestArrange(t *testing.T) {
	for _, c := range []struct{ in, want, fails string }{
		{in: "status --sysroot DIR --json", want: "--sysroot DIR --json status"},
		{in: "--sysroot=DIR status", want: "--sysroot=DIR status"},
		{in: "switch IMAGE --apply", want: "switch --apply -- IMAGE"},
		{in: "install to-filesystem DIR --image I --karg a=b --karg c", want: "install to-filesystem --image I --karg a=b --karg c -- DIR"},
		{in: "switch -- --odd", want: "switch -- --odd"},
		{in: "kargs --append --weird=1", want: "kargs --append --weird=1"},
		{in: "update --check", want: "upgrade --check"},
		{in: "upgrade -check", want: "upgrade -check"},
		{in: "swich IMAGE", fails: `unknown verb "swich"`},
		{in: "install DIR", fails: `unknown verb "install DIR"`},
		{in: "install", fails: "kedge install needs one of: to-filesystem"},
		{in: "switch --aply IMAGE", fails: "unknown flag --aply"},
		{in: "--sysroot", fails: "flag --sysroot needs a value"},
	} {
		line, err := arrange(newApp(&env{}), strings.Fields(c.in))
		if got := strings.Join(line.args, " "); c.fails == "" && (err != nil || got != c.want) {
			t.Errorf("arrange(%q) = %q, %v, want %q", c.in, got, err, c.want)
		}
		if c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
			t.Errorf("arrange(%q) = %v, want an error about %q", c.in, err, c.fails)
		}
	}
}

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  []string
	}{
		{[]string{"sw"}, []string{"switch"}},
		{[]string{"p"}, []string{"plan", "pkg", "pin"}},
		{[]string{"plan", ""}, []string{"switch", "upgrade"}},
		{[]string{"--sysroot", "/mnt", "roll"}, []string{"rollback"}},
		{[]string{"--sysroot", ""}, nil},
		{[]string{"upgrade", "--ch"}, []string{"--check"}},
		{[]string{"status", "--sys"}, []string{"--sysroot"}},
		{[]string{"completion", ""}, nil},
	} {
		if got := complete(newApp(&env{}), c.words); !slices.Equal(got, c.want) {
			t.Errorf("complete(%q) = %q, want %q", c.words, got, c.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out, _, status := kedge(t, "completion", shell)
		if status != 0 || !strings.Contains(out, "kedge __complete") {
			t.Errorf("completion %s: status %d: %s", shell, status, out)
		}
	}
	lab.Need(t, "bash")
	script := completionScripts["bash"] + `
kedge() { [ "$1 $2 $3 $4" = "__complete -- plan u" ] && echo upgrade; }
COMP_WORDS=(kedge plan u); COMP_CWORD=2; _kedge; echo "${COMPREPLY[@]}"`
	out, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil || string(out) != "upgrade\n" {
		t.Errorf("completion in bash: %q, %v", out, err)
	}
}

func TestExitCodes(t *testing.T) {
	empty := t.TempDir()
	for _, c := range []struct {
		args   string
		status int
		stderr string
	}{
		{"", 2, "error: no verb given\nhint: kedge --help lists the verbs\n"},
		{"--version", 0, ""},
		{"swich x", 2, "error: unknown verb \"swich\"\nhint: did you mean kedge switch?\n"},
		{"status --frobnicate", 2, "error: unknown flag --frobnicate\nhint: kedge status --help shows what it takes\n"},
		{"status extra", 2, "error: status: unexpected operand \"extra\"\nhint: kedge status --help shows what it takes\n"},
		{"switch", 2, "error: switch: IMAGE is missing\nhint: kedge switch --help shows what it takes\n"},
		{"pin x", 2, "error: pin: \"x\" is no index\nhint: kedge status shows the index of each deployment\n"},
		{"--log-level loud status", 2, "error: --log-level loud: unknown level\nhint: use debug, info, warn or error\n"},
		{"--progress-fd 99 rollback --sysroot " + empty, 2, ""},
		{"upgrade --check --apply", 2, ""},
		{"status --sysroot " + empty, 3, ""},
		{"status --sysroot " + empty + "/absent", 3, ""},
		{"install to-filesystem --image oci:/absent:x " + empty, 3, ""},
		{"install to-filesystem --image localhost:1/os:1 --backend lvm " + empty, 2, ""},
		{"self units --directory " + empty + "/absent", 3, ""},
		{"completion tcsh", 2, ""},
	} {
		_, stderr, status := kedge(t, strings.Fields(c.args)...)
		if status != c.status || c.stderr != "" && stderr != c.stderr {
			t.Errorf("kedge %s: status %d, want %d; stderr:\n%s", c.args, status, c.status, stderr)
		}
		if status != 0 && (!strings.HasPrefix(stderr, "error: ") || strings.Count(stderr, "\n") > 2) {
			t.Errorf("kedge %s: stderr is not an error and a hint:\n%s", c.args, stderr)
		}
	}
	out, _, status := kedge(t, "status", "--json", "--sysroot", empty)
	var report v1.ErrorReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || status != 3 || report.Error.Kind != "not found" || report.Error.Hint == "" {
		t.Errorf("error with --json: status %d, %v:\n%s", status, err, out)
	}
	schema, err := os.ReadFile("../../docs/schema/error-v1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := jsonschema.Validate(schema, []byte(out)); err != nil {
		t.Errorf("error JSON: %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	for want, err := range map[string]error{
		"error: interrupted: what boots is as before\n":   fmt.Errorf("cleanup: %w", context.Canceled),
		"error: interrupted; two are done\nhint: again\n": fmt.Errorf("etc reset: %w", fault.New(fault.Interrupted, "again", "interrupted; two are done")),
	} {
		var stderr strings.Builder
		if status := (&env{stderr: &stderr, color: "never"}).report(err); status != 130 || stderr.String() != want {
			t.Errorf("status %d, %q, want %q", status, stderr.String(), want)
		}
	}
}

// TestFullOutput: what cannot be printed was done all the same.
func TestFullOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var stderr strings.Builder
	if status := run(t.Context(), []string{"--version"}, full, &stderr); status != fault.IO.ExitCode() || strings.Contains(stderr.String(), "nothing was changed") {
		t.Errorf("output to a full disk: status %d\n%s", status, stderr.String())
	}
}

func TestMessagesAreOneLineWithoutControls(t *testing.T) {
	if got := oneLine("a\nb\tc\x1b[31md\u009b"); got != "a b c?[31md?" {
		t.Errorf("oneLine = %q", got)
	}
}

// TestSession is a whole life of a sysroot on the command line.
func TestSession(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "chattr")
	dir, images := t.TempDir(), t.TempDir()+"/oci"
	t.Cleanup(func() { _ = exec.Command("chattr", "-R", "-f", "-i", dir).Run() })
	smallimage.Layout(t, images, map[string]ociv1.Image{
		"1": smallimage.New(t, "1.0", smallimage.OS(1)), "2": smallimage.New(t, "2.0", smallimage.OS(2)),
	})
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"install to-filesystem --image oci:" + images + ":1 --karg rw " + dir, 0, "The next boot of " + dir + " takes"},
		{"switch oci:" + images + ":2", 0, "2.0"},
		{"upgrade --unchanged-exit-77", 77, "No change: "},
		{"upgrade --check", 0, "No update: "},
		{"upgrade --apply", 2, ""},
		{"status", 0, "is not booted. Its next boot takes"},
		{"status --format yaml", 0, "apiVersion: org.containers.bootc/v1"},
		{"status --booted", 3, ""},
		{"plan switch oci:" + images + ":1 --inspect", 0, "Switch to"},
		{"rollback", 0, "1.0"},
		{"deploy 2.0", 0, "2.0"},
		{"kargs --append quiet", 0, ""},
		{"kargs", 0, "machine  rw\nuser     quiet\n"},
		{"kargs --append", 2, ""},
		{"kargs --append console=ttyS0,115200 --append-if-missing quiet", 0, ""},
		{"kargs --delete-if-present absent --unchanged-exit-77", 77, "No change"},
		{"kargs", 0, "user     quiet\nuser     console=ttyS0,115200\n"},
		{"etc diff", 0, ""},
		{"etc conflicts", 0, ""},
		{"etc conflicts 9", 3, ""},
		{"etc conflicts staged", 3, ""},
		{"etc reset /etc/hostname", 0, "No change"},
		{"etc reset", 2, ""},
		{"etc reset /usr", 2, ""},
		{"etc reset nowhere", 3, ""},
		{"usroverlay", 4, ""},
		{"rollback --merge-etc", 0, "The next boot of"},
		{"rollback", 0, ""},
		{"pin 0", 0, "is now pinned"},
		{"unpin 0", 0, "is now not pinned"},
		{"diff 0 1", 0, ""},
		{"image list", 0, "IMAGE"},
		{"initramfs", 2, ""},
		{"initramfs --regenerate --stock", 2, ""},
		{"initramfs --stock --arg=--verbose", 2, ""},
		{"initramfs --regenerate --arg=--hostonly", 2, ""},
		{"initramfs --regenerate --apply", 2, ""},
		{"initramfs --regenerate", 4, ""},
		{"initramfs --stock --unchanged-exit-77", 77, "No change: "},
		{"pkg list", 0, ""},
		{"pkg add", 2, ""},
		{"pkg add htop --dry-run --apply", 2, ""},
		{"pkg remove htop", 3, ""},
		{"pkg remove htop --idempotent --unchanged-exit-77", 77, "No change: "},
		{"pkg override replace", 2, ""},
		{"pkg override reset nano", 3, ""},
		{"pkg override reset nano --all", 2, ""},
		{"pkg override reset --all --unchanged-exit-77", 77, "No change: "},
		{"pkg refresh --unchanged-exit-77", 77, "No change: "},
		{"pkg search", 2, ""},
		{"pkg search htop", 4, ""},
		{"image push", 2, ""},
		{"image push localhost:1/os:mine", 4, ""},
		{"image push oci:/nowhere:mine", 2, ""},
		{"image copy-to-storage", 4, ""},
		{"image copy-to-storage a b c", 2, ""},
		{"status --packages", 0, "is not booted. Its next boot takes"},
		{"history", 0, "install"},
		{"history --deployments", 0, "more than 2 deployments (keep)"},
		{"cleanup --dry-run", 0, "No deployment would be removed."},
		{"cleanup", 0, "Removed"},
		{"fsck", 0, "Checked"},
	} {
		stdout, stderr, status := kedge(t, append(strings.Fields(c.args), "--sysroot", dir, "--quiet")...)
		if status != c.status || !strings.Contains(stdout, c.want) {
			t.Errorf("kedge %s: status %d, want %d and %q:\n%s%s", c.args, status, c.status, c.want, stdout, stderr)
		}
	}
	schema, err := os.ReadFile("../../docs/schema/host-v1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	out, _, _ := kedge(t, "status", "--json", "--sysroot", dir)
	if err := jsonschema.Validate(schema, []byte(out)); err != nil {
		t.Errorf("status --json does not fit its schema: %v\n%s", err, out)
	}
}
