package boot

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
)

// oracle is a version of the real ostree.
type oracle struct {
	name string
	argv []string
	// flat: entries are named ostree-N.conf, without the stateroot.
	flat bool
}

// oracles are the host's ostree (2022.7 on Debian 12), that of the lab's base
// image (2025.2) and that of Debian sid (2026.4 or later), the latter two run on
// this machine by their own dynamic linkers.
func oracles(t testing.TB) []oracle {
	t.Helper()
	needOSTree(t)
	lab.Need(t, "mmdebstrap")
	sid := []string{filepath.Join(lab.SourceDir(), "hack/lab/mkcomposefs.sh"), "ostree"}
	return []oracle{
		{name: "2022.7", argv: []string{"ostree"}},
		{name: "2025.2", argv: imageOSTree(t), flat: true},
		{name: "sid", argv: sid, flat: true},
	}
}

const libDir = "usr/lib/x86_64-linux-gnu"

func imageOSTree(t testing.TB) []string {
	t.Helper()
	cache, err := lab.CacheDir()
	must(t, err)
	dir := filepath.Join(cache, "ostree-trixie")
	argv := func(dir string) []string {
		lib := filepath.Join(dir, libDir)
		return []string{lib + "/ld-linux-x86-64.so.2", "--library-path", lib, dir + "/usr/bin/ostree"}
	}
	if _, err := os.Stat(dir); err == nil {
		return argv(dir)
	}
	blobs, err := filepath.Glob(lab.BaseImage(t) + "/blobs/sha256/*")
	must(t, err)
	largest, size := "", int64(0)
	for _, b := range blobs {
		if st, err := os.Stat(b); err == nil && st.Size() > size {
			largest, size = b, st.Size()
		}
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "ostree-*.tmp")
	must(t, err)
	defer os.RemoveAll(tmp)
	run(t, "tar", "-xzf", largest, "-C", tmp, "--wildcards", "usr/bin/ostree", libDir+"/*.so*")
	keep := map[string]bool{"ld-linux-x86-64.so.2": true}
	list := append(argv(tmp)[:3:3], "--list", tmp+"/usr/bin/ostree")
	for f := range strings.FieldsSeq(run(t, list...)) {
		if strings.HasPrefix(f, tmp) {
			real, err := filepath.EvalSymlinks(f)
			must(t, err)
			keep[filepath.Base(f)], keep[filepath.Base(real)] = true, true
		}
	}
	libs, err := os.ReadDir(filepath.Join(tmp, libDir))
	must(t, err)
	for _, l := range libs {
		if !keep[l.Name()] {
			must(t, os.RemoveAll(filepath.Join(tmp, libDir, l.Name())))
		}
	}
	if err := os.Rename(tmp, dir); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return argv(dir)
}

// admin runs "ostree admin" of an oracle on the sysroot.
func (o oracle) admin(w *world, args ...string) string {
	w.t.Helper()
	return run(w.t, append(append(append([]string(nil), o.argv...), "admin", "--sysroot="+w.dir), args...)...)
}

// cliRepo is a repository driven by the real ostree program.
type cliRepo struct {
	t    testing.TB
	path string
}

func run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := tryRun(argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryRun(argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "OSTREE_SYSROOT_OPTS=skip-sync", "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(argv, " "), err, out, stderr.String())
	}
	return string(out), nil
}

func (r *cliRepo) Checkout(_ context.Context, commit string, parent *os.Root, name string) error {
	dir, err := filepath.EvalSymlinks(parent.Name())
	if err != nil {
		return err
	}
	_, err = tryRun("ostree", "checkout", "--repo="+r.path, "-H", commit, filepath.Join(dir, name))
	return err
}

func (r *cliRepo) CommitVersion(commit string) (string, error) {
	if _, err := tryRun("ostree", "show", "--repo="+r.path, commit); err != nil {
		return "", fs.ErrNotExist
	}
	out, err := tryRun("ostree", "show", "--repo="+r.path, "--print-metadata-key=version", commit)
	if err != nil {
		return "", nil
	}
	return strings.Trim(strings.TrimSpace(out), "'"), nil
}

func (r *cliRepo) Refs(prefix string) (map[string]string, error) {
	refs := map[string]string{}
	heads := filepath.Join(r.path, "refs/heads")
	err := filepath.WalkDir(heads, func(p string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(heads, p)
		if err != nil || e.IsDir() || !strings.HasPrefix(name, prefix) {
			return err
		}
		commit, err := os.ReadFile(p)
		refs[name] = strings.TrimSpace(string(commit))
		return err
	})
	return refs, err
}

