package selinux_test

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// debianPolicy is the root whose policy libselinux's programs use by default.
func debianPolicy(t testing.TB) *selinux.Policy {
	t.Helper()
	lab.Need(t, "matchpathcon")
	if _, err := os.Stat("/etc/selinux/default/contexts/files/file_contexts"); err != nil {
		lab.Skip(t, "package selinux-policy-default is not installed")
	}
	p, err := selinux.Load(debianRoot{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// debianRoot reads the machine's own policy, enabled whatever its config says.
type debianRoot struct{}

func (debianRoot) ReadFile(name string) ([]byte, error) {
	if name == "etc/selinux/config" {
		return []byte("SELINUX=enforcing\nSELINUXTYPE=default\n"), nil
	}
	return os.ReadFile("/" + name)
}

type lookup struct {
	path string
	mode uint32
}

// machinePaths lists up to n files of the machine, in a fixed order.
func machinePaths(t testing.TB, n int) []lookup {
	t.Helper()
	var all []lookup
	for _, top := range []string{"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/root", "/sbin", "/srv", "/usr", "/var"} {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || strings.Contains(path, "\n") {
				return nil
			}
			var st unix.Stat_t
			if unix.Lstat(path, &st) == nil {
				all = append(all, lookup{path, st.Mode})
			}
			return nil
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(n, len(all))]
}

// policyPaths makes paths that the rules of the machine's policy are for, which
// few files of a small machine are.
func policyPaths(t testing.TB) []lookup {
	t.Helper()
	modes := []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK, unix.S_IFIFO}
	fill := []*strings.Replacer{
		strings.NewReplacer(`(/.*)?`, ``, `[^/]*`, ``, `[^/]+`, `x`, `.*`, ``, `.+`, `y`, `?`, ``, `*`, ``, `+`, ``, `\`, ``),
		strings.NewReplacer(`(/.*)?`, `/sub/file.so.1`, `[^/]*`, `-1.0`, `[^/]+`, `xy`, `.*`, `/deep/er`, `.+`, `/lib`, `?`, ``, `*`, ``, `+`, ``, `\`, ``, `[0-9]`, `7`),
		strings.NewReplacer(`(/.*)?`, `x`, `[^/]*`, `a/b`, `.*`, `.conf`, `(`, ``, `)`, ``, `|`, ``, `?`, ``, `\`, ``),
	}
	var all []lookup
	for _, name := range []string{"file_contexts", "file_contexts.homedirs"} {
		data, err := os.ReadFile("/etc/selinux/default/contexts/files/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(data), "\n") {
			f := strings.Fields(line)
			if len(f) < 2 || f[0][0] == '#' {
				continue
			}
			for j, r := range fill {
				p := r.Replace(f[0])
				if strings.HasPrefix(p, "/") {
					all = append(all, lookup{p, modes[(i+j)%len(modes)]}, lookup{p, modes[0]})
				}
			}
		}
	}
	return all
}

var typeNames = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "lnk_file", unix.S_IFCHR: "chr_file",
	unix.S_IFBLK: "blk_file", unix.S_IFSOCK: "sock_file", unix.S_IFIFO: "pipe",
}

// matchpathcon asks libselinux.
func matchpathcon(t *testing.T, lookups []lookup, args ...string) []string {
	t.Helper()
	labels := make([]string, len(lookups))
	byType := map[uint32][]int{}
	for i, l := range lookups {
		byType[l.mode&unix.S_IFMT] = append(byType[l.mode&unix.S_IFMT], i)
	}
	for typ, all := range byType {
		for some := range slices.Chunk(all, 4000) {
			argv := append(slices.Clone(args), "-n", "-m", typeNames[typ])
			for _, i := range some {
				argv = append(argv, lookups[i].path)
			}
			out, err := exec.Command("matchpathcon", argv...).Output()
			lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			if err != nil || len(lines) != len(some) {
				t.Fatalf("matchpathcon: %v, %d lines for %d paths", err, len(lines), len(some))
			}
			for k, i := range some {
				labels[i] = lines[k]
			}
		}
	}
	return labels
}

func compareLabels(t *testing.T, p *selinux.Policy, lookups []lookup, want []string) {
	t.Helper()
	labelled, wrong := 0, 0
	for i, l := range lookups {
		got, ok := p.Label(l.path, l.mode)
		if !ok {
			got = "<<none>>"
		} else {
			labelled++
		}
		if got != want[i] {
			if wrong++; wrong <= 20 {
				t.Errorf("%s %s: label %s, matchpathcon says %s", typeNames[l.mode&unix.S_IFMT], l.path, got, want[i])
			}
		}
	}
	if err := p.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%d paths, %d of them labelled, %d differ", len(lookups), labelled, wrong)
}

func TestLabelsEqualMatchpathconOnRealPaths(t *testing.T) {
	p := debianPolicy(t)
	lookups := machinePaths(t, 10_000)
	if len(lookups) < 10_000 {
		t.Logf("this machine has only %d files", len(lookups))
	}
	compareLabels(t, p, lookups, matchpathcon(t, lookups))
}

func TestLabelsEqualMatchpathconOnPathsOfTheRules(t *testing.T) {
	p := debianPolicy(t)
	lookups := policyPaths(t)
	compareLabels(t, p, lookups, matchpathcon(t, lookups))
}

// odd holds rules whose meaning hangs on details of PCRE or of libselinux.
const odd = `# comment
/.*				system_u:object_r:default_t:s0
/				-d	system_u:object_r:root_t:s0
/usr/a|/b			system_u:object_r:alt_t:s0
/usr/?				system_u:object_r:slash_t:s0
/opt/(?!not)[a-z]+		system_u:object_r:neg_t:s0
/opt/(a|b)\1			system_u:object_r:ref_t:s0
/opt/x{2,3}y			system_u:object_r:count_t:s0
/opt/z{			system_u:object_r:brace_t:s0
/opt/z{x			system_u:object_r:brace_t:s0
/opt/[[:digit:]]+\.[[:^digit:]]	system_u:object_r:posix_t:s0
/opt/[]a-]q			system_u:object_r:bracket_t:s0
/opt/[^]a-]w			system_u:object_r:notbracket_t:s0
/opt/\d\w\s			system_u:object_r:esc_t:s0
/opt/a++b			system_u:object_r:poss_t:s0
/opt/\Qa.b\E+			system_u:object_r:quote_t:s0
(?i)/opt/CASE.*		system_u:object_r:lower_t:s0
/opt/three...			system_u:object_r:three_t:s0
/opt/.{4}			system_u:object_r:four_t:s0
/opt/word\b.*			system_u:object_r:bound_t:s0
/opt/lit\.eral		--	system_u:object_r:lit_t:s0
/opt/lit.*			system_u:object_r:notlit_t:s0
/opt/none			<<none>>
/opt/dollar$.*			system_u:object_r:dollar_t:s0
/srv(/.*)?			system_u:object_r:srv_t:s0
/srv/[^/]+/x			-l	system_u:object_r:srvx_t:s0
/srv/[^/]*			-d	system_u:object_r:srvd_t:s0
/srv/a.+			system_u:object_r:srva_t:s0
/srv/\x61\x{62}\063		system_u:object_r:hex_t:s0
/srv/tab\tx			system_u:object_r:tab_t:s0
/srv/dup			system_u:object_r:dup1_t:s0
/srv/dup			system_u:object_r:dup2_t:s0
`

func TestLabelsEqualMatchpathconOnOddRules(t *testing.T) {
	lab.Need(t, "matchpathcon")
	dir := t.TempDir()
	file := filepath.Join(dir, "file_contexts")
	for name, text := range map[string]string{
		"": odd, ".local": "/srv/local system_u:object_r:local_t:s0\n",
		".homedirs":  "/srv/(home|local) system_u:object_r:home_t:s0\n",
		".subs":      "/alias /srv\n/alias/deep /opt\n/twice /mid\n/root /\n",
		".subs_dist": "# c\n/mid /srv\n/alias2 /srv/a\n/srv/b /opt\n",
	} {
		if err := os.WriteFile(file+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := selinux.Load(oddRoot(dir))
	if err != nil {
		t.Fatal(err)
	}
	var lookups []lookup
	for _, path := range strings.Fields(`/ /usr /usr/a /usr/ab /usr/x/b /x/b /b /usr/ /opt/nota /opt/abc /opt/aa /opt/ab /opt/bb /opt/xxy
		/opt/xxxxy /opt/xy /opt/z{ /opt/z{x /opt/12.x /opt/12.3 /opt/]q /opt/-q /opt/aq /opt/bq /opt/bw /opt/]w /opt/aaab /opt/a.b /opt/a.bb
		/opt/axb /opt/CASEy /opt/casey /opt/threeabc /opt/threeab /opt/threeé. /opt/threeé /opt/éé /opt/é /opt/ééé /opt/word /opt/word-x /opt/wordy
		/opt/lit.eral /opt/litxeral /opt/none /opt/none/x /opt/dollar /opt/dollarx /srv /srv/ /srv//a/x /srvx /srv/q/x /srv/q/r/x /srv/a /srv/ab
		/srv/abc /srv/ab3 /srv/dup /srv/local /srv/home /alias /alias/home /alias/deep/aa /alias/deepx /twice/home /alias2 /alias2/b /srv/b/aa /root/srv/ab /rootx
		/opt/` + "\xff\xfe\xfd\xfc" + ` /opt/` + "\xff\xfe\xfd") {
		for typ := range typeNames {
			lookups = append(lookups, lookup{path, typ})
		}
	}
	lookups = append(lookups, lookup{"/opt/1a ", unix.S_IFREG}, lookup{"/opt/1a\v", unix.S_IFREG}, lookup{"/srv/tab\tx", unix.S_IFREG})
	compareLabels(t, p, lookups, matchpathcon(t, lookups, "-f", file))
}

// oddRoot presents a directory of contexts files as a root with a policy.
type oddRoot string

func (r oddRoot) ReadFile(name string) ([]byte, error) {
	if name == "etc/selinux/config" {
		return []byte("SELINUX=enforcing\nSELINUXTYPE=odd\n"), nil
	}
	rest, ok := strings.CutPrefix(name, "etc/selinux/odd/contexts/files/")
	if !ok {
		return nil, fs.ErrNotExist
	}
	return os.ReadFile(filepath.Join(string(r), rest))
}

func BenchmarkLabel(b *testing.B) {
	p := debianPolicy(b)
	lookups := machinePaths(b, 150_000)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		for i := range 150_000 {
			l := lookups[i%len(lookups)]
			p.Label(l.path, l.mode)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	debianPolicy(b)
	for b.Loop() {
		if _, err := selinux.Load(debianRoot{}); err != nil {
			b.Fatal(err)
		}
	}
}
