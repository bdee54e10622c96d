package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFATAfterPowerCut: a partition that was not unmounted passes where the power
// was cut, and nothing else does.
func TestFATAfterPowerCut(t *testing.T) {
	Need(t, "mkfs.vfat", "fsck.fat")
	part := filepath.Join(t.TempDir(), "part.img")
	if _, err := Command(t.Context(), "mkfs.vfat", "-F", "32", "-C", part, "40960"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(at int64, b byte) {
		t.Helper()
		if _, err := f.WriteAt([]byte{b}, at); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name string, powerCut, sound bool) {
		t.Helper()
		if err := checkFAT(t.Context(), part, powerCut); (err == nil) != sound {
			t.Errorf("%s, power cut %v: %v", name, powerCut, err)
		}
	}
	check("clean", false, true)
	check("clean", true, true)
	const dirtyAt, reservedSectors, tableEntry = 65, 14, 4
	write(dirtyAt, 1)
	check("dirty", false, false)
	check("dirty", true, true)
	var boot [16]byte
	if _, err := f.ReadAt(boot[:], 0); err != nil {
		t.Fatal(err)
	}
	write(int64(boot[reservedSectors])*512+100*tableEntry, 1)
	check("dirty, and its allocation tables differ", true, false)
	write(dirtyAt, 0)
	check("its allocation tables differ", true, false)
}
