package layering_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// scripted builds a package of nothing but a scriptlet that is run after it is
// there.
func (w *world) scripted(t *testing.T, name, script string) string {
	t.Helper()
	if w.engine == "apt" {
		return deb(t, name, script)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, name+".spec"), "Name: "+name+"\nVersion: 1\nRelease: 1\nSummary: a package of the lab\nLicense: MIT\nBuildArch: noarch\nAutoReqProv: no\n%description\nA package of the lab.\n%post\n"+script+"\n%files\n")
	root := labRoot(t, w.made, "dnf") // that of dnf5 has no rpmbuild
	if _, err := lab.Command(t.Context(), "bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/var",
		"--bind", dir, "/run/build", "--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin", "--setenv", "HOME", "/tmp",
		"rpmbuild", "-bb", "--quiet", "--define", "_topdir /tmp/rpmbuild", "--define", "_tmppath /tmp", "--define", "_dbpath /tmp/rpmdb",
		"--define", "_rpmdir /run/build", "--define", "_rpmfilename %%{NAME}.rpm", "/run/build/"+name+".spec"); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name+".rpm")
}

// changedBase makes the base one of which a script, run in its directory, changed
// names: files are those of the lab's root.
func (w *world) changedBase(t *testing.T, script string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if _, err := lab.Command(t.Context(), "sh", "-ec", `cp -al "$1" "$2"; cd "$2"; `+script, "sh", w.base.Root, root); err != nil {
		t.Fatal(err)
	}
	w.base.Root = root
}

// TestHostCredentials: repositories are read with the credentials of this host's
// /etc; no transaction sees them, and no layer has them.
func TestHostCredentials(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		const secret = "of-this-host"
		files := http.FileServer(http.Dir(filepath.Join(w.made, map[string]string{"apt": "deb", "dnf": "rpm"}[w.engine])))
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if user, password, ok := r.BasicAuth(); !ok || user != "lab" || password != secret {
				rw.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
				http.Error(rw, "log in", http.StatusUnauthorized)
				return
			}
			files.ServeHTTP(rw, r)
		}))
		defer srv.Close()
		w.configure(t, srv.URL)
		if _, err := w.add(t, layering.Request{Install: []string{"lab-anchor"}}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("without credentials: %v (%v), want unavailable", err, fault.KindOf(err))
		}
		write(t, filepath.Join(w.etc, "apt/auth.conf.d/lab.conf"), "machine "+srv.URL+" login lab password "+secret+"\n")
		write(t, filepath.Join(w.etc, "yum.repos.d/lab.repo"), "[lab]\nname=lab\nbaseurl="+srv.URL+"\ngpgcheck=0\nusername=lab\npassword="+secret+"\n")
		write(t, filepath.Join(w.etc, "pki/entitlement/key.pem"), secret+"\n")
		write(t, filepath.Join(w.etc, "hosts"), "127.0.0.1 "+secret+"\n")
		spy := w.scripted(t, "lab-reader", "mkdir -p /usr/share/lab\nfind / -xdev -type f -exec grep -ls "+secret+" {} + >/usr/share/lab/found\nexit 0\n")
		r, err := w.add(t, layering.Request{Install: []string{"lab-anchor"}, Files: []string{spy}})
		if err != nil {
			t.Fatal(err)
		}
		r.has(t, "usr/bin/lab-anchor", "usr/share/lab/found")
		// The package manager keeps the scriptlet's own text.
		for name := range strings.Lines(content(r, "usr/share/lab/found")) {
			if !strings.Contains(name, "lab-reader") && !strings.Contains(name, "/sysimage/") && !strings.Contains(name, "/tmp/") {
				t.Errorf("a scriptlet finds this host's secret in %s", name)
			}
		}
		for name, e := range r.files {
			if strings.Contains(e.content, secret) && !strings.Contains(name, "lab-reader") && !strings.Contains(name, "/sysimage/") {
				t.Errorf("the layer has this host's secret in %s", name)
			}
		}
	})
}

