package prepareroot

import (
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Config{
		"":                                        {},
		"[root]\ntransient = false\n":             {},
		"[root]\ntransient=true\n":                {Transient: true},
		"[root]\ntransient=1\n[composefs]\n":      {Transient: true},
		"[composefs]\nenabled=no\n":               {},
		"[composefs]\nenabled=maybe\n":            {Composefs: Maybe},
		"[composefs]\nenabled = yes":              {Composefs: On},
		"[composefs]\nenabled=true\n":             {Composefs: On},
		"[composefs]\n enabled = 1 \n":            {Composefs: On},
		"[composefs]\nenabled=verity\n":           {Composefs: Verity},
		"[composefs]\nenabled=signed\nkeypath=/k": {Composefs: Signed},
		"[composefs]\nenabled=junk\n":             {Invalid: "junk"},
		"[composefs]\nenabled=yes\nenabled=no\n":  {},
		"# [composefs]\n[other]\nenabled=yes\n":   {},
		"[composefs]\n#enabled=yes\n":             {},
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v and %v, want %+v", text, got, err, want)
		}
		if overlay := want.Transient || want.Composefs != Off; got.Overlay() != overlay {
			t.Errorf("%q: an overlay is %v, want %v", text, got.Overlay(), overlay)
		}
	}
	for _, text := range []string{"enabled=yes\n", "[composefs\nenabled=yes", "[composefs]\nenabled\n"} {
		if _, err := Parse(text); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%q: %v, want an error of kind corrupt", text, err)
		}
	}
}
