package selinux_test

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// files is a root made of a few files.
type files map[string]string

func (f files) ReadFile(name string) ([]byte, error) {
	data, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(data), nil
}

const contexts = "etc/selinux/targeted/contexts/files/file_contexts"

// withRules is a root whose policy has these rules and one for everything.
func withRules(rules string) files {
	return files{
		"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n",
		contexts:             "/.* system_u:object_r:default_t:s0\n" + rules,
	}
}

func TestLoadDecidesWhetherFilesAreLabelled(t *testing.T) {
	const rule = "/.* default_t\n"
	for _, tc := range []struct {
		name     string
		root     files
		labelled bool
		kind     fault.Kind
	}{
		{name: "no policy", root: files{}},
		{name: "enforcing", root: files{"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n", contexts: rule}, labelled: true},
		{name: "permissive, CRLF-less and padded", root: files{"etc/selinux/config": "# SELINUX=disabled\nSELINUXTYPE=targeted  \nSELINUX=Permissive x", contexts: rule}, labelled: true},
		{name: "disabled", root: files{"etc/selinux/config": "SELINUX=disabled\nSELINUXTYPE=targeted\n", contexts: rule}},
		{name: "no word of SELINUX", root: files{"etc/selinux/config": "SELINUXTYPE=targeted\n", contexts: rule}},
		{name: "in usr/etc", root: files{"usr/etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=t\n", "usr/etc/selinux/t/contexts/files/file_contexts": rule}, labelled: true},
		{name: "no type", root: files{"etc/selinux/config": "SELINUX=enforcing\n"}, kind: fault.Corrupt},
		{name: "type leads elsewhere", root: files{"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=../../root\n"}, kind: fault.Corrupt},
		{name: "no file_contexts", root: files{"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n"}, kind: fault.Corrupt},
		{name: "no label for the root", root: files{"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n", contexts: "/usr/.* usr_t\n"}, kind: fault.Corrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := selinux.Load(tc.root)
			if tc.kind != 0 {
				if fault.KindOf(err) != tc.kind {
					t.Fatalf("error %v is of kind %v, want %v", err, fault.KindOf(err), tc.kind)
				}
				return
			}
			if err != nil || (p != nil) != tc.labelled {
				t.Fatalf("Load: policy %v, error %v; labelled is to be %v", p, err, tc.labelled)
			}
		})
	}
}

type unreadable struct{ files }

func (u unreadable) ReadFile(name string) ([]byte, error) {
	if strings.HasSuffix(name, ".local") {
		return nil, unix.EIO
	}
	return u.files.ReadFile(name)
}

func TestLoadReportsAFileThatCannotBeRead(t *testing.T) {
	if _, err := selinux.Load(unreadable{withRules("")}); !errors.Is(err, unix.EIO) {
		t.Errorf("Load gave %v, want the read error", err)
	}
}

func TestLoadRefusesRulesItCannotParse(t *testing.T) {
	for _, rule := range []string{
		"/only-a-path",
		"/path -x label_t",
		"/path --- label_t",
		"/pa\x80th label_t",
		"/path lab\x00el_t",
		"/" + strings.Repeat("a", 1<<16) + " label_t",
		`/a(b label_t`, `/a)b label_t`, `/a[b label_t`, `/a**b label_t`, `/a|*b label_t`, `*a label_t`, `/a\ label_t`,
		`/a{2,1}b label_t`, `/a{1,99999}b label_t`, `/a{,3}b label_t`, `/a[[:word label_t`, `/a[[:nope:]] label_t`, `/a[[.a.]] label_t`, `/a[z-a] label_t`,
		`/a\pL label_t`, `/a\x{100}. label_t`, `/a\x{zz} label_t`, `/a\K.b label_t`, `/(*UTF)a label_t`, `/a(?m).b label_t`, `/a(?1)b label_t`, `/(a)\12 label_t`,
		`/a(?#.b label_t`, `/a.[\ label_t`, `/` + strings.Repeat("(", 300) + strings.Repeat(")", 300) + ` label_t`,
	} {
		_, err := selinux.Load(withRules(rule + "\n"))
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("rule %.40q: Load gave %v, want an error of kind corrupt", rule, err)
		} else if !strings.Contains(err.Error(), "line 2") {
			t.Errorf("rule %.40q: error %q does not say which line", rule, err)
		}
	}
}

