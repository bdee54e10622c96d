package layering

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

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
	names := slices.Concat(req.Install, req.Remove)
	for _, w := range req.Replace {
		if w.File == "" {
			names = append(names, w.Name)
		}
	}
	for _, n := range names {
		if err := s.engine.checkName(n); err != nil {
			return nil, err
		}
	}
	if req.Initramfs != nil {
		if err := req.Initramfs.Check(); err != nil {
			return nil, err
		}
	}
	if len(names)+len(req.Files)+len(req.Replace) == 0 {
		return &Lock{Engine: s.engine.name(), Initramfs: req.Initramfs}, nil
	}
	err = s.do(func() error {
		b, done, err := s.netBox()
		if err != nil {
			return err
		}
		defer done()
		r := &resolution{}
		if r.base, err = s.engine.query(ctx, b); err != nil {
			return err
		}
		var inactive []string
		for _, n := range req.Install {
			if r.inBase(n) {
				inactive = append(inactive, n)
			} else {
				r.install = append(r.install, n)
			}
		}
		for _, n := range req.Remove {
			if r.inBase(n) {
				r.remove = append(r.remove, n)
			} else {
				inactive = append(inactive, n)
			}
		}
		for _, file := range req.Files {
			f, err := s.takeFile(ctx, b, file)
			if err != nil {
				return err
			}
			r.files, r.paths = append(r.files, f.Package), append(r.paths, f.path)
		}
		replacing, err := s.takeReplacements(ctx, b, &req, r)
		if err != nil {
			return err
		}
		for good := false; !good; good = replacing.took(s, r, lock) {
			if lock, err = s.engine.resolve(ctx, b, r); err != nil {
				return s.orFull(err)
			}
		}
		if len(req.Replace) > 0 {
			lock.Replaced = replacing.found
		}
		lock.Inactive, lock.Initramfs = inactive, req.Initramfs
		replaceKernels(lock, r.base)
		sortPackages(lock.Install)
		sortPackages(lock.Remove)
		return checkRemovals(lock, req.Remove)
	})
	return lock, err
}

// replaceKernels has packages that may be installed side by side, kernels, take
// the place of the base's of the same name: an image has one kernel.
func replaceKernels(lock *Lock, base []Package) {
	for _, p := range lock.Install {
		for _, old := range base {
			if p.Replaces == "" && old.Name == p.Name && old.Arch == p.Arch && !slices.Contains(lock.Remove, old) {
				lock.Remove = append(lock.Remove, old)
			}
		}
	}
}

// checkRemovals refuses to remove packages of the base that nobody asked to. One
// of the same name takes the place of a package, whatever its architecture.
func checkRemovals(lock *Lock, asked []string) error {
	var names []string
	for _, p := range lock.Remove {
		replaced := slices.ContainsFunc(lock.Install, func(q Package) bool { return q.Name == p.Name })
		if !slices.Contains(asked, p.Name) && !replaced {
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
		if s.opt.CacheOnly {
			return fault.New(fault.NotFound, "leave --cache-only out, or fetch them first with --download-only", "the cache lacks %s and %d more", missing.Install[0].Name, len(missing.Install)-1)
		}
		b, done, err := s.netBox()
		if err != nil {
			return err
		}
		defer done()
		// Beside the cached packages, to be renamed; with nothing that an earlier
		// run left half-way.
		dir := filepath.Join(s.opt.Cache, fetching)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		b.binds = append(b.binds, bind{from: dir, to: boxPackages, writable: true})
		if err := s.engine.fetch(ctx, b, missing); err != nil {
			return s.orFull(err)
		}
		return s.takeFetched(dir, missing)
	})
}

// orFull says that the disk is full where a package manager failed for that and
// calls it otherwise.
func (s *Session) orFull(err error) error {
	const little = 8 << 20
	var st unix.Statfs_t
	full := unix.Statfs(s.opt.Cache, &st) == nil && st.Bavail*uint64(st.Bsize) < little
	if k := fault.KindOf(err); full && (k == fault.Unavailable || k == fault.Conflict) {
		return fault.New(fault.NoSpace, "free some space", "less than %d MB are free in %s: %w", little>>20, s.opt.Cache, err)
	}
	return err
}

// fetching is the directory of the cache for what is not known to be right yet.
const fetching = "fetching"

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
	b := &box{s: s, root: mnt, net: !s.opt.CacheOnly}
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