func (r *cliRepo) SetRefs(_ context.Context, refs map[string]string) error {
	for name, commit := range refs {
		file := filepath.Join(r.path, "refs/heads", name)
		if commit == "" {
			if err := os.Remove(file); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(commit+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// world is a sysroot on disk with a few commits in its repository.
type world struct {
	t    testing.TB
	dir  string // the sysroot
	host string // the pretended machine's root
	repo *cliRepo
}

func needOSTree(t testing.TB) {
	t.Helper()
	lab.NeedRoot(t)
	lab.Need(t, "ostree")
}

func newWorld(t testing.TB) *world {
	t.Helper()
	needOSTree(t)
	w := &world{t: t, dir: t.TempDir(), host: t.TempDir()}
	t.Cleanup(func() {
		// Deployments are immutable; the test's own clean-up could not remove them.
		_, _ = tryRun("chattr", "-R", "-f", "-i", w.dir)
	})
	if err := Init(w.dir); err != nil {
		t.Fatal(err)
	}
	w.repo = &cliRepo{t: t, path: filepath.Join(w.dir, "ostree/repo")}
	run(t, "ostree", "init", "--mode=bare", "--repo="+w.repo.path)
	return w
}

// tree is a root as path → content; a path that ends with "/" is a directory,
// content that starts with "->" a symlink.
type tree map[string]string

func osTree(kernel string) tree {
	return tree{
		"usr/lib/modules/6.1.0/vmlinuz":       kernel,
		"usr/lib/modules/6.1.0/initramfs.img": "initramfs of " + kernel,
		"usr/lib/os-release":                  "ID=test\nPRETTY_NAME=\"Test OS\"\n",
		"usr/lib/tmpfiles.d/":                 "",
		"usr/bin/hello":                       "hello",
		"usr/etc/conf":                        "default",
		"usr/etc/app/app.conf":                "app default",
		"usr/etc/link":                        "->conf",
		"usr/lib/empty":                       "",
		"boot/":                               "",
		"sysroot/":                            "",
		"var/":                                "",
		"ostree":                              "->sysroot/ostree",
	}
}

func (t tree) with(change tree) tree {
	out := tree{}
	for k, v := range t {
		out[k] = v
	}
	for k, v := range change {
		out[k] = v
	}
	return out
}

func (t tree) without(names ...string) tree {
	out := t.with(nil)
	for _, n := range names {
		delete(out, n)
	}
	return out
}

func (t tree) write(tb testing.TB, dir string) {
	tb.Helper()
	for name, content := range t {
		p := filepath.Join(dir, name)
		must(tb, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case strings.HasSuffix(name, "/"):
			must(tb, os.MkdirAll(p, 0o755))
		case strings.HasPrefix(content, "->"):
			must(tb, os.Symlink(content[2:], p))
		default:
			mode := fs.FileMode(0o644)
			if strings.HasPrefix(name, "usr/sbin/") {
				mode = 0o755
			}
			must(tb, os.WriteFile(p, []byte(content), mode))
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// commit stores a tree and returns its checksum.
func (w *world) commit(t tree, version string) string {
	w.t.Helper()
	dir := w.t.TempDir()
	t.write(w.t, dir)
	args := []string{
		"ostree", "commit", "--repo=" + w.repo.path, "--orphan", "--owner-uid=0", "--owner-gid=0",
		"--no-xattrs", "--timestamp=2020-01-01T00:00:00Z", "--tree=dir=" + dir,
	}
	if version != "" {
		args = append(args, "--add-metadata-string=version="+version)
	}
	return strings.TrimSpace(run(w.t, args...))
}

func (w *world) options() Options {
	return Options{Repo: w.repo, Host: w.host, NoSync: true, Logger: slog.New(slog.DiscardHandler), Arch: "x86_64"}
}

// open opens and locks the sysroot.
func (w *world) open() *Sysroot {
	w.t.Helper()
	s, err := Open(w.dir, w.options())
	must(w.t, err)
	w.t.Cleanup(s.Close)
	must(w.t, s.Lock(context.Background()))
	return s
}

func origin(w *world) *keyfile.File {
	f, err := keyfile.Parse("[origin]\nrefspec=test\n")
	must(w.t, err)
	return f
}

// deploy makes a commit the default, as an installer or an offline upgrade does.
func (w *world) deploy(s *Sysroot, commit, stateroot string) *Deployment {
	w.t.Helper()
	ctx := context.Background()
	r := DeployRequest{Stateroot: stateroot, Commit: commit, Origin: origin(w), Merge: s.MergeFor(stateroot)}
	d, err := s.Deploy(ctx, r)
	must(w.t, err)
	must(w.t, s.Write(ctx, s.With(d, Retention{Merge: r.Merge})))
	must(w.t, s.Cleanup(ctx))
	return s.Deployments()[0]
}

func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	must(w.t, err)
	return string(b)
}

func (w *world) write(name, content string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o755))
	must(w.t, os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644))
}
