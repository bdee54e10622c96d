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

// TestUkify reads what systemd's own program makes of a real kernel.
func TestUkify(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a root with ukify, half a minute once")
	}
	lab.NeedRoot(t)
	lab.Need(t, "mmdebstrap", "bwrap")
	kernel, _, err := lab.BootFiles(lab.ComposefsBackendImage(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]string{"initrd": "no initrd", "os-release": "ID=test\nPRETTY_NAME=\"A Test\"\n"}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmdline := "composefs=" + strings.Repeat("ab", 64) + ` rw "quoted words" quiet`
	out := filepath.Join(dir, "os.efi")
	made := lab.UKI{Kernel: kernel, Initramfs: filepath.Join(dir, "initrd"), OSRelease: filepath.Join(dir, "os-release"), Cmdline: cmdline}
	if err := made.Make(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
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
