package lab

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEmulatorDied(t *testing.T) {
	for text, want := range map[string]bool{
		"[    3.4] Oops: int3: 0000\n[    3.5] Kernel panic - not syncing: Fatal exception in interrupt\n":     true,
		"[    4.0] Run /init as init process\n[   20.1] Kernel panic - not syncing: Attempted to kill init!\n": false,
		"[    4.0] Run /init as init process\n[   27.5] reboot: Restarting system\n":                           false,
		"": false,
	} {
		console := filepath.Join(t.TempDir(), "console.log")
		if err := os.WriteFile(console, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := emulatorDied(console); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
