package layering

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// spaceEvery is how often a transaction's use of space is looked at.
const spaceEvery = 50 * time.Millisecond

// Packages lists the packages of the base.
func (s *Session) Packages(ctx context.Context) (list []Package, err error) {
	err = s.do(func() error {
		mnt, err := s.stack("", prepUpper)
		if err != nil {
			return err
		}
		list, err = s.engine.query(ctx, &box{s: s, root: mnt})
		return errors.Join(err, unstack(mnt))
	})
	return list, err
}

// Resolve has the package manager choose what the request takes on this base,
// with the metadata that the repositories have now. Nothing is installed.
//
// Errors: NotFound for a name that no repository has, Conflict where the base
// or the request forbids it, Usage for a name or file that is none, Unavailable
// and Untrusted for repositories that cannot be reached or believed.
func (s *Session) Resolve(ctx context.Context, req Request) (lock *Lock, err error) {
	for _, n := range slices.Concat(req.Install, req.Remove) {
		if err := s.engine.checkName(n); err != nil {
			return nil, err
		}
	}
	err = s.do(func() error {
		b, done, err := s.netBox()
		if err != nil {
			return err
		}
		defer done()
		r := &resolution{install: req.Install, remove: req.Remove}
		if r.base, err = s.engine.query(ctx, b); err != nil {
			return err
		}
		if err := s.takeFiles(ctx, b, req.Files, r); err != nil {
			return err
		}
		for _, n := range req.Remove {
			if !slices.ContainsFunc(r.base, func(p Package) bool { return p.Name == n }) {
				return fault.New(fault.NotFound, "kedge removes packages of the base image only", "the base has no package %s", n)
			}
		}
		if lock, err = s.engine.resolve(ctx, b, r); err != nil {
			return err
		}
		sortPackages(lock.Install)
		sortPackages(lock.Remove)
		return checkRemovals(lock, req.Remove)
	})
	return lock, err
}

// checkRemovals refuses to remove packages of the base that nobody asked to.
func checkRemovals(lock *Lock, asked []string) error {
	var names []string
	for _, p := range lock.Remove {
		if !slices.Contains(asked, p.Name) {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "remove them in the same request, if the base can do without them",
		"the packages would remove packages of the base: %q", names)
}

// Fetch brings the lock's packages to the cache, with a checksum that is the
// lock's. What is in the cache is not fetched again. Local files (Repository
// "") must have been in a request of this session.
func (s *Session) Fetch(ctx context.Context, lock *Lock) error {
	return s.do(func() error {
		missing := &Lock{Engine: lock.Engine}
		for _, p := range lock.Install {
			ok, err := s.cached(p)
			if err != nil {
				return err
			}
			if !ok && p.Repository == "" {
				return fault.New(fault.NotFound, "give the file again", "the local package %s %s (%s) is not in the cache any more", p.Name, p.Version, p.Checksum)
			}
			if !ok {
				missing.Install = append(missing.Install, p)
			}
		}
		if len(missing.Install) == 0 {
			return nil
		}
		b, done, err := s.netBox()
		if err != nil {
			return err
		}
		defer done()
		// Beside the cached packages, to be renamed; with nothing that an earlier
		// run left half-way.
		dir := filepath.Join(s.opt.Cache, "fetching")
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		b.binds = append(b.binds, bind{from: dir, to: boxPackages, writable: true})
		if err := s.engine.fetch(ctx, b, missing); err != nil {
			return err
		}
		return s.takeFetched(dir, missing)
	})
}

// takeFetched moves what was fetched into the cache, under its checksum.
func (s *Session) takeFetched(dir string, lock *Lock) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		file := filepath.Join(dir, e.Name())
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			sum, err := fileDigest(file, alg)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(lock.Install, func(p Package) bool { return p.Checksum == sum.String() })
			if i < 0 {
				continue
			}
			if err := os.Rename(file, s.pool(lock.Install[i])); err != nil {
				return err
			}
			break
		}
	}
	for _, p := range lock.Install {
		if _, err := os.Stat(s.pool(p)); err != nil {
			return fault.New(fault.Untrusted, "resolve again: the repository changed meanwhile, or somebody changes what it sends",
				"no file that was fetched for %s %s has the checksum %s", p.Name, p.Version, p.Checksum)
		}
	}
	return nil
}

