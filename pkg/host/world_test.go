package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/internal/testregistry"
	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// world is a sysroot in the making, a registry with images for it, and a
// machine that may be booted from it.
type world struct {
	t        testing.TB
	backend  string
	dir      string // the sysroot
	machine  string // the pretended machine's root
	registry string
	conf     string // policy.json and registries.conf
	now      time.Time
	mounts   []string
	anyESP   bool // Config.AnyESP
}

func newWorld(t testing.TB) *world { return newWorldOf(t, "ostree") }

// onBoth runs a test on a world of each backend.
func onBoth(t *testing.T, test func(*testing.T, *world)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { test(t, newWorldOf(t, b.name)) })
	}
}

func newWorldOf(t testing.TB, backend string) *world {
	t.Helper()
	lab.NeedRoot(t)
	lab.Need(t, "chattr")
	w := &world{
		t: t, backend: backend, dir: t.TempDir(), machine: t.TempDir(), conf: t.TempDir(), registry: testregistry.Start(t),
		now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
	}
	w.write(w.conf+"/policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	w.write(w.conf+"/registries.conf", fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", w.registry))
	t.Cleanup(func() {
		w.unmount()
		// Deployments are immutable; the test's own clean-up could not remove them.
		_ = exec.Command("chattr", "-R", "-f", "-i", w.dir).Run()
	})
	return w
}

func (w *world) write(path, text string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(w.t, os.WriteFile(path, []byte(text), 0o644))
}

func (w *world) config() Config {
	return Config{
		Sysroot: w.dir, Machine: w.machine, NoSync: true, AnyESP: w.anyESP,
		Clock: func() time.Time { w.now = w.now.Add(time.Minute); return w.now },
		Images: ocibridge.Options{
			PolicyFile: w.conf + "/policy.json", RegistriesConf: w.conf + "/registries.conf", CertDir: w.conf,
			Retry: ocibridge.Retry{Attempts: 1, Wait: time.Millisecond}, Architecture: "amd64",
		},
	}
}

// push puts a version of the small OS, with more files, into the registry and
// returns its reference and digest.
func (w *world) push(tag string, version int, more ...smallimage.Entry) (ref, digest string) {
	w.t.Helper()
	return w.pushImage(tag, image(w.t, version, more...))
}

func (w *world) pushImage(tag string, img ociv1.Image) (ref, digest string) {
	w.t.Helper()
	ref = w.registry + "/os:" + tag
	testregistry.Push(w.t, ref, img)
	d, err := img.Digest()
	must(w.t, err)
	return ref, d.String()
}

// image is a version of the small OS with a second layer of more files.
func image(t testing.TB, version int, more ...smallimage.Entry) ociv1.Image {
	t.Helper()
	layers := []ociv1.Layer{layer(t, smallimage.OS(version))}
	if len(more) > 0 {
		layers = append(layers, layer(t, more))
	}
	img, err := smallimage.Image(fmt.Sprintf("%d.0", version), layers...)
	must(t, err)
	return img
}

func layer(t testing.TB, entries []smallimage.Entry) ociv1.Layer {
	t.Helper()
	raw, err := smallimage.Tar(entries)
	must(t, err)
	l, err := smallimage.NewLayer(smallimage.Gzip(raw), raw)
	must(t, err)
	return l
}

func (w *world) install(ref string, kargs ...string) *v1.Result {
	w.t.Helper()
	r, err := Install(context.Background(), w.config(), w.options(ref, kargs...))
	must(w.t, err)
	return r
}

// options install without fs-verity: whether the file system of the tests has it
// makes no difference to what they are about.
func (w *world) options(ref string, kargs ...string) InstallOptions {
	return InstallOptions{Image: ref, Kargs: kargs, Backend: w.backend, AllowMissingVerity: true}
}

// path returns where a file of a deployment is, on composefs one of /etc.
func (w *world) path(id, name string) string {
	if w.backend == "composefs" {
		return filepath.Join(w.dir, "state/deploy", id[:128], name)
	}
	stateroot, rest, _ := strings.Cut(id, "/")
	return filepath.Join(w.dir, "ostree/deploy", stateroot, "deploy", rest, name)
}

func (w *world) open() *Host {
	w.t.Helper()
	h, err := Open(context.Background(), w.config())
	must(w.t, err)
	w.t.Cleanup(h.Close) // closing twice is fine
	return h
}

// do opens the host, runs one operation and closes it, as a command does.
func (w *world) do(op func(*Host) (*v1.Result, error)) *v1.Result {
	w.t.Helper()
	r, err := w.try(op)
	must(w.t, err)
	return r
}

func (w *world) try(op func(*Host) (*v1.Result, error)) (*v1.Result, error) {
	w.t.Helper()
	h, err := Open(context.Background(), w.config())
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return op(h)
}

func (w *world) switchTo(ref string) *v1.Result {
	w.t.Helper()
	return w.do(func(h *Host) (*v1.Result, error) { return h.Switch(context.Background(), SwitchOptions{Image: ref}) })
}

func (w *world) status() *v1.Host {
	w.t.Helper()
	s, err := ReadStatus(context.Background(), w.config())
	must(w.t, err)
	return s
}

// boot pretends that the machine runs from the default deployment: its root
// becomes what ostree-prepare-root leaves.
func (w *world) boot() {
	w.t.Helper()
	h := w.open()
	list, err := h.store.Deployments()
	must(w.t, err)
	h.Close()
	w.bootFrom(list[0])
}

