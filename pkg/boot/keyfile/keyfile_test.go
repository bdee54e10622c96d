package keyfile_test

import (
	"slices"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

const sample = `# made by an installer
[origin]
container-image-reference = ostree-unverified-registry:quay.io/a/b:t
# why
override-commit=abc

[packages]
requested=vim;htop;odd\;name;
[origin]
late=yes
`

func parse(t testing.TB, text string) *keyfile.File {
	t.Helper()
	f, err := keyfile.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLossless(t *testing.T) {
	for _, text := range []string{sample, "", "\n\n[a]\n", "[a]\r\nb = c\r\n"} {
		if got := string(parse(t, text).Encode()); got != text {
			t.Errorf("encoded = %q, want what was read, %q", got, text)
		}
	}
}

func TestRead(t *testing.T) {
	f := parse(t, sample)
	if v, _ := f.Get("origin", "container-image-reference"); v != "ostree-unverified-registry:quay.io/a/b:t" {
		t.Errorf("reference = %q", v)
	}
	if v, ok := f.Get("origin", "late"); !ok || v != "yes" {
		t.Errorf("key of a group that is opened again = %q, %v", v, ok)
	}
	if l, _ := f.List("packages", "requested"); !slices.Equal(l, []string{"vim", "htop", "odd;name"}) {
		t.Errorf("list = %q", l)
	}
	if _, ok := f.Get("packages", "none"); ok {
		t.Error("a key that is not there was found")
	}
	if g := f.Groups(); !slices.Equal(g, []string{"origin", "packages"}) {
		t.Errorf("groups = %q", g)
	}
	var none *keyfile.File
	if none.Bool("a", "b", true) != true || none.Clone() == nil {
		t.Error("no file does not read as an empty one")
	}
}

func TestChange(t *testing.T) {
	f := parse(t, "[origin]\nrefspec=a\n")
	f.Set("libostree-transient", "pinned", "true")
	f.Set("origin", "refspec", "b")
	f.SetList("packages", "requested", []string{"x", "y;z"})
	const want = "[origin]\nrefspec=b\n\n[libostree-transient]\npinned=true\n\n[packages]\nrequested=x;y\\;z;\n"
	if got := string(f.Encode()); got != want {
		t.Errorf("after changes = %q, want %q", got, want)
	}
	f.Delete("libostree-transient", "pinned")
	f.DeleteGroup("packages")
	if got := string(f.Encode()); got != "[origin]\nrefspec=b\n" {
		t.Errorf("after removals = %q", got)
	}
}

func TestEscapes(t *testing.T) {
	for _, s := range []string{"plain", "  two spaces", "a\nb", "back\\slash", "\ttab", "tr ailing ", "ü;=#["} {
		f := &keyfile.File{}
		f.Set("g", "k", s)
		f.SetList("g", "l", []string{s, s})
		g := parse(t, string(f.Encode()))
		if got, _ := g.Get("g", "k"); got != s && s != "tr ailing " {
			t.Errorf("string came back as %q, want %q", got, s)
		}
		if got, _ := g.List("g", "l"); !slices.Equal(got, []string{s, s}) {
			t.Errorf("list came back as %q, want %q twice", got, s)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, text := range []string{"key=value\n", "[a\nb=c\n", "[]\n", "[a]\nno value\n", "[a]\n=x\n", "[a]]\n"} {
		if _, err := keyfile.Parse(text); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("parse %q = %v, want a corrupt error", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("[a]\nb=\\s\\q\\\n")
	f.Add("[a]\nb=c;d\\;e;\\")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := keyfile.Parse(text)
		if err != nil {
			return
		}
		again := parse(t, string(file.Encode()))
		for _, g := range file.Groups() {
			for _, k := range file.Keys(g) {
				a, _ := file.Get(g, k)
				b, ok := again.Get(g, k)
				la, _ := file.List(g, k)
				lb, _ := again.List(g, k)
				if a != b || !ok || !slices.Equal(la, lb) {
					t.Fatalf("[%s] %s = %q, encoded and read again %q", g, k, a, b)
				}
			}
		}
		file.Set("new", "key", text)
		if got, _ := parse(t, string(file.Encode())).Get("new", "key"); got != text && trimmed(got) != trimmed(text) {
			t.Fatalf("a value set to %q comes back as %q", text, got)
		}
	})
}

// trimmed takes off the white space that the format cannot hold at the end.
func trimmed(s string) string {
	for s != "" && slices.Contains([]byte(" \t\r\v\f\x85\xa0"), s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}
