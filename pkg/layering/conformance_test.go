package layering_test

import (
	"archive/tar"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

func TestDependencies(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		weak := "lab-bonus 1.0, lab-nice 1.0"
		if w.engine == "apt" {
			weak = "lab-nice 1.0" // the image's apt.conf wants no recommended packages
		}
		s := w.open(t)
		defer w.close(t, s)
		for _, tc := range []struct{ ask, want string }{
			{"lab-chain", "lab-anchor 1.0, lab-chain 1.0, lab-link 2.1"},
			{"lab-sender", "lab-postbird 1.0, lab-sender 1.0"},
			{"lab-modern", "lab-modern 1.0, lab-tool 2.0"},
			{"lab-nice", weak},
		} {
			lock, err := s.Resolve(t.Context(), layering.Request{Install: []string{tc.ask}})
			if err != nil {
				t.Fatal(err)
			}
			r := &result{lock: lock}
			if got := r.installed(); got != tc.want {
				t.Errorf("%s is locked as %q, want %q", tc.ask, got, tc.want)
			}
			for _, p := range lock.Install {
				if !strings.HasPrefix(p.Checksum, "sha256:") || p.Size == 0 || p.Repository == "" {
					t.Errorf("the lock lacks a checksum, a size or a repository: %+v", p)
				}
				if p.Requested != (p.Name == tc.ask) {
					t.Errorf("%s: requested is %v for %s", tc.ask, p.Requested, p.Name)
				}
			}
		}
	})
}

func TestInstallChain(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		r := w.mustAdd(t, "lab-chain")
		r.has(t, "usr/bin/lab-chain", "usr/bin/lab-link", "usr/bin/lab-anchor")
		for name, e := range r.files {
			for _, top := range []string{"var", "run", "tmp", "dev", "proc", "sys", "boot", "opt"} {
				if name == top || strings.HasPrefix(name, top+"/") {
					t.Errorf("the layer has %s", name)
				}
			}
			for key := range e.PAXRecords {
				if strings.Contains(key, "overlay") || strings.Contains(key, "selinux") {
					t.Errorf("%s carries %s", name, key)
				}
			}
		}
		t.Logf("%d entries, %d bytes", len(r.files), r.Size)
	})
}

func TestScriptletFails(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for name, words := range map[string][]string{
			"lab-failing":     {"lab-failing", "line 40 of the scriptlet", "the lab's scriptlet cannot go on"},
			"lab-failing-pre": {"lab-failing-pre", "the lab's scriptlet will not begin"},
		} {
			_, err := w.add(t, layering.Request{Install: []string{name}})
			if fault.KindOf(err) != fault.Scriptlet {
				t.Fatalf("%s: %v, want a failed scriptlet", name, err)
			}
			for _, word := range words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: the error lacks %q: %v", name, word, err)
				}
			}
		}
	})
}