// TestScriptletsChangeTheSystem: alternatives are links and a record that stays,
// and rules for labels are the base's too, which is told. Scriptlets have the
// rights that this takes and no more.
func TestScriptletsChangeTheSystem(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		file := w.scripted(t, "lab-system", `mkdir -p /var/lib/dpkg/alternatives
printf '#!/bin/sh\necho one\n' >/usr/bin/lab-alt-1
chmod 755 /usr/bin/lab-alt-1
update-alternatives --quiet --install /usr/bin/lab-alt lab-alt /usr/bin/lab-alt-1 50
mkdir -p /etc/selinux/lab/contexts/files
echo '/usr/bin/lab-alt-1 system_u:object_r:bin_t:s0' >/etc/selinux/lab/contexts/files/file_contexts
mkdir -p /usr/share/lab
grep -E '^(CapPrm|CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '[:blank:]' >/usr/share/lab/rights
`)
		r, err := w.add(t, layering.Request{Files: []string{file}})
		if err != nil {
			t.Fatal(err)
		}
		for name, target := range map[string]string{"usr/bin/lab-alt": "/etc/alternatives/lab-alt", "etc/alternatives/lab-alt": "/usr/bin/lab-alt-1"} {
			if e := r.files[name]; e == nil || e.Linkname != target {
				t.Errorf("%s: %+v, want a link to %s", name, e, target)
			}
		}
		record := map[string]string{"apt": "usr/lib/sysimage/dpkg/alternatives/lab-alt", "dnf": "usr/share/factory/var/lib/dpkg/alternatives/lab-alt"}[w.engine]
		if !strings.Contains(content(r, record), "/usr/bin/lab-alt-1") {
			t.Errorf("the record of the alternatives: %q", content(r, record))
		}
		// The ten of sandbox.go (capabilities(7)), which no program can add to, and
		// mode 2, a filter.
		const rights = "CapPrm:00000000800400ff\nCapEff:00000000800400ff\nNoNewPrivs:1\nSeccomp:2\n"
		if got := content(r, "usr/share/lab/rights"); got != rights {
			t.Errorf("a scriptlet runs with\n%swant\n%s", got, rights)
		}
		if !r.Relabels {
			t.Error("new rules for labels are not told of")
		}
		if r = w.mustAdd(t, "lab-anchor"); r.Relabels {
			t.Error("rules for labels are said to change, and nothing of them did")
		}
	})
}

// TestForgedDatabase: a scriptlet that takes a package out of the database is
// found out.
func TestForgedDatabase(t *testing.T) {
	for _, tool := range []string{"dnf", "dnf5"} {
		t.Run(tool, func(t *testing.T) {
			w := newWorld(t, tool)
			file := w.scripted(t, "lab-forger", "rm -f /usr/lib/sysimage/rpm/.rpm.lock\nrpm -e --justdb --nodeps --noscripts lab-editor\nexit 0\n")
			_, err := w.add(t, layering.Request{Files: []string{file}})
			if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "lab-editor") || !strings.Contains(err.Error(), "is missing") {
				t.Errorf("%v, want a conflict that names the package that is missing", err)
			}
		})
	}
}

// TestLocalInVar: where the image has /usr/local in /var, what a package puts
// there is the host's, as for every file of /var. It is the same for all, and in
// CI tried with one.
func TestLocalInVar(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if w.tool != "dnf5" && os.Getenv("KEDGE_NIGHTLY") == "" {
			t.Skip("tried with dnf5 alone; KEDGE_NIGHTLY=1")
		}
		w.changedBase(t, "rm -rf usr/local; ln -s ../var/usrlocal usr/local")
		r := w.mustAdd(t, "lab-local")
		if got := content(r, "usr/share/factory/var/usrlocal/bin/lab-local"); !strings.Contains(got, "lab-local 1.0") {
			t.Errorf("the program: %q", got)
		}
		if got := content(r, "usr/lib/tmpfiles.d/kedge-packages.conf"); !strings.Contains(got, `C "/var/usrlocal/bin/lab-local" 0755 0 0 -`) {
			t.Errorf("tmpfiles.d: %s", got)
		}
		if !slices.ContainsFunc(r.Factory, func(f layering.VarFile) bool { return f.Path == "/var/usrlocal/bin/lab-local" }) {
			t.Errorf("the files in /var are %+v", r.Factory)
		}
		r.lacks(t, "usr/local")
	})
}