// pool is where the cache has a package's file.
func (s *Session) pool(p Package) string {
	return filepath.Join(s.opt.Cache, "packages", packageFile(p)+"."+packageSuffix[s.engine.name()])
}

var packageSuffix = map[string]string{"apt": "deb", "dnf": "rpm"}

// packageFile is a package's file name without its suffix: the checksum.
func packageFile(p Package) string { return digest.Digest(p.Checksum).Encoded() }

// cached reports whether the cache has the package; a damaged file is removed.
func (s *Session) cached(p Package) (bool, error) {
	sum := digest.Digest(p.Checksum)
	if err := sum.Validate(); err != nil {
		return false, fault.New(fault.Corrupt, "resolve again", "the lock has the checksum %q for %s: %w", p.Checksum, p.Name, err)
	}
	if err := os.MkdirAll(filepath.Join(s.opt.Cache, "packages"), 0o755); err != nil {
		return false, err
	}
	got, err := fileDigest(s.pool(p), sum.Algorithm())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || got == sum {
		return err == nil, err
	}
	return false, os.Remove(s.pool(p))
}

func fileDigest(file string, alg digest.Algorithm) (digest.Digest, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return alg.FromReader(f)
}

// Make installs the lock on the base and returns what changed. Fetch must have
// come before. The layer's file is the session's; it goes with Close.
//
// Errors: Conflict for a scriptlet that fails and for a transaction whose
// database is not what the lock says.
func (s *Session) Make(ctx context.Context, lock *Lock) (layer *Layer, err error) {
	if lock.Engine != s.engine.name() {
		return nil, fault.New(fault.Conflict, "remove the packages, or stay with an image of the same package manager",
			"the packages were chosen by %s, and the base has %s", lock.Engine, s.engine.name())
	}
	err = s.do(func() error {
		mnt, err := s.stack(txUpper, prepUpper)
		if err != nil {
			return err
		}
		layer, err = s.makeLayer(ctx, mnt, lock)
		return errors.Join(err, unstack(mnt))
	})
	return layer, err
}