func TestWhatPackagesPutIntoARoot(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		r := w.mustAdd(t, "lab-scripts", "lab-lua", "lab-config", "lab-daemon", "lab-shape", "lab-keys")
		for name, want := range map[string]string{
			"usr/share/lab/pre":                   "pre\n",
			"usr/share/lab/post":                  "post\n",
			"usr/share/lab/lua":                   "lua\n",
			"etc/lab.conf":                        "default = yes\n",
			"usr/share/factory/var/lib/labd/seed": "a file in /var\n",
			"usr/lib/opt/lab/bin/program":         "in /opt\n",
		} {
			if e := r.files[name]; e == nil || e.content != want {
				t.Errorf("%s: %+v, want %q", name, e, want)
			}
		}
		// /var is the host's: what it needs is made at boot.
		tmpfiles := content(r, "usr/lib/tmpfiles.d/kedge-packages.conf")
		labd := account(t, r, "user", "labd")
		for _, want := range []string{
			fmt.Sprintf(`d "/var/lib/labd" 0755 %d %d -`, labd, account(t, r, "group", "labd")),
			fmt.Sprintf(`C "/var/lib/labd/seed" 0644 %d %d -`, labd, account(t, r, "group", "labd")),
			`L "/var/lib/labd/link" - - - - seed`,
			`d "/var/log/labd" 0755 0 0 -`,
			`d "/var/cache/labd" 0755 0 0 -`,
			`L "/var/opt/lab" - - - - ../../usr/lib/opt/lab`,
		} {
			if !strings.Contains(tmpfiles, want+"\n") {
				t.Errorf("tmpfiles.d lacks %s:\n%s", want, tmpfiles)
			}
		}
		if strings.Contains(tmpfiles, "/var/log/labd/log") || strings.Contains(tmpfiles, "cached") {
			t.Errorf("logs or caches are kept:\n%s", tmpfiles)
		}
		r.lacks(t, "usr/share/factory/var/log/labd/log", "usr/share/factory/var/cache/labd/cached", "etc/machine-id", "etc/passwd-", "usr/sbin/policy-rc.d")
		// Users and groups, with the numbers that the layer's files carry.
		sysusers := content(r, "usr/lib/sysusers.d/00-kedge-packages.conf")
		for _, want := range []string{fmt.Sprintf("u labd %d:", labd), fmt.Sprintf("u lab-helper %d:", account(t, r, "user", "lab-helper"))} {
			if !strings.Contains(sysusers, want) {
				t.Errorf("sysusers.d lacks %q:\n%s", want, sysusers)
			}
		}
		if e := r.files["usr/share/lab/owned"]; e == nil || uint32(e.Uid) != account(t, r, "user", "lab-helper") {
			t.Errorf("the file of the new user: %+v", e)
		}
		r.has(t, "etc/systemd/system/multi-user.target.wants/lab-daemon.service")
		// Inodes.
		if e := r.files["usr/bin/lab-hard2"]; e == nil || e.Typeflag != tar.TypeLink || e.Linkname != "usr/bin/lab-hard" {
			t.Errorf("the hard link: %+v", e)
		}
		if e := r.files["usr/bin/lab-setuid"]; e == nil || e.Mode != 0o4755 {
			t.Errorf("the setuid program: %+v", e)
		}
		if w.engine == "dnf" {
			const version2 = "\x01\x00\x00\x02" // VFS_CAP_REVISION_2 and the effective bit
			if e := r.files["usr/bin/lab-ping"]; e == nil || !strings.HasPrefix(e.PAXRecords["SCHILY.xattr.security.capability"], version2) {
				t.Errorf("the file with a capability: %+v", e)
			}
		}
		// What must differ on each host is not in an image.
		if want := []string{"/etc/ssh/ssh_host_lab_key", "/etc/ssh/ssh_host_lab_key.pub"}; !slices.Equal(r.Secrets, want) {
			t.Errorf("secrets: %q, want %q", r.Secrets, want)
		}
		r.lacks(t, "etc/ssh/ssh_host_lab_key")
		// Whose files in /var are there once and for all.
		if want := (layering.VarFile{Path: "/var/lib/labd/seed", Package: "lab-daemon"}); !slices.Contains(r.Factory, want) {
			t.Errorf("files in /var: %+v, want %+v", r.Factory, want)
		}
	})
}

func content(r *result, name string) string {
	if e := r.files[name]; e != nil {
		return e.content
	}
	return ""
}

func account(t *testing.T, r *result, kind, name string) uint32 {
	t.Helper()
	for _, a := range r.Accounts {
		if a.Kind == kind && a.Name == name {
			return a.ID
		}
	}
	t.Fatalf("the layer has no %s %s: %+v", kind, name, r.Accounts)
	return 0
}

func TestAccountsKeepTheirNumbers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		first := w.mustAdd(t, "lab-daemon")
		lock := *first.lock
		lock.Accounts = nil
		for _, a := range first.Accounts {
			a.ID += 40
			f := strings.Split(a.Line, ":")
			f[2] = fmt.Sprint(a.ID)
			if a.Kind == "user" {
				f[3] = f[2]
			}
			a.Line = strings.Join(f, ":")
			lock.Accounts = append(lock.Accounts, a)
		}
		s := w.open(t)
		defer w.close(t, s)
		second, err := apply(t.Context(), s, &lock)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(lock.Accounts, second.Accounts); diff != "" {
			t.Errorf("the accounts of the lock are not those of the layer: %s", diff)
		}
		if e := second.files["usr/share/lab/owned"]; e == nil || uint32(e.Uid) != account(t, second, "user", "lab-helper") {
			t.Errorf("the file of the user: %+v", e)
		}
	})
}

func TestSameDigest(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		names := []string{"lab-chain", "lab-lua", "lab-config", "lab-daemon", "lab-shape", "lab-modern"}
		first := w.mustAdd(t, names...)
		// Another root: unpacked elsewhere at another time, its directories with
		// the times that another build of it gives them. Another cache; another
		// order of the names.
		other := *w
		other.base.Root = unpack(t, filepath.Join(w.made, w.tool+".tar"), filepath.Join(t.TempDir(), "other"))
		if _, err := lab.Command(t.Context(), "find", other.base.Root, "-type", "d", "-exec", "touch", "{}", "+"); err != nil {
			t.Fatal(err)
		}
		other.cache, other.work = t.TempDir(), t.TempDir()
		slices.Reverse(names)
		time.Sleep(1100 * time.Millisecond) // another second on the clock
		second := other.mustAdd(t, names...)
		if first.DiffID == second.DiffID {
			return
		}
		t.Errorf("%s and %s: the same packages on the same base give another layer", first.DiffID, second.DiffID)
		wantSameFiles(t, first, second)
	})
}

