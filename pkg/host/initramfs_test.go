package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// small has dracut make an initramfs in a second or two.
var small = []string{"--modules", "base"}

func doInitramfs(o InitramfsOptions) func(*stage) (any, error) {
	return func(s *stage) (any, error) {
		return s.on(func(h *Host) (any, error) { return h.ChangeInitramfs(s.ctx, o) })
	}
}

// wantInitramfs: the root at an index has an initramfs that dracut made, or the
// image's own, which is a few bytes; the boot entry leads to it.
func wantInitramfs(index int, version string, own bool) func(*testing.T, *stage) {
	return func(t *testing.T, s *stage) {
		t.Helper()
		h := s.open()
		defer h.Close()
		list, err := h.store.Deployments()
		must(t, err)
		image, err := h.imageFiles(s.ctx, list[index].root)
		must(t, err)
		i := image.Lookup("usr/lib/modules/6.1.0-" + version + "-test/initramfs.img")
		if i == nil || (i.Size > 100_000) != own {
			t.Errorf("the initramfs of deployment %d is %+v, want one of the host's own: %v", index, i, own)
		}
		if got := ownInitramfs(list[index]) != nil; got != own {
			t.Errorf("the origin of deployment %d says that the initramfs was made here: %v", index, got)
		}
	}
}

// unchanged: the operation changed nothing.
func unchanged(t *testing.T, s *stage) {
	t.Helper()
	if r := s.last.(*v1.Result); r.Changed {
		t.Errorf("%+v, want no change", r)
	}
}

// initramfsSteps are what CI takes: an initramfs, and the way back.
func initramfsSteps(l *packageLab, engine string) []step {
	var plain string
	root := func(s *stage) string {
		h := s.open()
		defer h.Close()
		list, err := h.store.Deployments()
		must(s.t, err)
		return list[0].root
	}
	return []step{
		act("image", func(s *stage) { s.refs["a"], _ = s.pushImage("a", l.image(s.t, engine, 1)) }),
		{name: "install", do: doInstall("a", "rw"), check: wantInitramfs(0, "1", false)},
		act("root", func(s *stage) { l.configure(s, 0); plain = root(s) }),
		{name: "stock already", do: doInitramfs(InitramfsOptions{}), check: unchanged},
		{name: "what is no argument", do: doInitramfs(InitramfsOptions{Regenerate: true, Args: []string{"--hostonly"}}), kind: fault.Usage},
		{name: "what dracut does not know", do: doInitramfs(InitramfsOptions{Regenerate: true, Args: []string{"--no-such-option"}}), kind: fault.Conflict, check: nothingLeft},
		act("nothing asked", func(*stage) { l.asked.Store(0) }),
		{name: "regenerate", do: doInitramfs(InitramfsOptions{Regenerate: true, Args: small}), check: func(t *testing.T, s *stage) {
			wantInitramfs(0, "1", true)(t, s)
			wantInitramfs(1, "1", false)(t, s)
			wantIntact(t, s)
			nothingLeft(t, s)
			if n := l.asked.Load(); n > 0 {
				t.Errorf("the repository was asked %d times", n)
			}
		}},
		{name: "regenerate the same", do: doInitramfs(InitramfsOptions{Regenerate: true, Args: small}), check: unchanged},
		{name: "status", do: doStatus, check: func(t *testing.T, s *stage) {
			if e := s.last.(*v1.Host).Status.OtherDeployments[0]; e.Kedge.Initramfs == nil || !slices.Equal(e.Kedge.Initramfs.Args, small) || !e.Incompatible {
				t.Errorf("status = %+v", e.Kedge)
			}
		}},
		{name: "upgrade to the same", do: doUpgrade(UpgradeOptions{}), check: unchanged},
		{name: "kargs keep it", do: doKargs(KargsOptions{Append: []string{"quiet"}}), check: wantInitramfs(0, "1", true)},
		{name: "stock", do: doInitramfs(InitramfsOptions{}), check: func(t *testing.T, s *stage) {
			wantInitramfs(0, "1", false)(t, s)
			if got := root(s); got != plain {
				t.Errorf("the root is %s, want that of the plain image, %s", got, plain)
			}
			wantIntact(t, s)
		}},
		{name: "rollback brings it back", do: doRollback, check: wantInitramfs(0, "1", true)},
	}
}

