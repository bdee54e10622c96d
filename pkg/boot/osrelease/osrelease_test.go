package osrelease_test

import (
	"maps"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/osrelease"
)

func TestParse(t *testing.T) {
	got := osrelease.Parse("# comment\nID=debian\nPRETTY_NAME=\"Debian \\\"13\\\" \\x\"\nVERSION='a b'c\nNAME=x\\ y\nbroken\nEMPTY=\nURL=\"https://x/?a=b\"\n")
	want := map[string]string{
		"ID": "debian", "PRETTY_NAME": `Debian "13" \x`, "VERSION": "a bc", "NAME": "x y", "EMPTY": "", "URL": "https://x/?a=b",
	}
	if !maps.Equal(got, want) {
		t.Errorf("os-release = %q, want %q", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("ID=\"a\\")
	f.Fuzz(func(t *testing.T, text string) {
		for k, v := range osrelease.Parse(text) {
			if len(k)+len(v) > len(text) {
				t.Errorf("%q has %q=%q", text, k, v)
			}
		}
	})
}