// bootFrom is boot of another line of the menu.
func (w *world) bootFrom(d *deployment) {
	w.t.Helper()
	w.unmount()
	must(w.t, os.RemoveAll(w.machine))
	for _, sub := range []string{"run", "proc/self"} {
		must(w.t, os.MkdirAll(filepath.Join(w.machine, sub), 0o755))
	}
	must(w.t, os.Symlink(w.dir, filepath.Join(w.machine, "sysroot")))
	must(w.t, os.Symlink(filepath.Join(w.dir, "boot"), filepath.Join(w.machine, "boot")))
	w.bind(w.path(d.id, "etc"), filepath.Join(w.machine, "etc"))
	w.bind(filepath.Join(w.dir, map[string]string{"ostree": "ostree/deploy/default/var", "composefs": composefsVar}[w.backend]), filepath.Join(w.machine, "var"))
	w.write(w.machine+"/proc/cmdline", strings.Join(append(d.kargs, "quiet"), " ")+"\n")
	w.write(w.machine+"/usr/lib/systemd/system/"+units.Finalize, "[Unit]\n")
	if w.backend == "composefs" {
		w.write(w.machine+"/proc/self/mountinfo", "21 1 0:20 / / ro,relatime - overlay composefs:"+d.root+" ro\n")
		return
	}
	st, err := os.Stat(w.path(d.id, ""))
	must(w.t, err)
	sys := st.Sys().(*syscall.Stat_t)
	devino := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, sys.Dev), sys.Ino)
	meta := object.Dict{{Key: "backing-root-device-inode", Value: object.Variant{Type: "(tt)", Data: devino}}}
	w.write(w.machine+"/run/ostree-booted", string(meta.Encode()))
}

func (w *world) bind(from, to string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(to, 0o755))
	must(w.t, unix.Mount(from, to, "", unix.MS_BIND, ""))
	w.mounts = append(w.mounts, to)
}

func (w *world) unmount() {
	for _, m := range w.mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			w.t.Errorf("unmount %s: %v", m, err)
		}
	}
	w.mounts = nil
}

// shutdown does what kedge's unit does at shutdown, then boots the default.
func (w *world) shutdown() {
	w.t.Helper()
	h, err := Open(context.Background(), w.config())
	must(w.t, err)
	must(w.t, h.Finalize(context.Background()))
	h.Close()
	w.boot()
}

// ostree runs the real program on the sysroot.
func (w *world) ostree(args ...string) string {
	w.t.Helper()
	lab.Need(w.t, "ostree")
	out, err := exec.Command("ostree", args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("ostree %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// agree checks that the real ostree sees the deployments that kedge sees, and
// that its fsck passes; of composefs, that every boot entry leads to a deployment
// with its image and back, and that kedge's fsck passes.
func (w *world) agree() {
	w.t.Helper()
	if w.backend == "composefs" {
		w.agreeComposefs()
		return
	}
	out := w.ostree("admin", "status", "--sysroot="+w.dir)
	var theirs []string
	for line := range strings.Lines(out) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "* "))
		if len(f) >= 2 && strings.Contains(f[1], ".") && len(f[1]) > 64 {
			theirs = append(theirs, f[0]+"/"+f[1])
		}
	}
	list, err := w.open().store.Deployments()
	must(w.t, err)
	var ours []string
	for _, d := range list {
		if !d.staged {
			ours = append(ours, d.id)
		}
	}
	if strings.Join(theirs, " ") != strings.Join(ours, " ") {
		w.t.Errorf("deployments of ostree admin status: %q, of kedge: %q", theirs, ours)
	}
	w.ostree("fsck", "--quiet", "--repo="+w.dir+"/ostree/repo")
}

// agreeComposefs reads the boot entries with nothing of kedge's.
func (w *world) agreeComposefs() {
	w.t.Helper()
	entries, err := filepath.Glob(w.dir + "/boot/loader/entries/*.conf")
	must(w.t, err)
	var theirs []string
	for _, name := range entries {
		text, err := os.ReadFile(name)
		must(w.t, err)
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if key == "linux" || key == "initrd" {
				if st, err := os.Stat(filepath.Join(w.dir, value)); err != nil || st.Size() == 0 {
					w.t.Errorf("%s: %s %s: %v", filepath.Base(name), key, value, err)
				}
			}
			for arg := range strings.FieldsSeq(value) {
				if image, ok := strings.CutPrefix(arg, "composefs="); ok {
					theirs = append(theirs, strings.TrimPrefix(image, "?"))
				}
			}
		}
	}
	h := w.open()
	list, err := h.store.Deployments()
	must(w.t, err)
	var ours []string
	for _, d := range list {
		if d.staged {
			continue
		}
		ours = append(ours, d.root)
		for _, dir := range []string{"composefs/images/" + d.root, "state/deploy/" + d.root + "/etc", "state/deploy/" + d.root + "/var"} {
			if _, err := os.Stat(filepath.Join(w.dir, dir)); err != nil {
				w.t.Errorf("deployment %s: %v", d.id, err)
			}
		}
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	if !slices.Equal(ours, theirs) {
		w.t.Errorf("images of the boot entries: %q, of kedge's deployments: %q", theirs, ours)
	}
	if c, err := h.Fsck(context.Background(), FsckOptions{}); err != nil || len(c.Problems) > 0 {
		w.t.Errorf("fsck: %v, %+v", err, c)
	}
	h.Close()
}

func (w *world) file(id, name string) string {
	w.t.Helper()
	data, err := os.ReadFile(w.path(id, name))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	must(w.t, err)
	return string(data)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, kind fault.Kind, text string) {
	t.Helper()
	if fault.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error = %v (%s), want one of kind %q about %q", err, fault.KindOf(err), kind, text)
	}
}
