package stamp_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/stamp"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestStamp(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	const name = "state/kedge/failure"
	if f, err := stamp.Read(root, name); f != nil || err != nil {
		t.Errorf("without a stamp = %v, %v", f, err)
	}
	want := stamp.Failure{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Deployment: "d.1", Message: "merge /etc:\nno\\space \xff"}
	if err := stamp.Write(root, name, want); err != nil {
		t.Fatal(err)
	}
	got, err := stamp.Read(root, name)
	want.Message = strings.ToValidUTF8(want.Message, "?")
	if err != nil || *got != want {
		t.Errorf("stamp = %+v, %v; want %+v", got, err, want)
	}
	for text, kind := range map[string]fault.Kind{"no keyfile": fault.Corrupt, strings.Repeat("x", 2<<20): fault.Corrupt} {
		if err := root.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := stamp.Read(root, name); fault.KindOf(err) != kind {
			t.Errorf("a stamp of %d bytes = %v, want %v", len(text), err, kind)
		}
	}
	for range 2 {
		if err := stamp.Clear(root, name); err != nil {
			t.Errorf("clear = %v", err)
		}
	}
}
