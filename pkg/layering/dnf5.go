package layering

import (
	"context"
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

	"github.com/opencontainers/go-digest"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

// dnf5 is the engine of images with dnf5. It runs the program alone, since
// images with it need not have Python: "--store" writes what was chosen as
// JSON, together with the packages, and "replay" installs exactly that. Locks
// are those of dnf 4, so that a host moves from one to the other.
//
// Choosing brings the packages, whose checksums dnf5 tells nobody: Resolve
// fills the cache.
type dnf5 struct{ dnf }

// Directories of dnf5 in the cache: its metadata, and what it stored.
const (
	dnf5Cache  = "dnf5"
	dnf5Stored = "dnf5-stored"
)

func (*dnf5) cacheDirs() []string { return []string{dnf5Cache} }

// dnf5Call is a call of dnf5 with state and caches where the root is not written.
func dnf5Call(args ...string) command {
	cache := path.Join(boxCache, dnf5Cache)
	return command{argv: append([]string{
		"dnf5", "-y", "--no-plugins", "--setopt=cachedir=" + cache, "--setopt=system_cachedir=" + cache,
		"--setopt=logdir=/tmp", "--setopt=persistdir=/tmp", "--setopt=system_state_dir=/tmp/state",
		// Whether a package is there for others' sake only is not known in an image.
		"--setopt=clean_requirements_on_remove=0",
	}, args...)}
}

// dnf5 is a call that asks repositories, or the cache alone. A repository that
// cannot be read must not look like one without packages.
func (b *box) dnf5(args ...string) command {
	metadata := "--refresh"
	if b.s.opt.CacheOnly {
		metadata = "--cacheonly"
	}
	return dnf5Call(append([]string{metadata, "--setopt=skip_if_unavailable=0", "--setopt=*.skip_if_unavailable=0"}, args...)...)
}

// storedTransaction is what --store writes and replay reads
// (dnf5, doc/misc/transaction_replay: version 1).
type storedTransaction struct {
	Version string          `json:"version"`
	RPMs    []storedPackage `json:"rpms"`
}

type storedPackage struct {
	NEVRA  string `json:"nevra"`
	Action string `json:"action"`
	Reason string `json:"reason"`
	Repo   string `json:"repo_id"` // "@stored_transaction(REPOSITORY)"
	Path   string `json:"package_path,omitempty"`
}

func (e *dnf5) resolve(ctx context.Context, b *box, r *resolution) (*Lock, error) {
	lock := &Lock{Engine: e.name()}
	if len(r.named())+len(r.paths)+len(r.remove) == 0 {
		return lock, nil
	}
	dir := filepath.Join(b.s.opt.Cache, e.name(), dnf5Stored)
	// The packages stay there under their own names: dnf5 brings none twice.
	if err := os.RemoveAll(filepath.Join(dir, "transaction.json")); err != nil {
		return nil, err
	}
	args := []string{"do", "--allowerasing", "--store=" + path.Join(boxCache, dnf5Stored)}
	if wanted := slices.Concat(r.install, r.exact, r.paths); len(wanted) > 0 {
		args = append(append(args, "--action=install"), wanted...)
	}
	if len(r.upgrade) > 0 {
		args = append(append(args, "--action=upgrade"), r.upgrade...)
	}
	if len(r.remove) > 0 {
		args = append(append(args, "--action=remove"), r.remove...)
	}
	out, err := b.run(ctx, b.dnf5(args...))
	if err != nil {
		return nil, err
	}
	if out.code != 0 {
		return nil, e.failure(ctx, b, out)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "transaction.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return lock, nil // nothing to do
	}
	if err != nil {
		return nil, err
	}
	var stored storedTransaction
	if err := json.Unmarshal(raw, &stored); err != nil || !strings.HasPrefix(stored.Version, "1.") {
		return nil, fault.New(fault.Conflict, "", "dnf5 stored a transaction of version %q, which is not understood (%w)", stored.Version, err)
	}
	if err := e.readStored(dir, &stored, r, lock); err != nil {
		return nil, err
	}
	bring := &Lock{Install: slices.DeleteFunc(slices.Clone(lock.Install), func(p Package) bool { return p.Repository == "" })}
	if len(bring.Install) == 0 {
		return lock, nil
	}
	packages := filepath.Join(dir, "packages")
	if err := e.verify(ctx, b, path.Join(boxCache, dnf5Stored, "packages"), packages, bring); err != nil {
		return nil, err
	}
	return lock, e.keep(b.s, packages, bring)
}

// keep gives the packages of a lock a second name in the cache, and removes
// those of earlier locks.
func (e *dnf5) keep(s *Session, dir string, l *Lock) error {
	names, err := filesBySum(dir)
	if err != nil {
		return err
	}
	for _, p := range l.Install {
		ok, err := s.cached(p)
		if err != nil {
			return err
		}
		if name := names[p.Checksum]; !ok {
			if err := os.Link(filepath.Join(dir, name), s.pool(p)); err != nil {
				return err
			}
		}
		delete(names, p.Checksum)
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// readStored turns a stored transaction into a lock.
func (e *dnf5) readStored(dir string, stored *storedTransaction, r *resolution, lock *Lock) error {
	var gone []Package
	for _, s := range stored.RPMs {
		p, err := parseNEVRA(s.NEVRA)
		if err != nil {
			return err
		}
		switch s.Action {
		case "Install", "Upgrade", "Downgrade", "Reinstall":
		case "Remove", "Replaced":
			gone = append(gone, p)
			continue
		default: // reasons
			continue
		}
		if s.Action == "Reinstall" && slices.Contains(r.base, p) {
			continue
		}
		local := func(p string) bool {
			return strings.Contains(s.Repo, "@commandline") && path.Base(p) == path.Base(s.Path)
		}
		if i := slices.IndexFunc(r.paths, local); i >= 0 {
			lock.Install = append(lock.Install, r.files[i])
			continue
		}
		file := filepath.Join(dir, "packages", filepath.Base(s.Path))
		sum, err := fileDigest(file, digest.SHA256)
		if err != nil {
			return err
		}
		st, err := os.Stat(file)
		if err != nil {
			return err
		}
		p.Checksum, p.Size = sum.String(), st.Size()
		p.Repository = strings.TrimSuffix(strings.TrimPrefix(s.Repo, "@stored_transaction("), ")")
		p.Requested = slices.ContainsFunc(r.named(), func(n string) bool {
			return n == p.Name || strings.HasPrefix(n, p.Name+"-") || strings.HasPrefix(n, p.Name+".")
		})
		p.Requested = p.Requested || s.Reason == "User" && s.Action == "Install"
		lock.Install = append(lock.Install, p)
	}
	for _, p := range gone {
		i := slices.IndexFunc(lock.Install, func(q Package) bool { return q.Name == p.Name && q.Arch == p.Arch })
		if i >= 0 {
			lock.Install[i].Replaces = p.Version
		} else {
			lock.Remove = append(lock.Remove, p)
		}
	}
	return nil
}

// parseNEVRA reads NAME-[EPOCH:]VERSION-RELEASE.ARCH.
func parseNEVRA(s string) (p Package, err error) {
	rest, arch, ok := cutLast(s, ".")
	rest, release, ok2 := cutLast(rest, "-")
	name, version, ok3 := cutLast(rest, "-")
	if !ok || !ok2 || !ok3 || name == "" {
		return p, fault.New(fault.Internal, "", "dnf5 names a package %.200q", s)
	}
	if !strings.Contains(version, ":") {
		version = "0:" + version
	}
	return Package{Name: name, Version: version + "-" + release, Arch: arch}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// failure is why dnf5 did not choose or fetch, in the words that it has for it
// (LC_ALL=C.UTF-8).
func (e *dnf5) failure(ctx context.Context, b *box, out *outcome) error {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(out.tail, w) })
	}
	why := strings.TrimSpace(out.tail)
	if _, after, ok := strings.Cut(why, "Repositories loaded."); ok {
		why = strings.TrimSpace(after)
	}
	why, _, _ = strings.Cut(why, "You can try to add to command line:")
	if _, rest, ok := strings.Cut(out.tail, "No match for argument: "); ok {
		name, _, _ := strings.Cut(rest, "\n")
		names, err := b.run(ctx, b.dnf5("repoquery", "--available", "--qf=%{name}\n"))
		if err != nil {
			return err
		}
		return noSuchPackage(strings.TrimSpace(name), strings.Fields(names.stdout))
	}
	kind := "conflict"
	switch {
	case has(noSpace):
		return fault.New(fault.NoSpace, "free some space", "dnf5: %s", lastLines(why, 3))
	case has("checksum doesn't match", "OpenPGP", "GPG", "signature", "Signature"):
		kind = "untrusted"
	case has("Failed to download", "Librepo error", "Curl error", "Cannot download", "No available mirror"):
		kind = "unavailable"
	}
	return dnfFailure(&dnfAnswer{Error: kind, Message: strings.TrimSpace(lastLines(why, 20))})
}

// noPackage is what "download" says of a package that no repository has.
var noPackage = regexp.MustCompile(`(?:No match for argument: |No package ")([^\s"]+)`)

func (e *dnf5) fetch(ctx context.Context, b *box, l *Lock) error {
	args := []string{"download", "--destdir=" + boxPackages}
	for _, p := range l.Install {
		args = append(args, fmt.Sprintf("%s-%s.%s", p.Name, p.Version, p.Arch))
	}
	out, err := b.run(ctx, b.dnf5(args...))
	if err != nil {
		return err
	}
	if out.code != 0 {
		if m := noPackage.FindStringSubmatch(out.tail); m != nil {
			return goneMeanwhile(m[1])
		}
		return e.failure(ctx, b, out)
	}
	return e.verify(ctx, b, boxPackages, filepath.Join(b.s.opt.Cache, fetching), l)
}

// rpmMacros keep rpm from the plugins whose partners are not in the sandbox, and
// from checking signatures again: that was done with the repositories' keys when
// the files were fetched, and the files are those by their checksums.
const rpmMacros = `%__transaction_audit %{nil}
%__transaction_dbus_announce %{nil}
%__transaction_fapolicyd %{nil}
%__transaction_syslog %{nil}
%__transaction_systemd_inhibit %{nil}
%__transaction_unshare %{nil}
%_pkgverify_level digest
`

func (e *dnf5) transact(ctx context.Context, b *box, l *Lock) (string, error) {
	if len(l.Install)+len(l.Remove) == 0 {
		return "", nil
	}
	t := storedTransaction{Version: "1.0"}
	add := func(p Package, action, file string) {
		t.RPMs = append(t.RPMs, storedPackage{
			NEVRA: fmt.Sprintf("%s-%s.%s", p.Name, strings.TrimPrefix(p.Version, "0:"), p.Arch), Action: action, Reason: "User", Repo: "kedge", Path: file,
		})
	}
	for _, p := range l.Install {
		action := "Install"
		if p.Replaces != "" {
			action = "Upgrade"
			if pkgdb.CompareVersions(pkgdb.RPM, p.Replaces, p.Version) > 0 {
				action = "Downgrade"
			}
			add(Package{Name: p.Name, Version: p.Replaces, Arch: p.Arch}, "Replaced", "")
		}
		add(p, action, path.Join(boxPackages, packageFile(p)+".rpm"))
	}
	for _, p := range l.Remove {
		add(p, "Remove", "")
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	tools := b.s.path("replay")
	if err := os.MkdirAll(tools, 0o755); err != nil {
		return "", err
	}
	for name, data := range map[string][]byte{"transaction.json": raw, "macros": []byte(rpmMacros)} {
		if err := os.WriteFile(filepath.Join(tools, name), data, 0o644); err != nil {
			return "", err
		}
	}
	in := *b
	in.binds = append(slices.Clone(b.binds), bind{from: tools, to: boxTools}, bind{from: filepath.Join(tools, "macros"), to: "/tmp/.rpmmacros"})
	c := dnf5Call(
		"--setopt=reposdir=/nonexistent", "--setopt=protected_packages=", "--setopt=install_weak_deps=0", "--setopt=gpgcheck=0",
		"replay", "--ignore-extras", boxTools,
	)
	c.together = true
	out, err := in.run(ctx, c)
	if err != nil {
		return "", err
	}
	if err := dnf5Scriptlet(out.tail); err != nil {
		return out.tail, err
	}
	if out.code != 0 {
		return out.tail, e.failure(ctx, b, out)
	}
	return out.tail, nil
}

// scriptletError is a line of dnf5's output; what rpm and the scriptlet said
// follows, each line behind ">>> ".
var scriptletError = regexp.MustCompile(`(?m)^>>> (?:.*)[Ee]rror in (%\w+) scriptlet: (\S+)$`)

func dnf5Scriptlet(tail string) error {
	m := scriptletError.FindStringSubmatchIndex(tail)
	if m == nil {
		return nil
	}
	what, nevra := tail[m[2]:m[3]], tail[m[4]:m[5]]
	name := nevra
	if p, err := parseNEVRA(nevra); err == nil {
		name = p.Name
	}
	var lines []string
	for line := range strings.Lines(tail[m[1]:]) {
		if said, ok := strings.CutPrefix(strings.TrimSpace(line), ">>>"); ok {
			lines = append(lines, strings.TrimSpace(said))
		}
	}
	return notInstalled(fault.Scriptlet, name, what+" scriptlet failed", strings.Join(lines, "\n"))
}
