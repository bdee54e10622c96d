package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/internal/testregistry"
	"github.com/kedge-os/kedge/pkg/fault"
)

// packageLab is what hack/lab/packages.sh makes, and a repository that counts
// what is asked of it.
type packageLab struct {
	dir   string
	url   string
	asked atomic.Int64
	down  atomic.Bool
	few   atomic.Bool // only the packages of rpm-signed
}

func newPackageLab(t testing.TB, engine string) *packageLab {
	t.Helper()
	if testing.Short() {
		t.Skip("makes roots with package managers, some minutes once, and installs packages in them")
	}
	lab.NeedRoot(t)
	lab.Need(t, "bwrap")
	dir, err := lab.Make(t.Context(), "packages.sh")
	must(t, err)
	l := &packageLab{dir: dir}
	files := http.FileServer(http.Dir(filepath.Join(dir, map[string]string{"apt": "deb", "dnf": "rpm"}[engine])))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.asked.Add(1)
		if l.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		if l.few.Load() {
			http.FileServer(http.Dir(filepath.Join(dir, "rpm-signed"))).ServeHTTP(w, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	l.url = srv.URL
	return l
}

// image is the lab's root of an engine with a kernel and more files.
func (l *packageLab) image(t testing.TB, engine string, version int, more ...smallimage.Entry) ociv1.Image {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(l.dir, engine+".tar"))
	must(t, err)
	layers := []ociv1.Layer{static.NewLayer(raw, types.OCIUncompressedLayer)}
	more = append(smallimage.Kernel("6.1.0-"+string(rune('0'+version))+"-test"), more...)
	more = append(more, smallimage.File("usr/lib/modules/.wh.6.0.0-lab", 0, "")) // the lab's own is in its place
	img, err := smallimage.Image(string(rune('0'+version))+".0", append(layers, layer(t, more))...)
	must(t, err)
	return img
}

// configure writes the repository into the /etc of the deployment at an index.
func (l *packageLab) configure(s *stage, index int) {
	s.write(s.etc(index, "apt/sources.list"), "deb [trusted=yes] "+l.url+" ./\n")
	s.write(s.etc(index, "yum.repos.d/lab.repo"), "[lab]\nname=lab\nbaseurl="+l.url+"\ngpgcheck=0\n")
}

func doPackages(o PackagesOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		o := o
		o.Verb = "pkg add"
		return s.on(func(h *Host) (any, error) { return h.ChangePackages(s.ctx, o) })
	}
}

func doListPackages(s *stage) (any, error) {
	return s.on(func(h *Host) (any, error) { return h.Packages(s.ctx, false) })
}

// wantFiles: the root at an index has paths, and lacks those with a "!".
func wantFiles(index int, paths ...string) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		h := s.open()
		defer h.Close()
		list, err := h.store.Deployments()
		must(t, err)
		for _, p := range paths {
			name, lacks := strings.CutPrefix(p, "!")
			if has, err := h.store.Exists(list[index].root, name); err != nil || has == lacks {
				t.Errorf("the root of deployment %d has %s: %v, %v", index, name, has, err)
			}
		}
	}
}

// nothingLeft: no mount and no session of an operation that ended.
func nothingLeft(t *testing.T, s *stage) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.dir, "*/kedge/packages/work/*"))
	must(t, err)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if len(left) > 0 || strings.Contains(string(mounts), s.dir+"/") && !strings.Contains(string(mounts), s.machine) {
		t.Errorf("left: %q\n%s", left, mounts)
	}
}

