package uki_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/internal/pefile"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

// signingKey makes a key with its certificate, and what signs with them.
func signingKey(t *testing.T) (certificate []byte, s pefile.Signer) {
	t.Helper()
	key, certificate, err := lab.SigningKey("kedge test")
	if err != nil {
		t.Fatal(err)
	}
	if s, err = (&uki.Config{}).NewSigner(key, certificate); err != nil {
		t.Fatal(err)
	}
	return certificate, s
}

func section(s string) *io.SectionReader {
	return io.NewSectionReader(strings.NewReader(s), 0, int64(len(s)))
}

func remake(t *testing.T, base []byte, parts uki.Parts, s pefile.Signer) (made []byte, dropped bool) {
	t.Helper()
	var out bytes.Buffer
	dropped, err := uki.Make(&out, bytes.NewReader(base), int64(len(base)), parts, s)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), dropped
}

// TestMake changes the parts of a unified kernel image one after the other.
func TestMake(t *testing.T) {
	_, s := signingKey(t)
	base := loadertest.PE(".text", "code", ".sbat", "sbat,1", ".osrel", "ID=test\n", ".pcrpkey", "key", ".cmdline", "composefs=1 rw",
		".uname", "6.1", ".pcrsig", "{}", ".splash", "picture", ".linux", "kernel", ".initrd", "initrd")
	args := karg.Parse("composefs=2 rw " + strings.Repeat("lab.more=1 ", 1000))
	made, dropped := remake(t, base, uki.Parts{Cmdline: args}, s)
	if !dropped {
		t.Error("nothing said that signatures of PCR values went")
	}
	u, err := decode(made)
	if err != nil {
		t.Fatal(err)
	}
	if u.Cmdline.String() != args.String() || u.SBAT != "sbat,1" || u.OSRelease != "ID=test" || u.Version != "6.1" {
		t.Errorf("it has %+v", u)
	}
	for name, want := range map[string]string{".text": "code", ".splash": "picture", ".linux": "kernel", ".initrd": "initrd", ".pcrsig": "", ".pcrpkey": ""} {
		if got, _ := pefile.Find(made, name, 1<<20); string(got) != want {
			t.Errorf("section %s is %q, want %q", name, got, want)
		}
	}
	if again, _ := remake(t, base, uki.Parts{Cmdline: args}, s); !bytes.Equal(again, made) {
		t.Error("made again it has other bytes")
	}
	// Of what was made, with another kernel: its signature is replaced too.
	second, dropped := remake(t, made, uki.Parts{Cmdline: args[:1], Linux: section("a newer kernel"), Initrd: section("its initrd"), Version: "6.12"}, s)
	if u, err = decode(second); err != nil || u.Version != "6.12" || u.Cmdline.String() != "composefs=2" || dropped {
		t.Errorf("the second has %+v, %v", u, err)
	}
	if got, _ := pefile.Find(second, ".linux", 1<<20); string(got) != "a newer kernel" {
		t.Errorf("its kernel is %q", got)
	}
}

func TestMakeRefuses(t *testing.T) {
	_, s := signingKey(t)
	good := loadertest.UKI("composefs=1 rw", "kernel", "initrd")
	damaged := bytes.Clone(good)
	damaged[0x40+24] = 0 // of the optional header
	for name, c := range map[string]struct {
		base  []byte
		args  karg.Args
		words string
	}{
		"no program":   {[]byte("no"), nil, "not a PE file"},
		"no initrd":    {loadertest.PE(".cmdline", "rw", ".linux", "kernel"), nil, "no section .initrd"},
		"damaged":      {damaged, nil, "not a 64-bit program"},
		"profiles":     {loadertest.PE(".profile", "x"), nil, "it has profiles"},
		"many kargs":   {good, karg.Args{strings.Repeat("x", 1<<17)}, "do not fit"},
		"a NUL in one": {good, karg.Args{"a\x00b"}, "do not fit"},
	} {
		var out bytes.Buffer
		_, err := uki.Make(&out, bytes.NewReader(c.base), int64(len(c.base)), uki.Parts{Cmdline: c.args}, s)
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), c.words) || out.Len() > 0 {
			t.Errorf("%s: %v with %d bytes written, want a conflict with %q", name, err, out.Len(), c.words)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	const image, host = "usr/lib/kedge/uki.toml", "etc/kedge/uki.toml"
	both := "key = \"/etc/kedge/uki.key\"\ncertificate = \"/var/lib/kedge/uki.crt\"\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  *uki.Config
		words string
	}{
		"none":              {},
		"the host's":        {files: map[string]string{host: both}, want: &uki.Config{Key: "/etc/kedge/uki.key", Certificate: "/var/lib/kedge/uki.crt"}},
		"the image's first": {files: map[string]string{image: both, host: "key = \"/etc/mine\"\n"}, want: &uki.Config{Key: "/etc/mine", Certificate: "/var/lib/kedge/uki.crt"}},
		"half":              {files: map[string]string{host: "key = \"/etc/k\"\n"}, words: `certificate = ""`},
		"elsewhere":         {files: map[string]string{host: strings.ReplaceAll(both, "/var", "/home")}, words: "below /etc or /var"},
		"upwards":           {files: map[string]string{host: strings.ReplaceAll(both, "/var", "/var/..")}, words: "below /etc or /var"},
		"another word":      {files: map[string]string{host: both + "signer = 1\n"}, words: "unknown key"},
		"no TOML":           {files: map[string]string{host: "key"}, words: "not valid TOML"},
		"huge":              {files: map[string]string{image: strings.Repeat("#", uki.MaxFile+1)}, words: "more than 65536 bytes"},
	} {
		got, err := uki.LoadConfig(func(name string) ([]byte, error) {
			text, ok := c.files[name]
			if !ok {
				return nil, os.ErrNotExist
			}
			return []byte(text), nil
		})
		if c.words != "" {
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), c.words) || fault.HintOf(err) == "" {
				t.Errorf("%s: %v, want %q and a hint", name, err, c.words)
			}
			continue
		}
		if err != nil || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// FuzzMake: whatever is taken for a unified kernel image becomes one that says what
