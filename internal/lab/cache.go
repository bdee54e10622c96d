package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unusedFor is how long the cache keeps what nobody uses.
const unusedFor = 14 * 24 * time.Hour

// cached is the form of what recipes keep in the cache: KIND-KEY, where the key
// is a hash of the recipe. The recipe's lock is KIND.lock.
var cached = regexp.MustCompile(`^([a-z-]+)-[0-9a-f]{12,16}$`)

// keepUsed marks what a recipe made as used, and removes what older versions of
// the recipe made and nobody has used for a while. made is a path in it.
func keepUsed(cache, made string) error {
	rel, err := filepath.Rel(cache, made)
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(rel, "/")
	m := cached.FindStringSubmatch(name)
	if m == nil {
		return nil
	}
	unlock, err := flock(filepath.Join(cache, m[1]+".lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	now := time.Now()
	if err := os.Chtimes(filepath.Join(cache, name), now, now); err != nil {
		return err
	}
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if o := cached.FindStringSubmatch(e.Name()); o == nil || o[1] != m[1] || e.Name() == name || !old(e) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(cache, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func old(e os.DirEntry) bool {
	info, err := e.Info()
	return err == nil && time.Since(info.ModTime()) > unusedFor
}

// flock locks a file, which is made where it is missing. The lock ends with
// unlock or with the process.
func flock(path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(&os.PathError{Op: "lock", Path: path, Err: err}, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// newWorldDir makes the directory of a world, locked for as long as the process
// has it, and removes those that killed processes left behind.
func newWorldDir(ctx context.Context, cache string) (dir string, unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", nil, err
	}
	// No world may be seen before it has its lock.
	made, err := flock(filepath.Join(cache, "worlds.lock"), unix.LOCK_EX)
	if err != nil {
		return "", nil, err
	}
	defer made()
	left, err := filepath.Glob(filepath.Join(cache, "world-*"))
	if err != nil {
		return "", nil, err
	}
	for _, d := range left {
		_ = removeDeadWorld(ctx, d) // what cannot be removed is in nobody's way
	}
	if dir, err = os.MkdirTemp(cache, "world-"); err != nil {
		return "", nil, err
	}
	unlock, err = flock(worldLock(dir), unix.LOCK_EX)
	return dir, unlock, err
}

func worldLock(dir string) string { return filepath.Join(dir, "lock") }

// removeDeadWorld removes the world in dir unless its process is alive. One
// without a lock was made before there were locks, or is not a world yet.
func removeDeadWorld(ctx context.Context, dir string) error {
	if _, err := os.Stat(worldLock(dir)); err != nil {
		st, err := os.Stat(dir)
		if err != nil || time.Since(st.ModTime()) < 24*time.Hour {
			return err
		}
	}
	unlock, err := flock(worldLock(dir), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	podman := Podman{root: filepath.Join(dir, "podman/root"), runroot: filepath.Join(dir, "podman/run")}
	return errors.Join(podman.Remove(ctx), removeTree(dir))
}
