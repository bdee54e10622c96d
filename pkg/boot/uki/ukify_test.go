package uki_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/uki"
)

// ukify has systemd's own program make a unified kernel image of a real kernel, in
// dir.
func ukify(t *testing.T, dir, cmdline string) (made []byte, kernel string, files map[string]string) {
	t.Helper()
	kernel, _, err := lab.BootFiles(lab.ComposefsBackendImage(t))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{"initrd": "no initrd", "os-release": "ID=test\nPRETTY_NAME=\"A Test\"\n"}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "os.efi")
	parts := lab.UKI{Kernel: kernel, Initramfs: filepath.Join(dir, "initrd"), OSRelease: filepath.Join(dir, "os-release"), Cmdline: cmdline}
	if err := parts.Make(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	if made, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	return made, kernel, files
}

// TestUkify reads what ukify makes.
func TestUkify(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a root with ukify, half a minute once")
	}
	lab.NeedRoot(t)
	lab.Need(t, "mmdebstrap", "bwrap")
	cmdline := "composefs=" + strings.Repeat("ab", 64) + ` rw "quoted words" quiet`
	data, kernel, files := ukify(t, t.TempDir(), cmdline)
	u, err := uki.Decode(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if u.Cmdline.String() != cmdline || u.OSRelease+"\n" != files["os-release"] || !strings.Contains(filepath.Dir(kernel), u.Version) ||
		u.Version == "" || !strings.Contains(u.SBAT, "systemd-stub") {
		t.Errorf("decoded %+v of %s", u, kernel)
	}
	linux, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(append(linux, files["initrd"]...))
	if got, err := u.BootDigest(); got != hex.EncodeToString(want[:]) || err != nil {
		t.Errorf("the boot digest is %s, %v, want %x: that of kernel and initrd", got, err, want)
	}
}
