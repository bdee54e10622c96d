package selinux_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
)

var listed = regexp.MustCompile(`^([-dl])\d+ .* \{ (.*) \} (/\S*)`)

// TestLabelsEqualOstreeCommit holds our labels against those that
// ostree commit --selinux-policy stores. It looks up the tree's own paths:
// /usr/etc/fstab is looked up as such.
func TestLabelsEqualOstreeCommit(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	if config, err := os.ReadFile("/etc/selinux/config"); err != nil || !strings.Contains(string(config), "\nSELINUX=permissive") {
		lab.Skip(t, "this machine's /etc/selinux/config does not say permissive")
	}
	p := debianPolicy(t)
	tree, repo := t.TempDir(), filepath.Join(t.TempDir(), "repo")
	made := 0
	for _, l := range machinePaths(t, 3000) {
		path := tree + strings.Replace(l.path, "/etc/", "/usr/etc/", 1)
		if strings.ContainsAny(path, " \\") || os.MkdirAll(filepath.Dir(path), 0o755) != nil {
			continue
		}
		var err error
		switch l.mode & unix.S_IFMT {
		case unix.S_IFREG:
			err = os.WriteFile(path, []byte(l.path), 0o644)
		case unix.S_IFLNK:
			err = os.Symlink("target", path)
		case unix.S_IFDIR:
			err = os.MkdirAll(path, 0o755)
		}
		if err == nil {
			made++
		}
	}
	run(t, "ostree", "init", "--repo", repo, "--mode=bare-user")
	run(t, "ostree", "commit", "--repo", repo, "-b", "b", "--selinux-policy=/", "--tree=dir="+tree)
	seen, wrong := 0, 0
	for line := range strings.Lines(run(t, "ostree", "ls", "--repo", repo, "-R", "-X", "b")) {
		m := listed.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		mode := map[string]uint32{"-": unix.S_IFREG, "d": unix.S_IFDIR, "l": unix.S_IFLNK}[m[1]]
		want := ""
		if _, rest, ok := strings.Cut(m[2], "b'security.selinux', b'"); ok {
			want, _, _ = strings.Cut(rest, "'")
		}
		seen++
		path := m[3]
		if path == "/proc" {
			path = "/mnt"
		}
		if got, _ := p.Label(path, mode); got != want {
			if wrong++; wrong < 20 {
				t.Errorf("%s %s: label %q, ostree stored %q", m[1], m[3], got, want)
			}
		}
	}
	if seen < made {
		t.Errorf("%d files made, only %d listed by ostree ls", made, seen)
	}
	t.Logf("%d files compared", seen)
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return string(out)
}