// wantSameFiles names the files in which two layers differ.
func wantSameFiles(t *testing.T, first, second *result) {
	t.Helper()
	for name, a := range first.files {
		b := second.files[name]
		switch {
		case b == nil:
			t.Errorf("%s is in one layer", name)
		case len(a.content) > 1<<16 && a.content != b.content:
			at := 0
			for at < min(len(a.content), len(b.content)) && a.content[at] == b.content[at] {
				at++
			}
			t.Errorf("%s differs from byte %d on, of %d and %d: %.64q, %.64q", name, at, len(a.content), len(b.content), a.content[at:], b.content[at:])
		case a.content != b.content || a.Mode != b.Mode || !a.ModTime.Equal(b.ModTime) || a.Uid != b.Uid:
			t.Errorf("%s differs: %v, %v\n%s", name, a.Header, b.Header, cmp.Diff(a.content, b.content))
		}
	}
}

func TestReplaceAndRemove(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		r := w.mustAdd(t, "lab-modern")
		if i := slices.IndexFunc(r.lock.Install, func(p layering.Package) bool { return p.Name == "lab-tool" }); i < 0 || !strings.Contains(r.lock.Install[i].Replaces, "1.0") {
			t.Errorf("the lock does not say that it replaces the base's lab-tool: %+v", r.lock.Install)
		}
		if got := content(r, "usr/bin/lab-tool"); !strings.Contains(got, "lab-tool 2.0") {
			t.Errorf("lab-tool in the layer: %q", got)
		}
		_, err := w.add(t, layering.Request{Install: []string{"lab-vi"}})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "lab-editor") {
			t.Errorf("a package that removes one of the base unasked: %v, want a conflict that names it", err)
		}
		r, err = w.add(t, layering.Request{Install: []string{"lab-vi"}, Remove: []string{"lab-editor"}})
		if err != nil {
			t.Fatal(err)
		}
		r.has(t, "usr/bin/lab-vi", "usr/bin/.wh.lab-editor")
		r, err = w.add(t, layering.Request{Remove: []string{"lab-editor"}})
		if err != nil {
			t.Fatal(err)
		}
		r.has(t, "usr/bin/.wh.lab-editor")
	})
}

// TestVersions: the package manager's order of versions decides, and a request
// may name one.
func TestVersions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		named := map[string]string{"apt": "lab-tilde=1.0~rc1", "dnf": "lab-tilde-1.0~rc1"}[w.engine]
		s := w.open(t)
		defer w.close(t, s)
		for ask, want := range map[string]string{"lab-dated": "1:0.9", "lab-tilde": "1.0", named: "1.0~rc1"} {
			lock, err := s.Resolve(t.Context(), layering.Request{Install: []string{ask}})
			if err != nil {
				t.Fatal(err)
			}
			p := lock.Install[0]
			if got := strings.TrimSuffix(strings.TrimPrefix(p.Version, "0:"), "-1"); got != want || !p.Requested {
				t.Errorf("%s is locked as %+v, want version %s, requested", ask, p, want)
			}
		}
	})
}

// TestInactive: what the base has stays as it is there.
func TestInactive(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		r := w.mustAdd(t, "lab-tool", "lab-anchor")
		if got := r.installed(); got != "lab-anchor 1.0" || !slices.Equal(r.lock.Inactive, []string{"lab-tool"}) {
			t.Errorf("locked: %s, inactive: %q", got, r.lock.Inactive)
		}
		r = w.mustAdd(t, "lab-tool")
		if len(r.lock.Install) != 0 || len(r.files) != 0 {
			t.Errorf("a request for what the base has locks %+v and gives %d files", r.lock.Install, len(r.files))
		}
	})
}

// TestOtherPlaces: what packages do beside unpacking files into /usr.
func TestOtherPlaces(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		settings := map[string]string{"apt": "lab-settings=2.0", "dnf": "lab-settings-2.0"}[w.engine]
		r := w.mustAdd(t, settings, "lab-local", "lab-trigger", "lab-triggers", "lab-tmpfiles", "lab-eraser", "lab-lua")
		for name, want := range map[string]string{
			"etc/lab-settings.conf":     "new\n", // nobody changed the base's: the new default
			"usr/local/bin/lab-local":   "#!/bin/sh\necho lab-local 1.0\n",
			"usr/share/lab/triggered":   "one\n",
			"usr/bin/.wh.lab-editor":    "",
			"usr/share/lab-triggers":    "",
			"usr/share/lab/eraser":      "erases a file of the base\n",
			"usr/share/doc/lab-trigger": "waits for files\n",
		} {
			if e := r.files[name]; e == nil || e.content != want {
				t.Errorf("%s: %+v, want %q", name, e, want)
			}
		}
		if w.engine == "dnf" {
			r.has(t, "usr/share/lab/pretrans")
		}
		if got := content(r, "usr/lib/tmpfiles.d/kedge-packages.conf"); strings.Contains(got, "lab-tmpfiles") {
			t.Errorf("a second line for what the package's own tmpfiles.d makes: %s", got)
		}
	})
}
