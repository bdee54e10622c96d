package karg_test

import (
	"slices"
	"testing"
	"testing/fstest"

	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]karg.Args{
		"":                       nil,
		"  quiet   rw ":          {"quiet", "rw"},
		`a="b c" d`:              {`a="b c"`, "d"},
		`"a b=c" d`:              {`"a b=c"`, "d"},
		`dyndbg="file x +p" "un`: {`dyndbg="file x +p"`, `"un`},
		"a\tb\nc":                {"a", "b", "c"},
		"root=UUID=1=2":          {"root=UUID=1=2"},
	} {
		if got := karg.Parse(line); !slices.Equal(got, want) {
			t.Errorf("arguments of %q = %q, want %q", line, got, want)
		}
	}
}

func TestValues(t *testing.T) {
	a := karg.Parse("console=tty0 quiet console=ttyS0")
	if v := a.Values("console"); !slices.Equal(v, []string{"tty0", "ttyS0"}) {
		t.Errorf("consoles = %q", v)
	}
	if v := a.Values("quiet"); !slices.Equal(v, []string{""}) {
		t.Errorf("values of a switch = %q, want one empty", v)
	}
}

func TestEdit(t *testing.T) {
	base := karg.Parse("root=LABEL=root console=tty0 quiet console=ttyS0 x=1 x=1")
	del := func(arg string) func(karg.Args) (karg.Args, error) {
		return func(a karg.Args) (karg.Args, error) { return a.Delete(arg) }
	}
	rep := func(spec string) func(karg.Args) (karg.Args, error) {
		return func(a karg.Args) (karg.Args, error) { return a.Replace(spec) }
	}
	for _, c := range []struct {
		name string
		edit func(karg.Args) (karg.Args, error)
		want string
		kind fault.Kind
	}{
		{"delete a switch", del("quiet"), "root=LABEL=root console=tty0 console=ttyS0 x=1 x=1", 0},
		{"delete a value", del("console=tty0"), "root=LABEL=root quiet console=ttyS0 x=1 x=1", 0},
		{"delete one of equal ones", del("x"), "root=LABEL=root console=tty0 quiet console=ttyS0 x=1", 0},
		{"delete an ambiguous name", del("console"), "", fault.Conflict},
		{"delete what is not there", del("splash"), "", fault.NotFound},
		{"delete a value that is not there", del("console=hvc0"), "", fault.NotFound},
		{"replace the only value", rep("root=UUID=5"), "root=UUID=5 console=tty0 quiet console=ttyS0 x=1 x=1", 0},
		{"replace a value with =", rep("root=LABEL=root=LABEL=other"), "root=LABEL=other console=tty0 quiet console=ttyS0 x=1 x=1", 0},
		{"replace one of several", rep("console=tty0=tty1"), "root=LABEL=root console=tty1 quiet console=ttyS0 x=1 x=1", 0},
		{"replace an ambiguous name", rep("console=tty1"), "", fault.Conflict},
		{"replace what is not there", rep("a=b"), "", fault.NotFound},
		{"replace without a value", rep("quiet"), "", fault.Usage},
	} {
		got, err := c.edit(base)
		if fault.KindOf(err) != c.kind || got.String() != c.want {
			t.Errorf("%s = %q, %v; want %q, %v", c.name, got, err, c.want, c.kind)
		}
	}
	if got := base.String(); got != "root=LABEL=root console=tty0 quiet console=ttyS0 x=1 x=1" {
		t.Errorf("the edits changed what they began with: %q", got)
	}
	if got := base.Set("console=hvc0").String(); got != "root=LABEL=root console=hvc0 quiet x=1 x=1" {
		t.Errorf("set = %q, want the value in the first place and the others gone", got)
	}
	if got := base.AppendMissing("quiet", "new").String(); got != base.String()+" new" {
		t.Errorf("append if missing = %q", got)
	}
	if got, err := base.DeletePresent("splash"); err != nil || got.String() != base.String() {
		t.Errorf("delete if present = %q, %v", got, err)
	}
}

func TestRebase(t *testing.T) {
	for _, c := range []struct{ name, machine, old, fresh, want string }{
		{"nothing to do", "root=x quiet", "", "", "root=x quiet"},
		{"the image adds", "root=x", "", "a=1 b", "root=x a=1 b"},
		{"the image drops", "root=x a=1 b", "a=1 b", "b", "root=x b"},
		{"the image changes a value", "root=x a=1", "a=1", "a=2", "root=x a=2"},
		{"the machine dropped it", "root=x", "a=1", "a=1", "root=x"},
		{"the machine has it twice", "a=1 a=1", "a=1", "", "a=1"},
		{"the machine's own value stays", "a=9", "a=1", "", "a=9"},
	} {
		got := karg.Parse(c.machine).Rebase(karg.Parse(c.old), karg.Parse(c.fresh)).String()
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLoadDir(t *testing.T) {
	files := func(m map[string]string) fstest.MapFS {
		out := fstest.MapFS{}
		for k, v := range m {
			out[k] = &fstest.MapFile{Data: []byte(v), Mode: 0o644}
		}
		return out
	}
	root := files(map[string]string{
		"usr/lib/bootc/kargs.d/20-b.toml":   `kargs = ["b=\"1 2\"", "c"]`,
		"usr/lib/bootc/kargs.d/10-a.toml":   "kargs = [\"a\"]\nmatch-architectures = [\"x86_64\"]\n",
		"usr/lib/bootc/kargs.d/30-arm.toml": "kargs = [\"arm\"]\nmatch-architectures = [\"aarch64\"]\n",
		"usr/lib/bootc/kargs.d/README":      "not read",
		"usr/lib/kedge/kargs.d/00-k.toml":   `kargs = ["k", "ostree=/x", "composefs=1 composefs.digest=2"]`,
	})
	got, err := karg.LoadDir(root, "x86_64")
	if want := []string{"a", `b="1 2"`, "c", "k"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("the image's arguments = %q, %v; want %q", got, err, want)
	}
	if got, err := karg.LoadDir(fstest.MapFS{}, "x86_64"); got != nil || err != nil {
		t.Errorf("of an image without any = %q, %v", got, err)
	}
	for _, bad := range []string{"kargs = 1", "kargs = [", "karg = [\"a\"]", "kargs=[\"a\\nb\"]", `kargs=["a=\"b"]`, `kargs=["a\fb"]`, "match-architecture=[]"} {
		_, err := karg.LoadDir(files(map[string]string{"usr/lib/bootc/kargs.d/x.toml": bad}), "x86_64")
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%q = %v, want a corrupt error", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`root=LABEL=x quiet a="b c`)
	f.Fuzz(func(t *testing.T, line string) {
		a := karg.Parse(line)
		if b := karg.Parse(a.String()); !slices.Equal(a, b) {
			t.Fatalf("%q is %q, written and read again %q", line, a, b)
		}
		for _, arg := range a {
			if !a.Set(arg).Contains(arg) || len(a.Without(karg.Key(arg)).Values(karg.Key(arg))) != 0 {
				t.Fatalf("editing %q in %q", arg, a)
			}
		}
	})
}

func FuzzFragment(f *testing.F) {
	f.Add("kargs = [\"a\"]\nmatch-architectures = [\"x86_64\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		args, err := karg.ParseFragment(text, "x86_64")
		if err == nil && !slices.Equal(karg.Parse(args.String()), args) {
			t.Fatalf("%q gives arguments that do not survive a command line: %q", text, args)
		}
	})
}