func packagesLife(t *testing.T, engine string) []step {
	l := newPackageLab(t, engine)
	other := map[string]string{"apt": "dnf", "dnf": "apt"}[engine]
	suffix := map[string]string{"apt": "*.deb", "dnf": "*.rpm"}[engine]
	push := func(s *stage, tag, engine string, version int, more ...smallimage.Entry) {
		s.refs[tag], _ = s.pushImage(tag, l.image(s.t, engine, version, more...))
	}
	var plain string // the root of the plain image
	var before []string
	root := func(s *stage) string {
		h := s.open()
		defer h.Close()
		list, err := h.store.Deployments()
		must(s.t, err)
		return list[0].root
	}
	quiet := func(t *testing.T, _ *stage) {
		t.Helper()
		if n := l.asked.Load(); n > 0 {
			t.Errorf("the repository was asked %d times", n)
		}
	}
	reset := act("", func(*stage) { l.asked.Store(0) })
	local := func(s *stage, name string) string {
		found, err := filepath.Glob(filepath.Join(l.dir, map[string]string{"apt": "deb", "dnf": "rpm/*"}[engine], name+suffix))
		if err != nil || len(found) == 0 {
			found, err = filepath.Glob(filepath.Join(l.dir, map[string]string{"apt": "deb", "dnf": "rpm"}[engine], name+suffix))
		}
		if err != nil || len(found) == 0 {
			s.t.Fatalf("no file of %s in %s", name, l.dir)
		}
		return found[0]
	}
	pushKeys := func(without bool) func(*stage) (any, error) {
		return func(s *stage) (any, error) {
			return s.on(func(h *Host) (any, error) {
				i, err := h.PushImage(s.ctx, PushOptions{Target: s.elsewhere + "/mine:keys", WithoutKeys: without})
				if i != nil {
					i.Image = "<elsewhere>"
				}
				return i, err
			})
		}
	}
	copied := act("", func(*stage) {})
	if engine == "apt" { // of the other, it would be the same
		copied = step{name: "copy to podman's storage", do: doCopyToStorage}
	}
	return []step{
		act("images", func(s *stage) {
			s.elsewhere = testregistry.Start(s.t)
			s.write(s.conf+"/registries.conf", fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry]]\nlocation = %q\ninsecure = true\n", s.registry, s.elsewhere))
			push(s, "a", engine, 1)
			push(s, "b", engine, 2)
			push(s, "other", other, 3)
			s.image("none", 4)
		}),
		{name: "install", do: doInstall("a", "rw")},
		act("repository", func(s *stage) { l.configure(s, 0); plain = root(s) }),
		{name: "list of nothing", do: doListPackages},
		{name: "add what is not there", do: doPackages(PackagesOptions{Add: []string{"lab-chian"}}), kind: fault.NotFound, check: nothingLeft},
		{name: "add a bad name", do: doPackages(PackagesOptions{Add: []string{"lab;chain"}}), kind: fault.Usage},
		{name: "add a file that is not there", do: doPackages(PackagesOptions{Add: []string{"/nowhere/x.deb"}}), kind: fault.NotFound},
		{name: "remove what was not added", do: doPackages(PackagesOptions{Remove: []string{"lab-chain"}}), kind: fault.NotFound},
		act("what there is", func(s *stage) { before = files(s) }),
		{name: "dry run", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}, DryRun: true}), check: func(t *testing.T, s *stage) {
			var added []string
			for _, p := range s.last.(*v1.Result).Packages.Added {
				added = append(added, p.Name)
			}
			if diff := cmp.Diff([]string{"lab-anchor", "lab-chain", "lab-link"}, added); diff != "" {
				t.Errorf("packages that would be added: %s", diff)
			}
			if diff := cmp.Diff(before, files(s)); diff != "" {
				t.Errorf("a dry run wrote: %s", diff)
			}
			nothingLeft(t, s)
		}},
		{name: "add with a failing scriptlet", do: doPackages(PackagesOptions{Add: []string{"lab-failing"}}), kind: fault.Scriptlet, check: nothingLeft},
		{name: "download", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}, DownloadOnly: true}), check: wantFiles(0, "!usr/bin/lab-chain")},
		reset,
		{name: "add from the cache", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}, CacheOnly: true}), check: func(t *testing.T, s *stage) {
			quiet(t, s)
			wantFiles(0, "usr/bin/lab-chain", "usr/bin/lab-link", "usr/bin/lab-anchor")(t, s)
			wantFiles(1, "!usr/bin/lab-chain")(t, s)
			nothingLeft(t, s)
		}},
		{name: "status with packages", do: doStatus},
		{name: "list", do: doListPackages},
		{name: "image list with packages", do: doImages},
		{name: "push to another registry", do: func(s *stage) (any, error) {
			return s.on(func(h *Host) (any, error) {
				i, err := h.PushImage(s.ctx, PushOptions{Target: s.elsewhere + "/mine:chain"})
				if i != nil {
					i.Image = "<elsewhere>"
				}
				return i, err
			})
		}, check: func(t *testing.T, s *stage) {
			other := *s.world
			other.dir, other.t = t.TempDir(), t
			r := other.install(s.elsewhere + "/mine:chain")
			if got := r.Image.ImageDigest; got != s.last.(*v1.StoredImage).Digest {
				t.Errorf("another host installed %s of what was pushed", got)
			}
			wantFiles(0, "usr/bin/lab-chain")(t, &stage{world: &other, ctx: s.ctx})
			_ = exec.Command("chattr", "-R", "-f", "-i", other.dir).Run()
		}},
		{name: "push of what has no packages", do: func(s *stage) (any, error) {
			return s.on(func(h *Host) (any, error) {
				return h.PushImage(s.ctx, PushOptions{Image: "nothing", Target: s.elsewhere + "/mine:no"})
			})
		}, kind: fault.NotFound},
		copied,
		act("damage", func(s *stage) { s.damageLargest() }),
		{name: "fsck --repair with packages", do: doFsck(FsckOptions{Repair: true}), check: func(t *testing.T, s *stage) {
			if c := s.last.(*v1.Check); len(c.Repaired) == 0 || len(c.Problems) > 0 {
				t.Errorf("fsck --repair = %+v, want all repaired", c)
			}
		}},
		{name: "add again", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}}), kind: fault.Conflict},
		{name: "add again, idempotent", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}, Idempotent: true})},
		reset,
		{name: "upgrade to the same", do: doUpgrade(UpgradeOptions{}), check: quiet},
		{name: "switch to an image without a package manager", do: doSwitch(SwitchOptions{Image: "none"}), kind: fault.Conflict},
		{name: "switch to another package manager", do: doSwitch(SwitchOptions{Image: "other"}), kind: fault.Conflict},
		{name: "switch keeps the packages", do: doSwitch(SwitchOptions{Image: "b"}), check: func(t *testing.T, s *stage) {
			wantFiles(0, "usr/bin/lab-chain", "usr/lib/modules/6.1.0-2-test/vmlinuz")(t, s)
			wantIntact(t, s)
			nothingLeft(t, s)
		}},
		reset,
		{name: "switch back takes the layer that is there", do: doSwitch(SwitchOptions{Image: "a"}), check: func(t *testing.T, s *stage) {
			quiet(t, s)
			wantFiles(0, "usr/bin/lab-chain", "usr/lib/modules/6.1.0-1-test/vmlinuz")(t, s)
		}},
		{name: "kargs keep the packages", do: doKargs(KargsOptions{Append: []string{"quiet"}})},
		{name: "add and remove at once", do: func(s *stage) (any, error) {
			return doPackages(PackagesOptions{Add: []string{local(s, "lab-bonus"), "lab-daemon", "lab-keys"}, Remove: []string{"lab-chain"}})(s)
		}, check: func(t *testing.T, s *stage) {
			wantFiles(0, "!usr/bin/lab-chain", "usr/bin/lab-bonus")(t, s)
			warned := strings.Join(s.last.(*v1.Result).Warnings, "\n")
			for _, want := range []string{"files in /var of lab-daemon are put there at the first boot", "/etc/ssh/ssh_host_lab_key"} {
				if !strings.Contains(warned, want) {
					t.Errorf("the warnings lack %q:\n%s", want, warned)
				}
			}
		}},
		{name: "push of an image that lacks keys", do: pushKeys(false), kind: fault.Conflict},
		{name: "push of it all the same", do: pushKeys(true)},
		{name: "list with a file", do: doListPackages},
		{name: "rollback brings the intent back", do: doRollback},
		{name: "list after the rollback", do: doListPackages},
		{name: "rollback again", do: doRollback},
		act("a new a", func(s *stage) { push(s, "a", engine, 5) }),
		{name: "plan upgrade", do: doPlan(PlanOptions{})},
		act("the repository is down", func(*stage) { l.down.Store(true) }),
		{name: "upgrade without the repository", do: doUpgrade(UpgradeOptions{}), kind: fault.Unavailable},
		act("the repository is up", func(*stage) { l.down.Store(false) }),
		{name: "upgrade keeps a local file", do: doUpgrade(UpgradeOptions{}), check: wantFiles(0, "usr/bin/lab-bonus", "usr/lib/modules/6.1.0-5-test/vmlinuz")},
		act("bootc's garbage collection", bootcCollects),
		{name: "rollback with packages", do: doRollback},
		{name: "upgrade to what was rolled back", do: doUpgrade(UpgradeOptions{}), kind: fault.Held},
		{name: "rollback undone", do: doRollback},
		{name: "remove", do: doPackages(PackagesOptions{Remove: []string{"lab-bonus", "lab-keys"}})},
		{name: "list without the file", do: doListPackages},
		act("the first a", func(s *stage) { push(s, "a", engine, 1) }),
		{name: "upgrade to the first", do: doUpgrade(UpgradeOptions{})},
		{name: "remove the last", do: doPackages(PackagesOptions{Remove: []string{"lab-daemon"}}), check: func(t *testing.T, s *stage) {
			if got := root(s); got != plain {
				t.Errorf("the root is %s, want that of the plain image, %s", got, plain)
			}
			wantIntact(t, s)
		}},
		{name: "status of the plain image", do: doStatus},
		{name: "cleanup", do: doCleanup(CleanupOptions{Rollback: true}), check: func(t *testing.T, s *stage) {
			if left, err := filepath.Glob(filepath.Join(s.dir, "*/kedge/packages")); err != nil || len(left) > 0 {
				t.Errorf("packages are kept that nothing needs: %q, %v", left, err)
			}
			wantIntact(t, s)
		}},
		{name: "history", do: doHistoryOfChanges},
	}
}

