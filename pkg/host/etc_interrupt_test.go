package host

import (
	"context"
	"os"
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
)

// endsAfter is a context that ends when it was asked a number of times.
type endsAfter struct {
	context.Context
	left *int
}

func (c endsAfter) Err() error {
	if *c.left--; *c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestEtcResetInterrupted: what was reset before is said, for it is no more as it
// was.
func TestEtcResetInterrupted(t *testing.T) { onBoth(t, testEtcResetInterrupted) }

func testEtcResetInterrupted(t *testing.T, w *world) {
	ref, _ := w.push("stable", 1)
	id := w.install(ref).ID
	names := []string{"edited.conf", "hostname"}
	for n := 1; n < 200; n++ {
		left := n
		for _, name := range names {
			must(t, os.WriteFile(w.path(id, "etc/"+name), []byte("by the admin\n"), 0o644))
		}
		h := w.open()
		_, err := h.EtcReset(endsAfter{context.Background(), &left}, EtcResetOptions{Paths: names})
		h.Close()
		if w.file(id, "etc/edited.conf") == "by the admin\n" {
			continue
		}
		wantKind(t, err, fault.Interrupted, "reset before that: /etc/edited.conf")
		return
	}
	t.Fatal("etc reset was never interrupted between two files")
}
