package layering

import (
	"os"
	"os/exec"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestFilter runs the filter in the kernel, with all capabilities, so that
// nothing but the filter refuses; and without it, so that nothing else does.
func TestFilter(t *testing.T) {
	lab.NeedRoot(t)
	lab.Need(t, "bwrap", "unshare", "mount", "hostname")
	for _, tc := range []struct {
		argv    []string
		allowed bool
	}{
		{[]string{"true"}, true},
		{[]string{"sh", "-c", "(exit 0) | cat"}, true},
		{[]string{"mount", "-t", "tmpfs", "none", "/mnt"}, false},
		{[]string{"unshare", "--mount", "true"}, false},
		{[]string{"unshare", "--user", "true"}, false},
		{[]string{"hostname", "other"}, false},
	} {
		for _, filtered := range []bool{false, true} {
			args := []string{"--dev-bind", "/", "/", "--unshare-uts", "--unshare-pid", "--cap-add", "ALL"}
			filter, err := filterFile()
			if err != nil {
				t.Fatal(err)
			}
			if filtered {
				args = append(args, "--seccomp", "3")
			}
			cmd := exec.Command("bwrap", append(args, tc.argv...)...)
			cmd.ExtraFiles = []*os.File{filter}
			out, err := cmd.CombinedOutput()
			filter.Close()
			if want := tc.allowed || !filtered; (err == nil) != want {
				t.Errorf("%q, filter %v: %v %s, want success: %v", tc.argv, filtered, err, out, want)
			}
		}
	}
}