// it was told to say, or an error says why not.
func FuzzMake(f *testing.F) {
	key, certificate, err := lab.SigningKey("kedge test")
	if err != nil {
		f.Fatal(err)
	}
	s, err := (&uki.Config{}).NewSigner(key, certificate)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(loadertest.UKI("composefs=abc", "kernel", "initrd"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		if _, err := uki.Make(&out, bytes.NewReader(data), int64(len(data)), uki.Parts{Cmdline: karg.Args{"composefs=2", "rw"}}, s); err != nil {
			return
		}
		if u, err := decode(out.Bytes()); err != nil || u.Cmdline.String() != "composefs=2 rw" {
			t.Errorf("made %+v, %v", u, err)
		}
	})
}

// TestMakeOfUkify makes one of what ukify made with systemd's stub, and has other
// programs look at it.
func TestMakeOfUkify(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a root with ukify, half a minute once")
	}
	lab.NeedRoot(t)
	lab.Need(t, "mmdebstrap", "bwrap", "objdump", "sbverify")
	dir := t.TempDir()
	base, _, _ := ukify(t, dir, "composefs="+strings.Repeat("ab", 64)+" rw")
	certificate, s := signingKey(t)
	cmdline := "composefs=" + strings.Repeat("cd", 64) + " rw lab.more=1 " + strings.Repeat("x", 5000)
	made, dropped := remake(t, base, uki.Parts{Cmdline: karg.Parse(cmdline), Initrd: section(strings.Repeat("another initrd", 1000))}, s)
	if dropped {
		t.Error("ukify made signatures of PCR values")
	}
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	file := write("made.efi", made)
	if out, err := lab.Command(t.Context(), "sbverify", "--cert", write("cert.pem", certificate), file); err != nil {
		t.Errorf("sbverify: %v: %s", err, out)
	}
	other, _ := signingKey(t)
	if out, err := lab.Command(t.Context(), "sbverify", "--cert", write("other.pem", other), file); err == nil {
		t.Errorf("sbverify with another certificate says %s", out)
	}
	made[len(made)/2] ^= 1
	if out, err := lab.Command(t.Context(), "sbverify", "--cert", filepath.Join(dir, "cert.pem"), write("damaged.efi", made)); err == nil {
		t.Errorf("sbverify of a damaged one says %s", out)
	}
	out, err := lab.Command(t.Context(), "objdump", "-h", "-w", file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 5 && strings.HasPrefix(fields[1], ".") {
			names = append(names, fields[1])
		}
	}
	const want = ".text .rodata .data .sbat .sdmagic .reloc .osrel .cmdline .uname .linux .initrd"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("objdump finds the sections %s, want %s", got, want)
	}
}

// BenchmarkMake makes and signs one of the size that a distribution's have.
func BenchmarkMake(b *testing.B) {
	key, certificate, err := lab.SigningKey("kedge test")
	if err != nil {
		b.Fatal(err)
	}
	s, err := (&uki.Config{}).NewSigner(key, certificate)
	if err != nil {
		b.Fatal(err)
	}
	base := loadertest.UKI("composefs=1 rw", strings.Repeat("kernel ", 12<<20/7), strings.Repeat("initrd ", 60<<20/7))
	b.SetBytes(int64(len(base)))
	for b.Loop() {
		if _, err := uki.Make(io.Discard, bytes.NewReader(base), int64(len(base)), uki.Parts{Cmdline: karg.Args{"composefs=2"}}, s); err != nil {
			b.Fatal(err)
		}
	}
}