// initramfsLife is the rest: with packages, over updates, and taken over.
func initramfsLife(t *testing.T, engine string) []step {
	l := newPackageLab(t, engine)
	push := func(tag string, version int, more ...smallimage.Entry) step {
		return act("image", func(s *stage) { s.refs[tag], _ = s.pushImage(tag, l.image(s.t, engine, version, more...)) })
	}
	return append(initramfsSteps(l, engine),
		step{name: "add a package", do: doPackages(PackagesOptions{Add: []string{"lab-chain"}}), check: func(t *testing.T, s *stage) {
			wantFiles(0, "usr/bin/lab-chain")(t, s)
			wantInitramfs(0, "1", true)(t, s)
		}},
		push("b", 2),
		step{name: "switch keeps both", do: doSwitch(SwitchOptions{Image: "b"}), check: func(t *testing.T, s *stage) {
			wantFiles(0, "usr/bin/lab-chain")(t, s)
			wantInitramfs(0, "2", true)(t, s)
		}},
		act("the repository is down", func(*stage) { l.down.Store(true) }),
		step{name: "switch back takes the layer that is there", do: doSwitch(SwitchOptions{Image: "a"}), check: wantInitramfs(0, "1", true)},
		act("the repository is up", func(*stage) { l.down.Store(false) }),
		push("a", 5),
		step{name: "upgrade", do: doUpgrade(UpgradeOptions{}), check: wantInitramfs(0, "5", true)},
		step{name: "remove the package", do: doPackages(PackagesOptions{Remove: []string{"lab-chain"}}), check: func(t *testing.T, s *stage) {
			wantFiles(0, "!usr/bin/lab-chain")(t, s)
			wantInitramfs(0, "5", true)(t, s)
		}},
		push("none", 3, smallimage.File("usr/bin/.wh.dracut", 0, "")),
		step{name: "switch to an image without dracut", do: doSwitch(SwitchOptions{Image: "none"}), kind: fault.Held, check: wantInitramfs(0, "5", true)},
		step{name: "stock again", do: doInitramfs(InitramfsOptions{}), check: wantInitramfs(0, "5", false)},
		act("dracut's configuration", func(s *stage) { s.write(s.etc(0, "dracut.conf.d/mine.conf"), "add_drivers+=\" nvme \"\n") }),
		record("\n[rpmostree]\nregenerate-initramfs=true\ninitramfs-args=--modules;base;\n"),
		step{name: "upgrade of what rpm-ostree made with the host's configuration", do: doUpgrade(UpgradeOptions{}), kind: fault.Conflict},
		act("no configuration", func(s *stage) { must(s.t, os.Remove(s.etc(0, "dracut.conf.d/mine.conf"))) }),
		step{name: "upgrade of what rpm-ostree made", do: doUpgrade(UpgradeOptions{}), check: wantInitramfs(0, "5", true)},
		step{name: "status of it", do: doStatus},
	)
}

// record adds to the origin file of the first deployment.
func record(text string) step {
	return act("origin", func(s *stage) {
		h := s.open()
		list, err := h.store.Deployments()
		must(s.t, err)
		h.Close()
		name := s.path(list[0].id, "") + ".origin"
		if s.backend == "composefs" {
			name = filepath.Join(s.path(list[0].id, ""), list[0].root+".origin")
		}
		old, err := os.ReadFile(name)
		must(s.t, err)
		must(s.t, os.WriteFile(name, append(old, text...), 0o644))
	})
}

// TestInitramfs: with apt, and in the night the whole with both.
func TestInitramfs(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		conform(t, func(t *testing.T) []step { return initramfsSteps(newPackageLab(t, "apt"), "apt") })
		return
	}
	for _, engine := range []string{"apt", "dnf"} {
		t.Run(engine, func(t *testing.T) { conform(t, func(t *testing.T) []step { return initramfsLife(t, engine) }) })
	}
}

