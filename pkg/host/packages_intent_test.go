package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// TestOverrideIntent: what override does to what was asked for before.
func TestOverrideIntent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tool-3.rpm")
	must(t, os.WriteFile(file, []byte("a package"), 0o644))
	was := packageIntent{
		install: []string{"htop"}, remove: []string{"nano"},
		replace: []replacement{{localPackage{name: "podman=5.0"}, "4.9"}, {localPackage{sum: "ab", name: "tool-0:2.0-1.noarch"}, "0:1.0-1"}},
	}
	for _, tc := range []struct {
		name string
		o    PackagesOptions
		kind fault.Kind
		want []string // names that are overridden, in order
	}{
		{"remove more", PackagesOptions{OverrideRemove: []string{"vim"}}, 0, []string{"nano", "vim", "podman=5.0", "tool-0:2.0-1.noarch"}},
		{"remove again", PackagesOptions{OverrideRemove: []string{"nano"}}, fault.Conflict, nil},
		{"remove again, idempotent", PackagesOptions{OverrideRemove: []string{"nano"}, Idempotent: true}, 0, []string{"nano", "podman=5.0", "tool-0:2.0-1.noarch"}},
		{"remove what is replaced", PackagesOptions{OverrideRemove: []string{"podman"}}, 0, []string{"nano", "podman", "tool-0:2.0-1.noarch"}},
		{"replace what is removed", PackagesOptions{Replace: []string{"nano"}}, 0, []string{"podman=5.0", "tool-0:2.0-1.noarch", "nano"}},
		{"replace again", PackagesOptions{Replace: []string{"podman=5.0"}}, fault.Conflict, nil},
		{"a file", PackagesOptions{Replace: []string{file}}, 0, []string{"nano", "podman=5.0", "tool-0:2.0-1.noarch", "tool-3.rpm"}},
		{"a file that is not there", PackagesOptions{Replace: []string{file + ".rpm"}}, fault.NotFound, nil},
		{"reset by name", PackagesOptions{Reset: []string{"podman", "tool", "nano"}}, 0, nil},
		{"reset as asked", PackagesOptions{Reset: []string{"podman=5.0", "tool-0:2.0-1.noarch"}}, 0, []string{"nano"}},
		{"reset all", PackagesOptions{ResetAll: true}, 0, nil},
		{"reset what is not", PackagesOptions{Reset: []string{"htop"}}, fault.NotFound, nil},
		{"reset what is not, idempotent", PackagesOptions{Reset: []string{"htop"}, Idempotent: true}, 0, []string{"nano", "podman=5.0", "tool-0:2.0-1.noarch"}},
	} {
		now, err := tc.o.apply(was)
		if fault.KindOf(err) != tc.kind {
			t.Errorf("%s: %v, want kind %v", tc.name, err, tc.kind)
		}
		if got := now.overridden(); err == nil && !slices.Equal(got, tc.want) {
			t.Errorf("%s: overridden are %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := was.overridden(); !slices.Equal(got, []string{"nano", "podman=5.0", "tool-0:2.0-1.noarch"}) {
		t.Errorf("what was asked for before is now %q", got)
	}
}

// TestOverrideRecord: an origin has what is overridden in rpm-ostree's groups,
// and gives it back.
func TestOverrideRecord(t *testing.T) {
	r := &packageRecord{base: "sha256:00", engine: "dnf", packageIntent: packageIntent{
		remove: []string{"nano"},
		replace: []replacement{
			{localPackage{name: "podman"}, "5:5.0-1"}, {localPackage{sum: strings.Repeat("a", 64), name: "tool-0:2.0-1.noarch"}, "0:1.0-1"},
		},
	}}
	f := &keyfile.File{}
	r.write(f)
	for key, want := range map[string]string{"remove": "nano;", "replace": "repo=*,podman;", "replace-local": strings.Repeat("a", 64) + ":tool-0:2.0-1.noarch;"} {
		if got, _ := f.Get("overrides", key); got != want {
			t.Errorf("[overrides] %s=%s, want %s", key, got, want)
		}
	}
	back := readPackages(f)
	if back == nil || !slices.Equal(back.remove, r.remove) || !slices.Equal(back.replace, r.replace) {
		t.Errorf("read back: %+v, want %+v", back, r)
	}
	if changes := foreignChanges(f, true); len(changes) > 0 {
		t.Errorf("kedge's own record is taken for another program's: %q", changes)
	}
	if changes := foreignChanges(f, false); len(changes) != 2 {
		t.Errorf("what rpm-ostree replaces is carried over: %q", changes)
	}
	f.SetList("overrides", "replace", []string{"repo=fedora,podman,podman-docker"})
	if changes := foreignChanges(f, true); len(changes) != 1 {
		t.Errorf("replacements of a certain repository: %q, want one change that cannot be carried over", changes)
	}
}

// TestOverrideAsked: what was told and comes to nothing is an error; what was
// told earlier rests.
func TestOverrideAsked(t *testing.T) {
	lock := &layering.Lock{Inactive: []string{"nano", "vim"}, Replaced: []layering.Replaced{{Name: "tool", From: "1.0"}, {Name: "podman"}}}
	req := layering.Request{Remove: []string{"nano", "vim"}, Replace: []layering.Replacement{{Name: "tool"}, {Name: "podman"}}}
	for _, tc := range []struct {
		name string
		asked
		against string
		kind    fault.Kind
	}{
		{"a removal", asked{remove: []string{"vim"}}, "", fault.NotFound},
		{"a replacement", asked{replace: []string{"tool"}}, "", fault.Conflict},
		{"another replacement", asked{replace: []string{"podman"}}, "0.9", fault.NotFound},
		{"something else", asked{}, "", 0},
	} {
		req.Replace[0].Against = tc.against
		if err := tc.check(req, lock); fault.KindOf(err) != tc.kind {
			t.Errorf("%s that comes to nothing: %v, want kind %v", tc.name, err, tc.kind)
		}
	}
}

// TestLayerWarnings: what packages did that an image cannot have is said.
func TestLayerWarnings(t *testing.T) {
	for _, tc := range []struct {
		name  string
		layer layering.Layer
		want  []string
	}{
		{"nothing", layering.Layer{}, nil},
		{"keys", layering.Layer{Secrets: []string{"/etc/ssh/ssh_host_rsa_key"}}, []string{"keys that a package generated are not in the image: /etc/ssh/ssh_host_rsa_key"}},
		{
			"files in /var of a package, and of a scriptlet",
			layering.Layer{Factory: []layering.VarFile{{Path: "/var/lib/a", Package: "one"}, {Path: "/var/lib/b", Package: "one"}, {Path: "/var/lib/c"}}},
			[]string{"files in /var of one are put there at the first boot, and a later version does not change them: /var/lib/a, /var/lib/b, /var/lib/c"},
		},
		{"labels", layering.Layer{Relabels: true}, []string{"the packages change the rules for SELinux labels, so files of the image may get other labels than it has by itself"}},
		{
			"a database in /var",
			layering.Layer{VarDatabase: "/var/lib/dpkg"},
			[]string{"the image has its package database in /var/lib/dpkg, which is the host's: where a host has that directory already, its own package manager does not see these packages (kedge pkg list does). Whoever builds the image should keep the database in /usr, and link it"},
		},
	} {
		if got := layerWarnings(&tc.layer); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
