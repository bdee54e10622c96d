package sdboot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/fault"
)

func program(text string) []byte { return loadertest.PE(infoSection, text) }

func sdboot(version string) []byte { return loadertest.Program(version) }

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		data    []byte
		version string
		ok      bool
	}{
		{sdboot("257.9-1~deb13u1"), "257.9-1~deb13u1", true},
		{program("#### LoaderInfo: systemd-stub 257 ####"), "", false},
		{program(infoBegin + "257"), "257", false},
		{[]byte("MZ"), "", false},
		{nil, "", false},
	} {
		if v, ok := Version(c.data); ok != c.ok || ok && v != c.version {
			t.Errorf("version is %q, %v, want %q, %v", v, ok, c.version, c.ok)
		}
	}
}

func FuzzVersion(f *testing.F) {
	f.Add(sdboot("257"))
	f.Add([]byte("MZ"))
	f.Fuzz(func(_ *testing.T, data []byte) { Version(data) })
}

func image(version string) fstest.MapFS {
	return fstest.MapFS{programDir + "/systemd-bootx64.efi": {Data: sdboot(version)}}
}

func TestUpdate(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	own, fallback := targets("amd64")
	want := func(what string, name string, data []byte) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %s is %q, %v", what, name, got, err)
		}
	}
	step := func(what, version string, changed bool) {
		t.Helper()
		got, err := l.Update(image(version))
		if err != nil || got != changed {
			t.Errorf("%s: changed is %v, %v", what, got, err)
		}
	}
	if Installed(l.root, "amd64") {
		t.Error("an empty partition has systemd-boot")
	}
	step("installed", "257.1", true)
	want("installed", own, sdboot("257.1"))
	want("installed", fallback, sdboot("257.1"))
	if !Installed(l.root, "amd64") {
		t.Error("systemd-boot is not found where it was installed")
	}
	check(t, os.WriteFile(filepath.Join(dir, "loader/loader.conf"), []byte("timeout 9\n"), 0o644))
	step("the same", "257.1", false)
	step("an older one", "256.20", false)
	want("an older one", fallback, sdboot("257.1"))
	step("a newer one", "257.10", true)
	want("a newer one", own, sdboot("257.10"))
	want("a newer one", fallback, sdboot("257.10"))
	want("a newer one", "loader/loader.conf", []byte("timeout 9\n"))
	// Killed between the two copies.
	check(t, os.WriteFile(filepath.Join(dir, fallback), sdboot("257.1"), 0o644))
	check(t, os.WriteFile(filepath.Join(dir, filepath.Dir(fallback), "KEDGE.TMP"), []byte("half"), 0o644))
	step("continued", "257.10", true)
	want("continued", fallback, sdboot("257.10"))
	if left, _ := filepath.Glob(filepath.Join(dir, "EFI/*/KEDGE.TMP")); left != nil {
		t.Errorf("left over: %q", left)
	}
	check(t, os.WriteFile(filepath.Join(dir, fallback), []byte("another loader"), 0o644))
	step("beside another loader", "258", true)
	want("beside another loader", fallback, []byte("another loader"))
	want("beside another loader", own, sdboot("258"))
	if _, err := l.Update(fstest.MapFS{}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an image without the program: %v, want not found", err)
	}
	if _, err := l.Update(fstest.MapFS{programDir + "/systemd-bootx64.efi": {Data: []byte("MZ")}}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("an image with a broken program: %v, want corrupt", err)
	}
}
