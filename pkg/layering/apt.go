package layering

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// apt is the engine of Debian and its derivatives: apt-get chooses, fetches and
// installs, dpkg unpacks and runs maintainer scripts. The database is read
// here, in dpkg's own format (deb822; dpkg-query(1)).
type apt struct{}

const (
	dpkgUsr = "usr/lib/sysimage/dpkg"
	dpkgVar = "var/lib/dpkg"
)

func (*apt) name() string { return "apt" }

func (*apt) helpers(root *os.Root) error {
	if _, err := root.Stat(dpkgUsr + "/status"); err == nil {
		if err := root.RemoveAll(dpkgVar); err != nil {
			return err
		}
		if err := root.Symlink("../../"+dpkgUsr, dpkgVar); err != nil {
			return err
		}
	}
	for _, d := range []string{"var/lib/apt", "var/log/apt", "var/cache/apt", "var/cache/debconf", "usr/sbin"} {
		if err := mkdirAll(root, d); err != nil {
			return err
		}
	}
	// No service is started in the sandbox (invoke-rc.d asks this program).
	return root.WriteFile("usr/sbin/policy-rc.d", []byte("#!/bin/sh\nexit 101\n"), 0o755)
}

func (*apt) cacheDirs() []string { return []string{"lists/partial", "archives/partial"} }

func (*apt) adapt(root *os.Root) error {
	st, err := root.Lstat(dpkgVar)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	return moveDatabase(root, dpkgVar, dpkgUsr)
}

const aptLists = "Dir::State::lists=" + boxCache + "/lists"

// aptOptions go with every call: state and caches where the root is not written.
var aptOptions = []string{
	"-q", "-o", "APT::Get::Assume-Yes=true", "-o", "Dpkg::Use-Pty=0", "-o", "Debug::NoLocking=1",
	"-o", "Dir::Cache=" + boxCache, "-o", aptLists, "-o", "Dir::Log=/tmp", "-o", "Acquire::Languages=none", "-o", "quiet::NoStatistic=true",
}

func aptGet(args ...string) command {
	return command{
		argv: slices.Concat([]string{"apt-get"}, aptOptions, args),
		env:  []string{"DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true", "APT_LISTCHANGES_FRONTEND=none"},
	}
}

func aptCache(args ...string) []string {
	return append([]string{"apt-cache", "-o", aptLists, "-o", "Dir::Cache=" + boxCache}, args...)
}

// update reads the repositories, unless the cache is to be enough.
func (*apt) update(ctx context.Context, b *box) error {
	if b.s.opt.CacheOnly {
		return nil
	}
	out, err := b.run(ctx, aptGet("-o", "APT::Update::Error-Mode=any", "update"))
	if err == nil && out.code != 0 {
		err = aptFailure("read the repositories", out)
	}
	return err
}

func (e *apt) resolve(ctx context.Context, b *box, r *resolution) (*Lock, error) {
	if err := e.update(ctx, b); err != nil {
		return nil, err
	}
	args := []string{"install"}
	if r.replacing {
		args = append(args, "--allow-downgrades", "--allow-change-held-packages")
	}
	args = append(args, r.named()...)
	args = append(args, r.paths...)
	for _, n := range r.remove {
		args = append(args, n+"-")
	}
	sim, err := b.run(ctx, aptGet(append([]string{"--simulate"}, args...)...))
	if err != nil {
		return nil, err
	}
	if sim.code != 0 {
		return nil, e.unresolved(ctx, b, r, sim)
	}
	lock := &Lock{Engine: e.name()}
	if err := parseSimulation(sim.stdout, r, lock); err != nil || len(lock.Install) == 0 {
		return lock, err
	}
	show := append(aptCache("show"), aptVersions(lock)...)
	records, err := b.run(ctx, command{argv: show})
	if err != nil {
		return nil, err
	}
	return lock, addChecksums(records.stdout, r, lock)
}

// instLine is a line of apt-get's simulation, such as
//
//	Inst libc6 [2.41-12] (2.41-13 Debian:13.2/stable [amd64]) []
//	Remv lab-editor [1.0] [lab-vi:amd64 ]
var (
	instLine = regexp.MustCompile(`^Inst (\S+) (?:\[(\S+)\] )?\((\S+) (.*)\[(\S+)\]\)`)
	remvLine = regexp.MustCompile(`^Remv (\S+) \[(\S+)\]`)
)

func parseSimulation(text string, r *resolution, lock *Lock) error {
	find := func(name, version string) (Package, bool) {
		name, arch, _ := strings.Cut(name, ":")
		for _, p := range r.base {
			if p.Name == name && p.Version == version && (arch == "" || p.Arch == arch) {
				return p, true
			}
		}
		return Package{}, false
	}
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "Inst "):
			m := instLine.FindStringSubmatch(line)
			if m == nil {
				return fault.New(fault.Internal, "", "apt-get's answer is not understood: %q", line)
			}
			name, _, _ := strings.Cut(m[1], ":")
			lock.Install = append(lock.Install, Package{
				Name: name, Version: m[3], Arch: m[5], Replaces: m[2], Repository: strings.TrimSpace(m[4]),
				Requested: requested(r, name),
			})
		case strings.HasPrefix(line, "Remv "):
			m := remvLine.FindStringSubmatch(line)
			if m == nil {
				return fault.New(fault.Internal, "", "apt-get's answer is not understood: %q", line)
			}
			p, ok := find(m[1], m[2])
			if !ok {
				return fault.New(fault.Internal, "", "apt-get would remove %s, which is not in the database", m[1])
			}
			lock.Remove = append(lock.Remove, p)
		}
	}
	return nil
}

