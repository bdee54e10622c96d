package offline

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// Backend is a kind of sysroot, by kedge's name for it.
type Backend string

// The backends.
const (
	OSTree    Backend = "ostree"
	Composefs Backend = "composefs"
)

// Backends are all there are.
var Backends = []Backend{OSTree, Composefs}

// Flags are those with which such a sysroot is installed on any file system.
func (b Backend) Flags() []string {
	return []string{"--backend", string(b), "--allow-missing-verity", "--bootloader", "none"}
}

// Install makes a sysroot that runs an image and has been lived in: /etc differs
// from the image's defaults by a change, an addition and a removal.
func (b Backend) Install(t testing.TB, kedge, image string) string {
	t.Helper()
	sysroot := filepath.Join(t.TempDir(), "sysroot")
	if err := os.Mkdir(sysroot, 0o755); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{kedge, "install", "to-filesystem", "--image", image, "--karg", "root=LABEL=root", "--karg", "rw"}, b.Flags()...)
	Run(t, append(argv, sysroot)...)
	t.Cleanup(func() { Release(t, sysroot) })
	d := b.Deployments(t, sysroot)
	if len(d) != 1 {
		t.Fatalf("after the installation there are the deployments %v, want one", d)
	}
	for name, text := range map[string]string{"etc/edited.conf": "by the admin\n", "etc/added.conf": "by the admin\n"} {
		if err := os.WriteFile(filepath.Join(sysroot, d[0], name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(sysroot, d[0], "etc/hostname")); err != nil {
		t.Fatal(err)
	}
	return sysroot
}

// Deployments returns the directories of the deployments in boot order without
// asking kedge: libostree, or the boot entries, tell.
func (b Backend) Deployments(t testing.TB, sysroot string) (dirs []string) {
	t.Helper()
	if b == OSTree {
		for _, d := range OSTreeDeployments(t, sysroot) {
			dirs = append(dirs, d.Dir())
		}
		return dirs
	}
	// One digit in the sort-keys of bootc's entries tells their order.
	entries := menu(t, sysroot)
	slices.SortFunc(entries, func(x, y entry) int { return strings.Compare(x["sort-key"], y["sort-key"]) })
	for _, e := range entries {
		dirs = append(dirs, e.deployment(t, sysroot))
	}
	return dirs
}

// KedgeDeployments returns the same as kedge status says.
func (b Backend) KedgeDeployments(t testing.TB, kedge, sysroot string) (dirs []string) {
	t.Helper()
	var h v1.Host
	if err := json.Unmarshal([]byte(Run(t, kedge, "--sysroot", sysroot, "status", "--json")), &h); err != nil {
		t.Fatalf("kedge status --json: %v", err)
	}
	entries := h.Status.OtherDeployments
	if h.Status.Rollback != nil {
		entries = append(entries, *h.Status.Rollback)
	}
	slices.SortFunc(entries, func(x, y v1.BootEntry) int { return x.Kedge.Index - y.Kedge.Index })
	for _, e := range entries {
		if b == OSTree {
			dirs = append(dirs, Deployment{e.OSTree.Stateroot, e.OSTree.Checksum, e.OSTree.DeploySerial}.Dir())
		} else {
			dirs = append(dirs, "/state/deploy/"+e.Composefs.Verity)
		}
	}
	return dirs
}

// Fsck has the store checked: by libostree, or by kedge.
func (b Backend) Fsck(t testing.TB, kedge, sysroot string) {
	t.Helper()
	if b == OSTree {
		Run(t, "ostree", "fsck", "--quiet", "--repo="+sysroot+"/ostree/repo")
		return
	}
	Run(t, kedge, "--sysroot", sysroot, "fsck")
}

// StateDir is kedge's own directory.
func (b Backend) StateDir() string {
	return map[Backend]string{OSTree: "/ostree/kedge", Composefs: "/state/kedge"}[b]
}

// Indifferent reports whether a path may differ between runs that come to the
// same: the history has times, the loader's record a random token, locks have
// files, and directories that objects and refs lie in are not removed with the
// last of them.
func (b Backend) Indifferent(path, what string) bool {
	switch path {
	case b.StateDir() + "/history", b.StateDir() + "/loader", b.StateDir() + "/lock", "/ostree/lock":
		return true
	}
	return strings.HasPrefix(what, "40") && slices.ContainsFunc(
		[]string{"/ostree/repo/objects/", "/ostree/repo/refs/", "/composefs/objects/"},
		func(dir string) bool { return strings.HasPrefix(path, dir) })
}

// entry is a boot entry's keys and values.
type entry map[string]string

// menu reads the boot entries.
func menu(t testing.TB, sysroot string) (entries []entry) {
	t.Helper()
	names, err := filepath.Glob(sysroot + "/boot/loader/entries/*.conf")
	if err != nil || len(names) == 0 {
		t.Fatalf("no boot entry in %s/boot/loader/entries (%v)", sysroot, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		e := entry{"": name}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			e[key] = strings.TrimSpace(value)
		}
		entries = append(entries, e)
	}
	return entries
}

// deployment follows an entry as a boot loader and the initramfs do.
func (e entry) deployment(t testing.TB, sysroot string) (dir string) {
	t.Helper()
	for _, key := range []string{"linux", "initrd"} {
		if st, err := os.Stat(filepath.Join(sysroot, "boot", strings.TrimPrefix(e[key], "/boot"))); err != nil || st.Size() == 0 {
			t.Errorf("%s: %s %s is not there or empty (%v)", e[""], key, e[key], err)
		}
	}
	for arg := range strings.FieldsSeq(e["options"]) {
		if link, ok := strings.CutPrefix(arg, "ostree="); ok {
			target, err := filepath.EvalSymlinks(filepath.Join(sysroot, link))
			if err != nil {
				t.Fatalf("%s: %s leads nowhere: %v", e[""], arg, err)
			}
			dir = strings.TrimPrefix(target, sysroot)
		}
		if digest, ok := strings.CutPrefix(arg, "composefs="); ok {
			digest = strings.TrimPrefix(digest, "?")
			if _, err := os.Stat(filepath.Join(sysroot, "composefs/images", digest)); err != nil {
				t.Fatalf("%s: %s leads nowhere: %v", e[""], arg, err)
			}
			dir = "/state/deploy/" + digest
		}
	}
	return dir
}

// BootDefault returns the deployment that the next boot takes, as the boot
// entries say.
func (b Backend) BootDefault(t testing.TB, sysroot string) string {
	t.Helper()
	if b == Composefs {
		return b.Deployments(t, sysroot)[0]
	}
	// libostree numbers entries; the highest boots.
	entries := menu(t, sysroot)
	slices.SortFunc(entries, func(x, y entry) int { return y.version(t) - x.version(t) })
	return entries[0].deployment(t, sysroot)
}

// version is the number that libostree gives an entry; 0 for none.
func (e entry) version(t testing.TB) int {
	t.Helper()
	if e["version"] == "" {
		return 0
	}
	v, err := strconv.Atoi(e["version"])
	if err != nil {
		t.Fatalf("%s: %v", e[""], err)
	}
	return v
}