func (s *Session) makeLayer(ctx context.Context, mnt string, lock *Lock) (*Layer, error) {
	merged, err := os.OpenRoot(mnt)
	if err != nil {
		return nil, err
	}
	defer merged.Close()
	started := time.Now()
	if err := s.engine.adapt(merged); err != nil {
		return nil, err
	}
	users, err := readAccounts(merged)
	if err != nil {
		return nil, err
	}
	if err := createAccounts(merged, lock.Accounts); err != nil {
		return nil, err
	}
	b := &box{s: s, root: mnt, writable: true}
	before, err := s.engine.query(ctx, b)
	if err != nil {
		return nil, err
	}
	tx := *b
	empty, err := s.cacheDir(s.path("cache"))
	if err != nil {
		return nil, err
	}
	tx.binds = []bind{empty, {from: filepath.Join(s.opt.Cache, "packages"), to: boxPackages}}
	layer := &Layer{Path: s.path("layer.tar")}
	guarded, done := s.guardSpace(ctx)
	layer.Output, err = s.engine.transact(guarded, &tx, lock)
	done()
	if err != nil {
		return nil, err
	}
	cs, err := s.collect(started)
	if err != nil {
		return nil, err
	}
	// Before anything else runs in a root that may not be one any more.
	if err := intact(cs); err != nil {
		return nil, err
	}
	after, err := s.engine.query(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := checkDatabase(before, lock, after); err != nil {
		return nil, err
	}
	now, err := readAccounts(merged)
	if err != nil {
		return nil, err
	}
	layer.Accounts = newAccounts(users, now)
	base, err := os.OpenRoot(s.base.Root)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	t := &tidier{cs: cs, base: base, merged: merged, engine: s.engine, layer: layer}
	if err := t.run(); err != nil {
		return nil, err
	}
	layer.DiffID, layer.Size, err = writeLayer(cs, s.epoch(), layer.Path)
	return layer, err
}

// guardSpace ends what runs with the returned context when the file system
// gets fuller than Options.Reserve says: scriptlets may write what they like,
// and the host has other things to store.
func (s *Session) guardSpace(ctx context.Context) (context.Context, func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	look := func() {
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err == nil && st.Bavail*uint64(st.Bsize) < s.opt.Reserve {
			cancel(fault.New(fault.NoSpace, "free some space, or leave the package out", "the transaction left less than %d MB free in %s", s.opt.Reserve>>20, s.opt.Work))
		}
	}
	look()
	go func() {
		defer close(ended)
		every := time.NewTicker(spaceEvery)
		defer every.Stop()
		for {
			select {
			case <-guarded.Done():
				return
			case <-every.C:
				look()
			}
		}
	}()
	return guarded, func() {
		cancel(nil)
		<-ended
	}
}

// collect reads the transaction's changes.
func (s *Session) collect(started time.Time) (changes, error) {
	c := &collector{out: make(changes), started: started, ended: time.Now(), epoch: s.epoch()}
	if err := c.walk(s.path(txUpper, "root"), "", level{s.base.Root, s.path(prepUpper, "root")}, false); err != nil {
		return nil, err
	}
	for _, dir := range notInImages {
		c.out.drop(dir)
	}
	if s.base.Etc == "" {
		return c.out, nil
	}
	return c.out, c.walk(s.path(txUpper, "etc"), "etc", level{s.base.Etc, s.path(prepUpper, "etc")}, false)
}

// netBox is the sandbox for what needs the network: the root is read-only, and
// the host's repositories, keys and names show through.
func (s *Session) netBox() (*box, func(), error) {
	if err := s.hostEtc(); err != nil {
		return nil, nil, err
	}
	mnt, err := s.stack("", netUpper, prepUpper)
	if err != nil {
		return nil, nil, err
	}
	b := &box{s: s, root: mnt, net: true}
	cache, err := s.cacheDir(filepath.Join(s.opt.Cache, s.engine.name()))
	if err == nil {
		err = os.MkdirAll(s.path("files"), 0o755)
	}
	if err != nil {
		return nil, nil, errors.Join(err, unstack(mnt))
	}
	b.binds = []bind{cache, {from: s.path("files"), to: boxFiles}}
	return b, func() {
		if err := unstack(mnt); err != nil {
			s.log.Warn("a mount of the session stays until it ends", "error", err)
		}
	}, nil
}

// cacheDir makes a directory for a package manager's metadata.
func (s *Session) cacheDir(dir string) (bind, error) {
	for _, sub := range append(s.engine.cacheDirs(), ".") {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return bind{}, err
		}
	}
	return bind{from: dir, to: boxCache, writable: true}, nil
}

// takeFiles copies the request's local files into the cache and has the package
// manager say what they are.
func (s *Session) takeFiles(ctx context.Context, b *box, files []string, r *resolution) error {
	for i, file := range files {
		name := fmt.Sprintf("%d.%s", i, packageSuffix[s.engine.name()])
		if err := copyFile(file, s.path("files", name)); err != nil {
			return err
		}
		p, err := s.engine.inspect(ctx, b, filepath.Join(boxFiles, name))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		sum, err := fileDigest(s.path("files", name), digest.SHA256)
		if err != nil {
			return err
		}
		p.Checksum = sum.String()
		st, err := os.Stat(s.path("files", name))
		if err != nil {
			return err
		}
		p.Size, p.Requested = st.Size(), true
		if _, err := s.cached(p); err != nil {
			return err
		}
		if err := copyFile(s.path("files", name), s.pool(p)); err != nil {
			return err
		}
		r.files = append(r.files, p)
		r.paths = append(r.paths, filepath.Join(boxFiles, name))
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "", "%w", err)
	}
	if err != nil {
		return err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
		return fault.New(fault.Usage, "", "%s is not a file", from)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
