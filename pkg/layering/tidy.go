package layering

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

const (
	tmpfilesFile = "usr/lib/tmpfiles.d/kedge-packages.conf"
	factory      = "usr/share/factory"
)

// notInImages are the top levels that a running system mounts.
var notInImages = []string{"dev", "proc", "sys", "run", "tmp", "boot", "lost+found"}

// leftovers are what programs leave in a root: backups, locks, caches. A name
// that the base has stays as it is there.
var leftovers = []string{
	"etc/machine-id", "etc/.pwd.lock", "etc/.updated", "etc/hostname", "etc/resolv.conf",
	"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
	"var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/catalog", "var/cache/ldconfig", "var/tmp", "var/.updated",
}

// secrets are patterns of what must be different on each host.
var secrets = []string{
	"etc/ssh/ssh_host_*", "etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem",
	"var/lib/systemd/credential.secret",
}

// tidier turns what a transaction left into what a layer of an image may hold.
type tidier struct {
	cs     changes
	base   *os.Root // the base's root
	merged *os.Root // base and transaction
	engine engine
	layer  *Layer
	lines  []string // of tmpfiles.d
}

func (t *tidier) run() error {
	for _, name := range leftovers {
		t.cs.drop(name)
	}
	t.databaseLink()
	for name, c := range t.cs {
		if t.engine.transient(name) || c.isRegular() && (strings.HasPrefix(name, "var/cache/") || strings.HasPrefix(name, "var/log/")) {
			delete(t.cs, name)
		}
	}
	t.dropSecrets()
	t.labelRules()
	t.opt()
	if err := t.varFiles(); err != nil {
		return err
	}
	if len(t.lines) > 0 {
		t.cs.addFile(tmpfilesFile, []byte(strings.Join(t.lines, "\n")+"\n"))
	}
	if len(t.layer.Accounts) > 0 {
		t.cs.addFile(sysusersFile, sysusers(t.layer.Accounts))
	}
	t.cs.prune()
	t.relink()
	return nil
}

// intact refuses a transaction that removed the system under itself. Packages
// remove files of their own; no package owns /usr.
func intact(cs changes) error {
	for name, c := range cs {
		system := !strings.Contains(name, "/") || name == "usr/bin" || name == "usr/lib" || name == "usr/sbin"
		if c.whiteout && system {
			return fault.New(fault.Conflict, "leave out the package whose scriptlet does that", "the transaction removed /%s; nothing of it is kept", name)
		}
	}
	return nil
}

// databaseLink keeps the link in /var to a database that was moved to /usr.
func (t *tidier) databaseLink() {
	for _, name := range []string{dpkgVar, rpmVar} {
		if c := t.cs[name]; c != nil && c.target != "" {
			t.line("L", "/"+name, "- - - -", c.target)
			t.layer.VarDatabase = "/" + name
		}
	}
}

func (t *tidier) dropSecrets() {
	for name, c := range t.cs {
		for _, pattern := range secrets {
			if ok, err := path.Match(pattern, name); err == nil && ok && !c.whiteout {
				t.layer.Secrets = append(t.layer.Secrets, "/"+name)
				delete(t.cs, name)
				break
			}
		}
	}
	slices.Sort(t.layer.Secrets)
}

// labelRules notes that SELinux's file_contexts changed: a module of the policy
// that a package installs is linked into the whole.
func (t *tidier) labelRules() {
	for name, c := range t.cs {
		if ok, err := path.Match("etc/selinux/*/contexts/files/file_contexts*", name); err == nil && ok && (c.whiteout || c.isRegular()) {
			t.layer.Relabels = true
		}
	}
}

// opt gives what packages put into /opt, which lies in /usr/lib/opt, its links.
func (t *tidier) opt() {
	_, inVar := insideVar(t.base, "opt")
	for _, name := range t.cs.under("usr/lib/opt") {
		elem, ok := strings.CutPrefix(name, "usr/lib/opt/")
		if c := t.cs[name]; !ok || strings.Contains(elem, "/") || c.whiteout || c.same {
			continue
		}
		if inVar {
			t.line("L", "/var/opt/"+elem, "- - - -", "../../usr/lib/opt/"+elem)
		} else {
			t.cs.addLink("opt/"+elem, "../usr/lib/opt/"+elem)
		}
	}
}

// varFiles takes /var out of the layer: it is the host's. What packages put
// there is made at boot where it is missing.
func (t *tidier) varFiles() error {
	covered, err := t.covered()
	if err != nil {
		return err
	}
	for _, name := range t.cs.under("var") {
		c := t.cs[name]
		delete(t.cs, name)
		if c.whiteout || c.same || covered["/"+name] {
			continue
		}
		owner := fmt.Sprintf("%04o %d %d -", c.stat.Mode&0o7777, c.stat.Uid, c.stat.Gid)
		switch c.typ() {
		case unix.S_IFDIR:
			t.line("d", "/"+name, owner, "")
		case unix.S_IFLNK:
			t.line("L", "/"+name, "- - - -", c.target)
		case unix.S_IFREG:
			t.line("C", "/"+name, owner, "")
			t.cs[factory+"/"+name] = c
			t.cs.addParents(factory + "/" + name)
			t.layer.Factory = append(t.layer.Factory, VarFile{Path: "/" + name})
		}
	}
	return nil
}

// line adds a line of tmpfiles.d(5).
func (t *tidier) line(kind, name, middle, argument string) {
	l := kind + " " + quoteField(name) + " " + middle
	if argument != "" {
		// The last field is taken as it is, to the line's end.
		l += " " + strings.NewReplacer("%", "%%", `\`, `\\`).Replace(argument)
	}
	t.lines = append(t.lines, l)
}

// covered are the paths that the image's and the packages' own tmpfiles.d make.
func (t *tidier) covered() (map[string]bool, error) {
	dir, err := t.merged.Open("usr/lib/tmpfiles.d")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for _, name := range names {
		if !strings.HasSuffix(name, ".conf") {
			continue
		}
		text, err := readFile(t.merged, "usr/lib/tmpfiles.d/"+name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) >= 2 && strings.ContainsAny(f[0][:1], "dDvqQLCfF") {
				out[path.Clean(strings.Trim(f[1], `"`))] = true
			}
		}
	}
	return out, nil
}

// relink points the hard links at names that are still in the layer.
func (t *tidier) relink() {
	first := make(map[[2]uint64]string)
	for _, name := range t.cs.sorted() {
		c := t.cs[name]
		if !c.isRegular() || c.stat.Nlink < 2 {
			continue
		}
		id := [2]uint64{c.stat.Dev, c.stat.Ino}
		if to, ok := first[id]; ok {
			c.link = to
		} else {
			first[id] = name
		}
	}
}