func TestLabel(t *testing.T) {
	root := withRules(`
# the last pattern that matches wins, a literal path goes before all of them
/usr/bin/tool		tool_t
/usr/.*			usr_t
/usr/lib(/.*)?		lib_t
/usr/lib/.*\.so(\.[^/]*)*	--	shlib_t
/usr/tmp/.*	<<none>>
/usr/bin/both	-d	bothdir_t
/usr/bin/both	--	bothfile_t
`)
	root[contexts+".local"] = "/usr/lib/mine(/.*)?	mine_t\n"
	root[contexts+".homedirs"] = "/usr/lib/mine(/.*)?	home_t\n"
	root[contexts+".subs_dist"] = "/lib /usr/lib\n"
	p, err := selinux.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path string
		mode uint32
		want string
	}{
		{"/", unix.S_IFDIR | 0o755, "system_u:object_r:default_t:s0"},
		{"/usr/bin/tool", unix.S_IFREG, "tool_t"},
		{"/usr/bin/tool2", unix.S_IFREG, "usr_t"},
		{"/usr//bin/tool/", unix.S_IFREG, "tool_t"},
		{"/usr/lib", unix.S_IFDIR, "lib_t"},
		{"/usr/lib64", unix.S_IFDIR, "usr_t"},
		{"/usr/lib/a.so.1", unix.S_IFREG | 0o644, "shlib_t"},
		{"/usr/lib/a.so.1", unix.S_IFLNK, "lib_t"},
		{"/usr/lib/a.so.1", 0, "shlib_t"},
		{"/lib/a.so", unix.S_IFREG, "shlib_t"},
		{"/library", unix.S_IFREG, "system_u:object_r:default_t:s0"},
		{"/lib/mine/x.so", unix.S_IFREG, "mine_t"},
		{"/usr/tmp/x", unix.S_IFREG, ""},
		{"/usr/bin/both", unix.S_IFDIR, "bothdir_t"},
		{"/usr/bin/both", unix.S_IFREG, "bothfile_t"},
		{"/usr/bin/both", unix.S_IFLNK, "usr_t"},
		{"/usr/lib/\xff\xfe.so", unix.S_IFREG, "shlib_t"},
		{"", unix.S_IFREG, ""},
		{"relative", unix.S_IFREG, ""},
	} {
		got, ok := p.Label(tc.path, tc.mode)
		if got != tc.want || ok != (tc.want != "") {
			t.Errorf("Label(%q, %o) = %q, %v; want %q", tc.path, tc.mode, got, ok, tc.want)
		}
	}
	if p.Err() != nil || p.Name() != "targeted" {
		t.Errorf("policy %q has error %v", p.Name(), p.Err())
	}
}

func TestAPatternThatExplodesIsAnErrorNotAMissingLabel(t *testing.T) {
	p, err := selinux.Load(withRules(`/x/((?=a)a+)+\1b	bad_t` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, ok := p.Label("/x/"+strings.Repeat("a", 64), unix.S_IFREG)
	if ok || fault.KindOf(p.Err()) != fault.Corrupt {
		t.Errorf("label found: %v, error: %v; want an error of kind corrupt", ok, p.Err())
	}
	for range 1000 {
		p.Label("/x/"+strings.Repeat("a", 64), unix.S_IFREG)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("after the first time-out the policy still takes time: %v", d)
	}
}

func TestLabelFromManyGoroutines(t *testing.T) {
	p, err := selinux.Load(withRules(`/usr/(a|b)[0-9]+	ab_t` + "\n" + `/usr/(?!x).y	look_t` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if l, _ := p.Label("/usr/a12", unix.S_IFREG); l != "ab_t" {
					t.Errorf("label %q, want ab_t", l)
				}
				if l, _ := p.Label("/usr/zy", unix.S_IFREG); l != "look_t" {
					t.Errorf("label %q, want look_t", l)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzLoad(f *testing.F) {
	f.Add(odd, "/alias /srv\n", "/srv/a/x", uint32(unix.S_IFREG))
	f.Add("/a(/.*)? l\n", "/ /x", "//a//\xff", uint32(0))
	f.Fuzz(func(t *testing.T, rules, subs, path string, mode uint32) {
		root := withRules(rules)
		root[contexts+".subs"] = subs
		p, err := selinux.Load(root)
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Fatalf("error %v is not of kind corrupt", err)
			}
			return
		}
		if l, ok := p.Label(path, mode); ok == (l == "") && p.Err() == nil {
			t.Fatalf("Label(%q) = %q, %v", path, l, ok)
		}
	})
}
