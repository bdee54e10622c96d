package layering

import (
	"context"
	_ "embed" // the program that runs in the image
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// dnf is the engine of images with dnf 4. Its Python modules choose and fetch,
// and rpm's run the transaction: they say in data what the programs say in
// prose. dnf's own history, in /var, is not written.
type dnf struct{}

//go:embed dnf.py
var dnfProgram []byte

// rpmDatabases are where images have the database in /usr.
var rpmDatabases = []string{"usr/lib/sysimage/rpm", "usr/share/rpm"}

const rpmVar = "var/lib/rpm"

func (*dnf) name() string { return "dnf" }

func (*dnf) helpers(root *os.Root) error {
	for _, dir := range rpmDatabases {
		if _, err := root.Stat(dir); err != nil {
			continue
		}
		if err := root.RemoveAll(rpmVar); err != nil {
			return err
		}
		return root.Symlink("../../"+dir, rpmVar)
	}
	return nil
}

func (*dnf) cacheDirs() []string { return nil }

func (*dnf) adapt(root *os.Root) error {
	st, err := root.Lstat(rpmVar)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	return moveDatabase(root, rpmVar, rpmDatabases[0])
}

// noSpace is ENOSPC in the C library's words.
const noSpace = "No space left on device"

// dnfAnswer is what the program writes to descriptor 3.
type dnfAnswer struct {
	Error   string   `json:"error"`
	Message string   `json:"message"`
	Known   []string `json:"known"`   // "not found": the names there are
	Package string   `json:"package"` // "scriptlet"
	Output  string   `json:"output"`  // "scriptlet"
	Install []struct {
		Package
		Path string `json:"path"` // of a local file, in the box
	} `json:"install"`
	Remove []Package `json:"remove"`
	Found  []Found   `json:"found"` // "search"
}

// call runs the program in a box.
func (e *dnf) call(ctx context.Context, b *box, verb string, request map[string]any) (*dnfAnswer, string, error) {
	tool := b.s.path("engine.py") // not dnf.py: Python would take it for the module
	if err := os.WriteFile(tool, dnfProgram, 0o644); err != nil {
		return nil, "", err
	}
	in, err := json.Marshal(request)
	if err != nil {
		return nil, "", err
	}
	inBox := *b
	inBox.binds = append(slices.Clone(b.binds), bind{from: tool, to: path.Join(boxTools, "engine.py")})
	out, err := inBox.run(ctx, command{argv: []string{"python3", "-B", path.Join(boxTools, "engine.py"), verb}, stdin: in, report: true, together: true})
	if err != nil {
		return nil, "", err
	}
	var a dnfAnswer
	if strings.Contains(out.tail, noSpace) {
		return nil, out.tail, fault.New(fault.NoSpace, "free some space", "dnf: %s", lastLines(out.tail, 3))
	}
	if out.code != 0 || json.Unmarshal([]byte(out.report), &a) != nil {
		return nil, out.tail, fault.New(fault.Conflict, "see whether dnf works in the image", "dnf ended with status %d without an answer:\n%s", out.code, lastLines(out.tail, 20))
	}
	return &a, out.tail, dnfFailure(&a)
}

func dnfFailure(a *dnfAnswer) error {
	switch a.Error {
	case "":
		return nil
	case "not found":
		return noSuchPackage(a.Message, a.Known)
	case "gone":
		return goneMeanwhile(a.Message)
	case "untrusted":
		return fault.New(fault.Untrusted, "resolve again, and check the repository's key and checksums", "%s", a.Message)
	case "unavailable":
		return fault.New(fault.Unavailable, "check the network and the repository's address; nothing was changed", "%s", a.Message)
	case "scriptlet":
		return notInstalled(fault.Scriptlet, path.Base(a.Package), a.Message, a.Output)
	}
	return fault.New(fault.Conflict, "ask for other packages, or for removing what stands in the way", "the packages cannot be installed on this base: %s", a.Message)
}

func (e *dnf) resolve(ctx context.Context, b *box, r *resolution) (*Lock, error) {
	a, _, err := e.call(ctx, b, "resolve", map[string]any{
		"cache": boxCache, "cacheonly": b.s.opt.CacheOnly, "refresh": true, "install": orEmpty(slices.Concat(r.install, r.exact)), "upgrade": orEmpty(r.upgrade),
		"paths": orEmpty(r.paths), "remove": orEmpty(r.remove),
	})
	if err != nil {
		return nil, err
	}
	lock := &Lock{Engine: e.name(), Remove: a.Remove}
	for _, i := range a.Install {
		p := i.Package
		if n := slices.Index(r.paths, i.Path); n >= 0 {
			p.Checksum, p.Size, p.Repository = r.files[n].Checksum, r.files[n].Size, ""
		}
		lock.Install = append(lock.Install, p)
	}
	return lock, nil
}

// orEmpty: JSON's null is no list.
func orEmpty(s []string) []string { return append([]string{}, s...) }

func (e *dnf) inspect(ctx context.Context, b *box, file string) (Package, error) {
	out, err := b.run(ctx, command{argv: []string{"rpm", "-qp", "--nosignature", "--qf", rpmFormat, file}})
	if err != nil {
		return Package{}, err
	}
	list, perr := parseRPMs(out.stdout)
	if out.code != 0 || perr != nil || len(list) != 1 {
		return Package{}, fault.New(fault.Usage, "give an .rpm file", "not an RPM package: %s", lastLines(out.tail, 2))
	}
	return list[0], nil
}

func (e *dnf) fetch(ctx context.Context, b *box, l *Lock) error {
	_, _, err := e.call(ctx, b, "fetch", map[string]any{"cache": boxCache, "packages": boxPackages, "install": l.Install})
	return err
}

func (e *dnf) transact(ctx context.Context, b *box, l *Lock) (string, error) {
	paths := []string{}
	for _, p := range l.Install {
		paths = append(paths, path.Join(boxPackages, packageFile(p)+".rpm"))
	}
	a, output, err := e.call(ctx, b, "transact", map[string]any{"paths": paths, "remove": append([]Package{}, l.Remove...)})
	if a != nil && a.Error == "scriptlet" {
		for _, p := range l.Install {
			if strings.HasPrefix(path.Base(a.Package), packageFile(p)) {
				a.Package = p.Name
			}
		}
		err = dnfFailure(a)
	}
	return output, err
}

const rpmFormat = `%{NAME}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\t%{ARCH}\n`

func (e *dnf) query(ctx context.Context, b *box) ([]Package, error) {
	out, err := b.run(ctx, command{argv: []string{"rpm", "-qa", "--qf", rpmFormat}})
	if err != nil {
		return nil, err
	}
	if out.code != 0 {
		return nil, fault.New(fault.Conflict, "see whether rpm works in the image", "list the image's packages: %s", lastLines(out.tail, 5))
	}
	return parseRPMs(out.stdout)
}

func parseRPMs(text string) ([]Package, error) {
	var list []Package
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 {
			return nil, fmt.Errorf("rpm's answer is not understood: %.100q", line)
		}
		if f[0] == "gpg-pubkey" {
			continue // keys that were imported, kept as packages
		}
		list = append(list, Package{Name: f[0], Version: f[1], Arch: f[2]})
	}
	sortPackages(list)
	return list, nil
}

