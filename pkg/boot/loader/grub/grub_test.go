package grub

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/fault"
)

func open(t *testing.T, dir string) *Loader {
	t.Helper()
	root, err := os.OpenRoot(dir)
	check(t, err)
	host, err := os.OpenRoot(dir)
	check(t, err)
	l := New(root, Options{Host: host})
	t.Cleanup(l.Close)
	return l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	loadertest.Run(t, func(t *testing.T) (loader.Loader, string) { return open(t, t.TempDir()), "" })
}

func item(title, options string) loader.Item {
	e := &bls.Entry{}
	e.Set("title", title)
	e.Set("linux", "/boot/ostree/a b/vmlinuz")
	e.SetInitrds([]string{"/boot/ostree/a b/initrd", "/boot/overlay"})
	e.Set("options", options)
	return loader.Item{ID: title, Entry: e}
}

// TestEncode has GRUB's own parser read what an image may put into a title and an
// admin into arguments.
func TestEncode(t *testing.T) {
	lab.Need(t, "grub-script-check")
	hostile := "Don't } ; reboot\n$root \"x\" \\"
	text, err := encode([]loader.Item{item(hostile, `root=LABEL=root quiet="a b" x='y' $z ;halt`), item("two", "")}, []*run{nil, nil})
	check(t, err)
	file := filepath.Join(t.TempDir(), "kedge.cfg")
	check(t, os.WriteFile(file, text, 0o644))
	if out, err := exec.Command("grub-script-check", "-v", file).CombinedOutput(); err != nil {
		t.Fatalf("grub-script-check: %v\n%s\n%s", err, out, text)
	}
	for _, want := range []string{
		"set default='kedge-0'\n", `menuentry 'Don'\''t } ; reboot $root "x" \' --id 'kedge-0' {`,
		"\tlinux '/boot/ostree/a b/vmlinuz' 'root=LABEL=root' 'quiet=\"a' 'b\"' 'x='\\''y'\\''' '$z' ';halt'\n",
		"\tinitrd '/boot/ostree/a b/initrd' '/boot/overlay'\n", "menuentry 'two'",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the menu lacks %q:\n%s", want, text)
		}
	}
	if _, err := encode([]loader.Item{{Entry: &bls.Entry{}}}, []*run{nil}); err == nil {
		t.Error("an entry without a kernel is written")
	}
}

func TestHook(t *testing.T) {
	for _, c := range []struct {
		name, config, custom string
		kind                 fault.Kind
		file                 string // what then reads the fragment
	}{
		{name: "nothing there", file: config},
		{name: "generated", config: "if [ -f ${config_directory}/custom.cfg ]; then source ${config_directory}/custom.cfg; fi\n", file: custom},
		{name: "generated, with own entries", config: "source custom.cfg\n", custom: "menuentry mine { true\n}\n", file: custom},
		{name: "hooked already", config: "source $prefix/kedge.cfg\n", file: config},
		{name: "somebody's own", config: "menuentry mine { true\n}\n", kind: fault.Conflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			boot := t.TempDir()
			check(t, os.Mkdir(filepath.Join(boot, dir), 0o755))
			for name, text := range map[string]string{config: c.config, custom: c.custom} {
				if text != "" {
					check(t, os.WriteFile(filepath.Join(boot, name), []byte(text), 0o644))
				}
			}
			l := open(t, boot)
			m := loader.Menu{Items: []loader.Item{item("one", "quiet")}}
			err := l.Commit(t.Context(), m)
			if c.kind != 0 {
				if fault.KindOf(err) != c.kind {
					t.Errorf("error %v, want %s", err, c.kind)
				}
				return
			}
			check(t, err)
			text, err := os.ReadFile(filepath.Join(boot, c.file))
			check(t, err)
			if strings.Count(string(text), "source $prefix/kedge.cfg") != 1 || !strings.HasPrefix(string(text), c.custom) {
				t.Errorf("%s is %q", c.file, text)
			}
			before, err := os.Stat(filepath.Join(boot, fragment))
			check(t, err)
			check(t, l.Commit(t.Context(), m))
			after, err := os.Stat(filepath.Join(boot, fragment))
			check(t, err)
			if !os.SameFile(before, after) {
				t.Error("the same menu was written again")
			}
		})
	}
}