// TestRPMs: what RPMs have and debs have not.
func TestRPMs(t *testing.T) {
	for _, tool := range []string{"dnf", "dnf5"} {
		t.Run(tool, func(t *testing.T) {
			w := newWorld(t, tool)
			s := w.open(t)
			defer w.close(t, s)
			for ask, want := range map[string]string{
				"lab-rich":          "lab-anchor 1.0, lab-bonus 1.0, lab-rich 1.0",
				"lab-pathy":         "lab-anchor 1.0, lab-pathy 1.0",
				"/usr/bin/lab-link": "lab-anchor 1.0, lab-link 2.1",
				"lab-caret":         "lab-caret 1.0^git2",
			} {
				lock, err := s.Resolve(t.Context(), layering.Request{Install: []string{ask}})
				if err != nil {
					t.Fatal(err)
				}
				if got := (&result{lock: lock}).installed(); got != want {
					t.Errorf("%s is locked as %s, want %s", ask, got, want)
				}
			}
			r, err := build(t.Context(), s, layering.Request{Install: []string{"lab-rich", "lab-filetrigger", "lab-triggers"}})
			if err != nil {
				t.Fatal(err)
			}
			if got := content(r, "usr/share/lab/filetriggered"); got != "one\n" {
				t.Errorf("the file trigger wrote %q", got)
			}
		})
	}
}

// TestSeparateBuilds: roots and packages that were built twice give one layer.
func TestSeparateBuilds(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("builds the lab's roots and packages once more, five minutes; KEDGE_NIGHTLY=1")
	}
	made := packages(t)
	cache := t.TempDir()
	// The same Debian packages: another day, a mirror has others.
	debians, err := filepath.Glob(filepath.Join(filepath.Dir(made), "debian-*.tar"))
	if err != nil || len(debians) == 0 {
		t.Fatalf("the cache has no Debian (%v)", err)
	}
	for _, d := range debians {
		if err := os.Symlink(d, filepath.Join(cache, filepath.Base(d))); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KEDGE_CACHE", cache)
	again, err := lab.Make(t.Context(), "packages.sh")
	if err != nil {
		t.Fatal(err)
	}
	if again == made {
		t.Fatalf("%s was not built again", made)
	}
	names := []string{"lab-chain", "lab-lua", "lab-config", "lab-daemon", "lab-shape", "lab-modern"}
	for _, tool := range []string{"apt", "dnf", "dnf5"} {
		t.Run(tool, func(t *testing.T) {
			var layers []*result
			for i, dir := range []string{made, again} {
				engine := strings.TrimSuffix(tool, "5")
				w := &world{tool: tool, engine: engine, made: dir, work: t.TempDir(), cache: t.TempDir(), etc: t.TempDir()}
				w.base = layering.Base{Root: unpack(t, filepath.Join(dir, tool+".tar"), filepath.Join(t.TempDir(), fmt.Sprint(i))), Created: created}
				w.configure(t, serve(t, filepath.Join(dir, map[string]string{"apt": "deb", "dnf": "rpm"}[engine])).URL)
				layers = append(layers, w.mustAdd(t, names...))
			}
			if layers[0].DiffID != layers[1].DiffID {
				t.Errorf("%s and %s", layers[0].DiffID, layers[1].DiffID)
				wantSameFiles(t, layers[0], layers[1])
			}
		})
	}
}