func (*dnf) owner(ctx context.Context, b *box, file string) (string, error) {
	out, err := b.run(ctx, command{argv: []string{"rpm", "-qf", "--qf", "%{NAME}\n", file}})
	if err != nil || out.code != 0 {
		return "", err
	}
	return strings.TrimSpace(out.stdout), nil
}

func (*dnf) transient(name string) bool {
	for _, dir := range rpmDatabases {
		if path.Dir(name) == dir {
			base := path.Base(name)
			return strings.HasSuffix(base, "-wal") || strings.HasSuffix(base, "-shm") || base == ".rpm.lock" || strings.HasPrefix(base, "__db.")
		}
	}
	for _, dir := range []string{rpmVar, "var/lib/dnf", "var/cache/dnf", "var/cache/libdnf5"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// dnfName is what dnf takes for a package: a name with parts of a NEVRA, a
// provide such as perl(Carp) or font(:lang=de), or the path of a file. Globs,
// groups and modules are not packages.
var dnfName = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9+._~^:/()=-]*$`)

func (*dnf) checkName(name string) error {
	if len(name) > 256 || !dnfName.MatchString(name) || filepath.IsAbs(name) && filepath.Clean(name) != name {
		return fault.New(fault.Usage, "give a name as dnf takes it: NAME, NAME-VERSION, NAME.ARCH, a provide or the path of a file", "%.80q is not the name of a package", name)
	}
	return nil
}

func (*dnf) packageOf(name string, base []Package) string {
	return longestPrefix(name, base, func(p Package, rest string) bool {
		return rest == "."+p.Arch || len(rest) > 1 && rest[0] == '-' && rest[1] >= '0' && rest[1] <= '9'
	})
}
