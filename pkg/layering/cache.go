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

	"github.com/opencontainers/go-digest"

	"github.com/kedge-os/kedge/pkg/fault"
)

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

// cacheDir makes a directory for a package manager's metadata.
func (s *Session) cacheDir(dir string) (bind, error) {
	for _, sub := range append(s.engine.cacheDirs(), ".") {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return bind{}, err
		}
	}
	return bind{from: dir, to: boxCache, writable: true}, nil
}

// takeFile copies a local file into the cache and has the package manager say
// what it is.
func (s *Session) takeFile(ctx context.Context, b *box, file string) (*localFile, error) {
	s.files++
	name := fmt.Sprintf("%d.%s", s.files, packageSuffix[s.engine.name()])
	f := &localFile{path: filepath.Join(boxFiles, name)}
	if err := copyFile(file, s.path("files", name)); err != nil {
		return nil, err
	}
	var err error
	if f.Package, err = s.engine.inspect(ctx, b, f.path); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	sum, err := fileDigest(s.path("files", name), digest.SHA256)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(s.path("files", name))
	if err != nil {
		return nil, err
	}
	f.Checksum, f.Size, f.Requested = sum.String(), st.Size(), true
	if _, err := s.cached(f.Package); err != nil {
		return nil, err
	}
	return f, copyFile(s.path("files", name), s.pool(f.Package))
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
