package ostree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Verity is whether a repository's objects are sealed with fs-verity when they
// are written. As in libostree (ostree-repo-verity.c) all but detached metadata
// and symlinks are, by sha256.
type Verity uint8

// What a configuration can ask for.
const (
	VerityOff   Verity = iota
	VerityMaybe        // where the file system has it
	VerityOn
)

// Verity returns what [ex-integrity] fsverity asks for. Without it composefs=
// there implies VerityMaybe, and the older [ex-fsverity] counts.
func (c *Config) Verity() (Verity, error) {
	composefs, err := c.tristate("ex-integrity", "composefs", VerityOff)
	if err != nil {
		return VerityOff, err
	}
	v, err := c.tristate("ex-integrity", "fsverity", min(composefs, VerityMaybe))
	switch {
	case err != nil || v != VerityOff:
		return v, err
	case c.Bool("ex-fsverity", "required", false):
		return VerityOn, nil
	case c.Bool("ex-fsverity", "opportunistic", false):
		return VerityMaybe, nil
	}
	return VerityOff, nil
}

func (c *Config) tristate(group, key string, def Verity) (Verity, error) {
	v, ok := c.Get(group, key)
	if !ok {
		return def, nil
	}
	switch v {
	case "yes", "true", "1":
		return VerityOn, nil
	case "maybe":
		return VerityMaybe, nil
	case "no", "false", "0":
		return VerityOff, nil
	}
	return VerityOff, fault.New(fault.Corrupt, "set it to yes, maybe or no", "the repository's configuration: [%s] %s=%s means nothing", group, key, v)
}

// CheckVerity returns an error of kind Conflict where the repository's file
// system has no fs-verity. Nothing is written to find out.
func (r *Repo) CheckVerity() error {
	_, err := r.allSealed()
	return err
}

// allSealed reports whether all objects are known to be sealed: ostree-ext and
// EnsureVerity then seal the configuration file itself.
func (r *Repo) allSealed() (bool, error) {
	f, _, err := openFileAt(r.dir, "config")
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = fsverity.Measure(f)
	switch {
	case errors.Is(err, fsverity.ErrNotSealed):
		return false, nil
	case errors.Is(err, fsverity.ErrNoVerity):
		return false, r.noVerity()
	}
	return err == nil, err
}

func (r *Repo) noVerity() error {
	return fault.New(fault.Conflict,
		"use a file system with it: ext4 made with mkfs.ext4 -O verity or changed by tune2fs -O verity, btrfs, f2fs; and a kernel that has it",
		"%w: the file system of %s cannot seal files", fsverity.ErrNoVerity, r.path)
}

// EnsureVerity seals every object and sets [ex-integrity] fsverity, so that
// those written later are sealed too, by whatever program. Where that is so
// already it does nothing. Without fs-verity it is an error of kind Conflict and
// nothing has changed. Interrupted, it is to be run again; the seal on the
// configuration file, the last step, says that it was not.
func (r *Repo) EnsureVerity(ctx context.Context) error {
	wanted, err := r.config.Verity()
	if err != nil {
		return err
	}
	sealed, err := r.allSealed()
	if err != nil || sealed && wanted == VerityOn {
		return err
	}
	// First, so that no transaction adds an unsealed object behind the walk.
	if wanted != VerityOn {
		if err := r.SetConfig(r.config.Set("ex-integrity", "fsverity", "true")); err != nil {
			return err
		}
	}
	if err := r.Seal(ctx); err != nil {
		return err
	}
	if err := sealAt(r.dir, "config"); err != nil {
		return fmt.Errorf("note in the ostree repository %s that all is sealed: %w", r.path, err)
	}
	return nil
}

// Seal seals every object that is not, where the configuration asks for it.
func (r *Repo) Seal(ctx context.Context) error {
	if err := r.seal(ctx); err != nil {
		return fmt.Errorf("seal the objects of the ostree repository %s: %w", r.path, err)
	}
	return nil
}

func (r *Repo) seal(ctx context.Context) error {
	lock, err := r.lock(ctx, false)
	if err != nil {
		return err
	}
	if lock != nil {
		defer lock.Close()
	}
	dirs, err := readDirNames(r.objects, ".")
	if err != nil {
		return err
	}
	if err := r.sealDirs(ctx, r.objects, dirs); err != nil {
		return err
	}
	return r.syncfs()
}

// sealDirs seals the objects in subdirectories of objects/ or of a staging
// directory, on all processors, as the configuration asks for it.
func (r *Repo) sealDirs(ctx context.Context, parent *os.File, dirs []string) error {
	wanted, err := r.config.Verity()
	if err != nil || wanted == VerityOff {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers())
	for _, name := range dirs {
		g.Go(func() error { return r.sealDir(ctx, parent, name) })
	}
	err = g.Wait()
	if errors.Is(err, fsverity.ErrNoVerity) {
		if wanted == VerityMaybe {
			return nil
		}
		return r.noVerity()
	}
	return err
}

func (r *Repo) sealDir(ctx context.Context, parent *os.File, name string) error {
	dir, err := openDirAt(parent, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	list, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, ok := object.ParsePath(name, e.Name(), r.mode == Archive)
		if !ok || n.Type == object.TypeCommitMeta || !e.Type().IsRegular() {
			continue
		}
		if err := sealAt(dir, e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func sealAt(dir *os.File, name string) error {
	f, _, err := openFileAt(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fsverity.Seal(f, fsverity.SHA256)
	return err
}

// isSealed reports whether the kernel guards a file object; a symlink counts
// as guarded, since it has no content of its own.
func (r *Repo) isSealed(c Checksum) (bool, error) {
	f, _, err := openFileAt(r.objects, object.Name{Checksum: c, Type: object.TypeFile}.Path(r.mode == Archive))
	if errors.Is(err, unix.ELOOP) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = fsverity.Measure(f)
	if errors.Is(err, fsverity.ErrNotSealed) || errors.Is(err, fsverity.ErrNoVerity) {
		return false, nil
	}
	return err == nil, err
}
