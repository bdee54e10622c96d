package units_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/units"
)

func TestText(t *testing.T) {
	const program = "/var/lib/kedge/bin/kedge"
	for _, name := range units.Names {
		text, err := units.Text(name, program)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, units.DefaultProgram+" ") {
			t.Errorf("%s still runs %s", name, units.DefaultProgram)
		}
	}
	if _, err := units.Text("other.service", program); err == nil {
		t.Error("a unit that is not there was found")
	}
}

// TestSystemdAcceptsThem asks systemd itself.
func TestSystemdAcceptsThem(t *testing.T) {
	lab.Need(t, "systemd-analyze")
	dir := t.TempDir()
	var files []string
	for _, name := range units.Names {
		text, err := units.Text(name, "/bin/true")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, files...)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestEnabled holds the links against what systemctl makes of [Install].
func TestEnabled(t *testing.T) {
	lab.Need(t, "systemctl")
	root := t.TempDir()
	const dir = "/usr/lib/systemd/system"
	if err := os.MkdirAll(root+dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"--root=" + root, "enable"}
	for _, name := range units.Names {
		text, err := units.Text(name, "/bin/true")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "[Install]") {
			args = append(args, name)
		}
	}
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl enable: %v\n%s", err, out)
	}
	links, err := filepath.Glob(root + "/etc/systemd/system/*/*")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range links {
		got = append(got, strings.TrimPrefix(l, root+"/etc/systemd/system/"))
	}
	want := slices.Sorted(slices.Values(units.Enabled))
	if !slices.Equal(got, want) {
		t.Errorf("systemctl enable makes %q, want %q", got, want)
	}
}