// TestInitramfsBooted: on a host that runs, it is staged.
func TestInitramfsBooted(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("runs dracut once more on each backend; KEDGE_NIGHTLY=1")
	}
	conform(t, func(t *testing.T) []step {
		l := newPackageLab(t, "apt")
		return []step{
			act("image", func(s *stage) { s.refs["a"], _ = s.pushImage("a", l.image(s.t, "apt", 1)) }),
			{name: "install", do: doInstall("a", "rw")},
			act("boot", func(s *stage) { s.boot() }),
			{name: "regenerate stages", do: doInitramfs(InitramfsOptions{Regenerate: true, Args: small}), check: wantInitramfs(1, "1", false)},
			{name: "status with a staged one", do: doStatus},
			act("shutdown", func(s *stage) { s.shutdown() }),
			{name: "status after the reboot", do: doStatus, check: wantInitramfs(0, "1", true)},
			{name: "stock stages", do: doInitramfs(InitramfsOptions{})},
			act("shutdown", func(s *stage) { s.shutdown() }),
			{name: "status of the plain image", do: doStatus, check: wantInitramfs(0, "1", false)},
		}
	})
}

// TestInitramfsRecord: an origin has the initramfs in rpm-ostree's group and
// gives it back; of rpm-ostree's own, what means the same to kedge.
func TestInitramfsRecord(t *testing.T) {
	for _, tc := range []struct {
		text   string
		args   []string // nil: the image's own
		theirs int      // changes that cannot be carried over, if another program's
	}{
		{"regenerate-initramfs=true\n", []string{}, 0},
		{"regenerate-initramfs=true\ninitramfs-args=--add-drivers;nvme vfio-pci;\n", []string{"--add-drivers", "nvme vfio-pci"}, 0},
		{"regenerate-initramfs=true\ninitramfs-args=-I;/etc/crypttab;\n", []string{"-I", "/etc/crypttab"}, 2},
		{"regenerate-initramfs=true\ninitramfs-args=--hostonly;\n", []string{"--hostonly"}, 2},
		{"regenerate-initramfs=true\ninitramfs-etc=/etc/crypttab;\n", []string{}, 1},
		{"regenerate-initramfs=false\n", nil, 0},
		{"initramfs-args=-v;\n", nil, 1},
	} {
		f, err := keyfile.Parse("[rpmostree]\n" + tc.text)
		must(t, err)
		i := readInitramfs(f)
		if (i == nil) != (tc.args == nil) || i != nil && !slices.Equal(i.Args, tc.args) {
			t.Errorf("%q is read as %+v", tc.text, i)
		}
		if changes := foreignChanges(f, false); len(changes) != tc.theirs {
			t.Errorf("%q cannot be carried over: %q, want %d", tc.text, changes, tc.theirs)
		}
		if i == nil {
			continue
		}
		written := &keyfile.File{}
		(&packageRecord{base: "sha256:00", packageIntent: packageIntent{initramfs: i}}).write(written)
		back := readPackages(written)
		if back == nil || !sameInitramfs(back.initramfs, i) {
			t.Errorf("%q comes back as %+v", tc.text, back)
		}
		if changes := foreignChanges(written, true); len(changes) > 0 {
			t.Errorf("kedge's own record is taken for another program's: %q", changes)
		}
	}
}

// TestInitramfsIdentity: a root with another initramfs is another one to the
// quarantine, which knows roots by their lock.
func TestInitramfsIdentity(t *testing.T) {
	seen := map[string]bool{}
	for _, i := range []*layering.Initramfs{nil, {}, {Args: []string{"--add-drivers", "nvme"}}} {
		sum, err := lockDigest(&layering.Lock{Engine: "apt", Initramfs: i})
		must(t, err)
		d := &deployment{origin: origin{record: &packageRecord{lock: sum}}}
		if id := identity(d); id.Packages == "" || seen[id.Packages] {
			t.Errorf("with the initramfs %+v, the root is known as %+v", i, id)
		}
		seen[sum] = true
	}
}