// files lists the sysroot's files and directories, but for what is kept of
// repositories.
func files(s *stage) (list []string) {
	s.t.Helper()
	err := filepath.WalkDir(s.dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, "/kedge/packages") {
			return filepath.SkipDir
		}
		line := name
		if !e.IsDir() {
			st, err := e.Info()
			if err != nil {
				return err
			}
			line += fmt.Sprint(" ", st.Size(), " ", st.ModTime())
		}
		list = append(list, line)
		return nil
	})
	must(s.t, err)
	return list
}

// doCopyToStorage copies the image of the next boot to a containers-storage, and
// has podman look at it.
func doCopyToStorage(s *stage) (any, error) {
	lab.Need(s.t, "podman")
	root := s.dir + ".storage"
	run, err := os.MkdirTemp("/run", "kedge-") // podman takes none with a long path
	must(s.t, err)
	defer func() {
		for unix.Unmount(root+"/overlay", unix.MNT_DETACH) == nil { // it is bound to itself
		}
		must(s.t, errors.Join(os.RemoveAll(root), os.RemoveAll(run)))
	}()
	const name = "localhost/mine:chain"
	r, err := s.on(func(h *Host) (any, error) {
		return h.CopyImage(s.ctx, PushOptions{Target: fmt.Sprintf("[overlay@%s+%s]%s", root, run, name)})
	})
	if err != nil {
		return nil, err
	}
	podman := func(args ...string) string {
		s.t.Helper()
		out, err := lab.Command(context.WithoutCancel(s.ctx), "podman", append([]string{"--root", root, "--runroot", run, "--storage-driver", "overlay"}, args...)...)
		if err != nil {
			s.t.Error(err)
		}
		return strings.TrimSpace(out)
	}
	image := r.(*v1.StoredImage)
	if got := podman("image", "inspect", "--format", "{{.Digest}}", name); got != image.Digest {
		s.t.Errorf("podman has %s, want %s", got, image.Digest)
	}
	mnt := podman("image", "mount", name)
	for _, file := range []string{"usr/bin/lab-chain", "usr/bin/lab-base"} {
		if _, err := os.Stat(filepath.Join(mnt, file)); err != nil {
			s.t.Error(err)
		}
	}
	podman("image", "unmount", "--force", name)
	image.Image = "<storage>"
	return image, nil
}

// TestPackages is TestConformance of packages, with each package manager.
func TestPackages(t *testing.T) {
	for _, engine := range []string{"apt", "dnf"} {
		t.Run(engine, func(t *testing.T) { conform(t, func(t *testing.T) []step { return packagesLife(t, engine) }) })
	}
}