func requested(r *resolution, name string) bool {
	for _, n := range r.named() {
		if i := strings.IndexAny(n, ":=/"); i > 0 {
			n = n[:i]
		}
		if n == name {
			return true
		}
	}
	return slices.ContainsFunc(r.files, func(f Package) bool { return f.Name == name })
}

// addChecksums reads the answer of apt-cache show: stanzas of the packages'
// repositories, several for a package that several have.
func addChecksums(text string, r *resolution, lock *Lock) error {
	for stanza := range strings.SplitSeq(text, "\n\n") {
		f := fields(stanza)
		size, err := strconv.ParseInt(f["Size"], 10, 64)
		if err != nil {
			continue // the stanza of the installed package
		}
		for i := range lock.Install {
			p := &lock.Install[i]
			if p.Name != f["Package"] || p.Version != f["Version"] || p.Arch != f["Architecture"] || p.Checksum != "" {
				continue
			}
			if sum := f["SHA256"]; sum != "" {
				p.Checksum, p.Size = "sha256:"+sum, size
			}
		}
	}
	for i := range lock.Install {
		p := &lock.Install[i]
		for _, f := range r.files {
			if p.Name == f.Name && p.Version == f.Version && p.Arch == f.Arch {
				p.Checksum, p.Size, p.Repository = f.Checksum, f.Size, ""
			}
		}
		if p.Checksum == "" {
			return fault.New(fault.Untrusted, "the repository must list SHA-256 checksums", "no repository gives a checksum for %s %s", p.Name, p.Version)
		}
	}
	return nil
}

// fields are those of a deb822 stanza that have one line.
func fields(stanza string) map[string]string {
	f := make(map[string]string)
	for line := range strings.Lines(stanza) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && line[0] != ' ' {
			f[key] = value
		}
	}
	return f
}

func (*apt) inspect(ctx context.Context, b *box, file string) (Package, error) {
	out, err := b.run(ctx, command{argv: []string{"dpkg-deb", "--show", "--showformat=${Package} ${Version} ${Architecture}", file}})
	if err != nil {
		return Package{}, err
	}
	f := strings.Fields(out.stdout)
	if out.code != 0 || len(f) != 3 {
		return Package{}, fault.New(fault.Usage, "give a .deb file", "not a Debian package: %s", lastLines(out.tail, 2))
	}
	return Package{Name: f[0], Version: f[1], Arch: f[2]}, nil
}

func (e *apt) fetch(ctx context.Context, b *box, l *Lock) error {
	c := aptGet(append([]string{"download"}, aptVersions(l)...)...)
	c.dir = boxPackages
	out, err := b.run(ctx, c)
	if err != nil {
		return err
	}
	if out.code != 0 {
		return aptFailure("download the packages", out)
	}
	return nil
}

// aptVersions are the lock's packages in apt's words. A package for all
// architectures is asked for without one.
func aptVersions(l *Lock) []string {
	var out []string
	for _, p := range l.Install {
		name := p.Name + ":" + p.Arch
		if p.Arch == "all" {
			name = p.Name
		}
		out = append(out, name+"="+p.Version)
	}
	return out
}

func (e *apt) transact(ctx context.Context, b *box, l *Lock) (string, error) {
	args := []string{
		"-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Options::=--force-unsafe-io",
		"-o", "APT::Status-Fd=3", "-o", "APT::Sandbox::User=root", "-o", "Binary::apt::DPkg::Progress-Fancy=false",
		"--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages",
	}
	if len(l.Remove) > 0 {
		args = append(args, "--allow-remove-essential")
	}
	args = append(args, "install")
	for _, p := range l.Install {
		args = append(args, path.Join(boxPackages, packageFile(p)+".deb"))
	}
	for _, p := range l.Remove {
		args = append(args, p.Name+":"+p.Arch+"-")
	}
	c := aptGet(args...)
	c.report, c.together = true, true
	out, err := b.run(ctx, c)
	if err != nil {
		return "", err
	}
	// pmerror:PACKAGE:PERCENT:MESSAGE (apt's README.progress-reporting)
	for line := range strings.Lines(out.report) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 4); f[0] == "pmerror" && len(f) == 4 {
			kind := fault.Conflict
			if strings.Contains(f[3], "script subprocess") {
				kind = fault.Scriptlet
			}
			return out.tail, notInstalled(kind, f[1], f[3], out.tail)
		}
	}
	if out.code != 0 {
		return out.tail, aptFailure("install the packages", out)
	}
	return out.tail, nil
}

