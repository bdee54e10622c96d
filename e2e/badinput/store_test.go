package badinput

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
)

// TestStoresOfOthers are composefs repositories that a later program made:
// nothing in them is touched.
func TestStoresOfOthers(t *testing.T) {
	lab.NeedRoot(t)
	for _, tc := range []struct {
		name, from, to string
		kind           fault.Kind
		word           string
	}{
		{"an incompatible feature", `"incompatible": []`, `"incompatible": ["from-the-future"]`, fault.Conflict, "from-the-future"},
		{"a feature for writers", `"v1_erofs"`, `"v1_erofs", "from-the-future"`, fault.Conflict, "from-the-future"},
		{"a later format", `"version": 1`, `"version": 9`, fault.Conflict, "format 9"},
		{"no JSON", `{`, `[`, fault.Corrupt, "meta.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, offline.Composefs)
			_, ref := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
			meta := filepath.Join(w.sysroot, "composefs/meta.json")
			text, err := os.ReadFile(meta)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), tc.from, tc.to, 1)
			if changed == string(text) {
				t.Fatalf("meta.json has no %s:\n%s", tc.from, text)
			}
			// A sealed file cannot be written to.
			if err := os.Remove(meta); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(meta, []byte(changed), 0o644); err != nil {
				t.Fatal(err)
			}
			w.switchTo(t, ref).refuse(t, tc.kind, tc.word)
		})
	}
}

// TestNoVerity installs on a file system without fs-verity: nothing is written
// unless that is allowed, and then it is recorded. A host that insists on it and
// finds its store without is told so.
func TestNoVerity(t *testing.T) {
	lab.Need(t, "go", "mkfs.ext4", "mount", "umount")
	lab.NeedRoot(t)
	w := mountedWorld(t, offline.Composefs, 40)
	entries := func() string {
		names, err := filepath.Glob(w.sysroot + "/boot/loader/entries/*.conf")
		if err != nil || len(names) == 0 {
			t.Fatalf("no boot entries: %v", err)
		}
		text, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if !strings.Contains(entries(), " composefs=?") {
		t.Errorf("the boot entry does not record the missing fs-verity:\n%s", entries())
	}
	// The entry as it would be if the store had been sealed.
	names, _ := filepath.Glob(w.sysroot + "/boot/loader/entries/*.conf")
	if err := os.WriteFile(names[0], []byte(strings.Replace(entries(), "composefs=?", "composefs=", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	_, ref := layout(t, smallimage.New(t, "2", smallimage.OS(2)))
	w.switchTo(t, ref).refuse(t, fault.Conflict, "fs-verity")
	offline.Run(t, w.kedge, "--sysroot", w.sysroot, "switch", "--allow-missing-verity", ref)
	if out := offline.Run(t, w.kedge, "--sysroot", w.sysroot, "status", "--json"); !strings.Contains(out, `"missingVerityAllowed": true`) {
		t.Errorf("the status does not say that fs-verity may be missing:\n%s", out)
	}

	empty := t.TempDir()
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 20<<20); err != nil {
		t.Fatal(err)
	}
	offline.Run(t, "mkfs.ext4", "-q", "-O", "^verity", disk)
	offline.Run(t, "mount", "-o", "loop", disk, empty)
	t.Cleanup(func() { offline.Run(t, "umount", empty) })
	dir := filepath.Join(t.TempDir(), "good")
	smallimage.Layout(t, dir, map[string]v1.Image{"v1": smallimage.New(t, "1", smallimage.OS(1))})
	before := offline.List(t, empty)
	ask(t, nil, w.kedge, "install", "to-filesystem", "--backend", "composefs", "--image", "oci:"+dir+":v1", empty).
		refuse(t, fault.Conflict, "fs-verity", "--allow-missing-verity")
	if d := offline.Differences(offline.List(t, empty), before); d != "" {
		t.Errorf("the installation that was refused left something:%s", d)
	}
}
