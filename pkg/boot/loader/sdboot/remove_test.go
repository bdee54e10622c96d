package sdboot

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
)

// TestRemovedIsHidden reads what entries that were removed have left on the disk:
// none of it may be shown when a power cut leads another name there.
func TestRemovedIsHidden(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	s := loadertest.Separate[0]
	a, b, c := s.Item("a", 0), s.Item("b", 3), s.Item("c", 0)
	kept, removed := map[string]*os.File{}, 0
	for _, items := range [][]loader.Item{{a}, {b, a}, {c, b}, {b, c}, {b}} {
		check(t, l.Prepare(t.Context(), items))
		check(t, l.Commit(t.Context(), s.Menu(items...)))
		for name, f := range kept {
			if _, err := os.Stat(name); err == nil {
				continue
			}
			text, err := io.ReadAll(f)
			check(t, err)
			if isLive(bls.Parse(string(text))) {
				t.Errorf("what %s was still names a kernel:\n%s", filepath.Base(name), text)
			}
			check(t, f.Close())
			delete(kept, name)
			removed++
		}
		files, err := filepath.Glob(filepath.Join(dir, entriesDir, "*.conf"))
		check(t, err)
		for _, name := range files {
			if kept[name] == nil {
				kept[name], err = os.Open(name)
				check(t, err)
			}
		}
	}
	for _, f := range kept {
		check(t, f.Close())
	}
	if removed < 3 {
		t.Errorf("%d entries were removed, want more", removed)
	}
}