// notInstalled is what to say when a package could not be installed; output ends
// with what its scriptlet said, where that failed.
func notInstalled(kind fault.Kind, pkg, what, output string) error {
	return fault.New(kind, "leave the package out, or report the failure to those who made it",
		"package %s: %s; its last lines:\n%s", pkg, what, lastLines(output, 20))
}

// aptSaid is apt-get's output with its errors on lines of their own: it may not
// have ended the line of what it was doing.
func aptSaid(out *outcome) string { return strings.ReplaceAll(out.tail, "...E: ", "...\nE: ") }

// aptFailure classifies a failure by what apt-get calls it (LC_ALL=C.UTF-8).
func aptFailure(doing string, out *outcome) error {
	var words []string
	for line := range strings.Lines(aptSaid(out)) {
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "W: GPG") || strings.HasPrefix(line, "Err:") {
			words = append(words, strings.TrimSpace(line))
		}
	}
	why := strings.Join(words, "\n")
	if why == "" {
		why = fmt.Sprintf("exit status %d: %s", out.code, lastLines(out.tail, 5))
	}
	has := func(any ...string) bool {
		return slices.ContainsFunc(any, func(s string) bool { return strings.Contains(out.tail, s) })
	}
	switch {
	case has("is not valid yet (invalid for another", "is expired (invalid since"):
		return fault.New(fault.Untrusted, "check this machine's clock (timedatectl), and whether the repository is still looked after", "%s: %s", doing, why)
	case has("NO_PUBKEY", "GPG error", "is not signed", "BADSIG", "EXPKEYSIG", "Hash Sum mismatch", "File has unexpected size", "cannot be authenticated", "not verified"):
		return fault.New(fault.Untrusted, "check the repository's key and signature", "%s: %s", doing, why)
	case has("No space left on device", "don't have enough free space"):
		return fault.New(fault.NoSpace, "", "%s: %s", doing, why)
	case has("Failed to fetch", "Could not resolve", "Could not connect", "Unable to connect", "does not have a Release file"):
		return fault.New(fault.Unavailable, "check the network and the repository's address; nothing was changed", "%s: %s", doing, why)
	}
	return fault.New(fault.Conflict, "", "%s: %s", doing, why)
}

// unresolved is why the packages cannot be chosen.
func (e *apt) unresolved(ctx context.Context, b *box, r *resolution, out *outcome) error {
	for line := range strings.Lines(aptSaid(out)) {
		if _, rest, ok := strings.Cut(line, "E: Version '"); ok {
			return fault.New(fault.NotFound, "kedge pkg search shows the version that the repositories have", "no repository has the version '%s", strings.TrimSpace(rest))
		}
		for _, said := range []string{"E: Unable to locate package ", "E: Package '"} {
			// Its progress may stand before it on the line.
			_, rest, ok := strings.Cut(line, said)
			if !ok {
				continue
			}
			name := strings.TrimSpace(strings.SplitN(rest, "'", 2)[0])
			names, err := b.run(ctx, command{argv: aptCache("pkgnames")})
			if err != nil {
				return err
			}
			return noSuchPackage(name, strings.Fields(names.stdout))
		}
	}
	// The solver's words stand above its "E:" line.
	text := out.tail
	if i := strings.Index(text, "The following packages have unmet dependencies"); i >= 0 {
		text = text[i:]
	}
	return fault.New(fault.Conflict, "ask for other packages, or for removing what stands in the way", "the packages cannot be installed on this base: %s", strings.TrimSpace(text))
}

// owner implements engine. The answer is PACKAGE[:ARCH][, …]: FILE.
func (*apt) owner(ctx context.Context, b *box, file string) (string, error) {
	out, err := b.run(ctx, command{argv: []string{"dpkg-query", "--search", file}})
	if err != nil || out.code != 0 {
		return "", err
	}
	name, _, _ := strings.Cut(out.stdout, ":")
	return name, nil
}

func (*apt) transient(name string) bool {
	switch {
	case path.Dir(name) == dpkgUsr:
		base := path.Base(name)
		return strings.HasSuffix(base, "-old") || base == "lock" || base == "lock-frontend" || base == "available"
	case name == dpkgUsr+"/triggers/Lock":
		return true
	}
	for _, dir := range []string{dpkgVar, "var/lib/apt", "var/cache/apt", "var/cache/debconf", "var/lib/systemd/deb-systemd-helper-enabled", "var/lib/systemd/deb-systemd-user-helper-enabled"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// aptName is a package name of Debian policy 5.6.7, with an architecture and a
// version if wanted. A name that ends in "-" would remove the package.
var aptName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*[a-z0-9+.](:[a-z0-9-]+)?(=[0-9A-Za-z.+:~-]+)?$`)

func (*apt) checkName(name string) error {
	if len(name) > 256 || !aptName.MatchString(name) {
		return fault.New(fault.Usage, "give a name as apt-get takes it: NAME, NAME:ARCH or NAME=VERSION", "%.80q is not the name of a package", name)
	}
	return nil
}

func (*apt) packageOf(name string, base []Package) string {
	return longestPrefix(name, base, func(_ Package, rest string) bool { return rest[0] == ':' || rest[0] == '=' })
}
