package atomicfile

import (
	"os"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.Mkdir("d", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{"one", "two, longer", ""} {
		if err := Write(root, "d/f", []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := root.ReadFile("d/f")
		if err != nil || string(got) != data {
			t.Errorf("read %q, %v; want %q", got, err, data)
		}
	}
	if fi, _ := root.Stat("d/f"); fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want 0640 whatever the umask", fi.Mode())
	}
	if err := Write(root, "d", []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	if err := Write(root, "../escape", []byte("x"), 0o600); err == nil {
		t.Error("wrote outside the root")
	}
	for _, d := range []string{".", "d"} {
		entries, _ := os.ReadDir(dir + "/" + d)
		if len(entries) != 1 {
			t.Errorf("%s holds %v, want one name: temporary files are left over", d, entries)
		}
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{".kedge-ABC.tmp", ".kedge-file", "other.tmp"} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(root, "."); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("there are %v, %v; want the two files that are nobody's leftover", entries, err)
	}
	if err := Sweep(root, "missing"); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
	if err := Sweep(root, "other.tmp"); err == nil {
		t.Error("a directory that cannot be read was passed over")
	}
}
