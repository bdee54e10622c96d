package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// staging is the locked directory tmp/staging-BOOTID-XXXXXX in which a
// transaction gathers its objects, laid out as objects/ is. libostree finds and
// continues it by the same rules.
type staging struct {
	dir  *os.File
	lock *os.File
	name string
	made [256]atomic.Bool // the subdirectories
	// private is the staging directory of an Import, which opens and removes
	// it and alone continues it. Files get their names in it before they are
	// whole (contentStage says how a whole one is told).
	private bool
}

// ensureDir makes the subdirectory for an object's path.
func (s *staging) ensureDir(sum Checksum) error {
	made := &s.made[sum[0]]
	if made.Load() {
		return nil
	}
	if err := unix.Mkdirat(int(s.dir.Fd()), hexByte(sum[0]), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make a staging directory: %w", err)
	}
	made.Store(true)
	return nil
}

// create makes the file of an object that is about to be written. In a private
// staging directory one that exists is fs.ErrExist.
func (s *staging) create(sum Checksum, path string, perm uint32) (*temp, error) {
	if !s.private {
		return newTemp(s.dir, perm)
	}
	if err := s.ensureDir(sum); err != nil {
		return nil, err
	}
	f, err := openAt(s.dir, path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return &temp{File: f, dir: s.dir, name: path}, nil
}

const stagingPrefix = "staging-"

func (r *Repo) stagingPrefix() string { return stagingPrefix + r.bootID + "-" }

// openStaging locks a staging directory of this boot that nobody uses, or
// makes one.
func (r *Repo) openStaging() (*staging, error) {
	names, err := readDirNames(r.tmp, ".")
	if err != nil {
		return nil, fmt.Errorf("look for a staging directory: %w", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, r.stagingPrefix()) || strings.HasSuffix(name, "-lock") {
			continue
		}
		s, err := r.lockStaging(name)
		if err != nil {
			return nil, err
		}
		if s != nil {
			_ = setTimes(int(s.dir.Fd()), nil) // so that its age does not let a clean-up take it
			return s, nil
		}
	}
	for {
		name := r.stagingPrefix() + randomName()[:6]
		err := unix.Mkdirat(int(r.tmp.Fd()), name, 0o755)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("make a staging directory: %w", err)
		}
		// Another process may have locked, or even finished with, the new
		// directory already.
		if s, err := r.lockStaging(name); err != nil || s != nil {
			return s, err
		}
	}
}

// lockStaging returns nil where another process has the directory, or where it
// vanished before the lock was there.
func (r *Repo) lockStaging(name string) (*staging, error) {
	lock, err := lockBeside(r.tmp, name+"-lock")
	if err != nil || lock == nil {
		return nil, err
	}
	s := &staging{lock: lock, name: name}
	s.dir, err = openDirAt(r.tmp, name)
	if err == nil {
		return s, nil
	}
	r.unlockStaging(s)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return nil, err
}

// lockBeside creates and locks a lock file that its holder removes when it is
// done: a lock on a file that has lost its name meanwhile counts for nothing.
func lockBeside(dir *os.File, name string) (*os.File, error) {
	for {
		f, err := openAt(dir, name, unix.O_RDWR|unix.O_CREAT, 0o644)
		if err != nil {
			return nil, err
		}
		ok, err := tryLock(f, true)
		if err != nil || !ok {
			_ = f.Close()
			return nil, err
		}
		var mine, there unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &mine); err != nil {
			_ = f.Close()
			return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
		}
		err = unix.Fstatat(int(dir.Fd()), name, &there, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && mine.Dev == there.Dev && mine.Ino == there.Ino {
			return f, nil
		}
		_ = f.Close()
	}
}

// unlockStaging lets go of a staging directory; what is in it stays.
func (r *Repo) unlockStaging(s *staging) {
	if s.dir != nil {
		_ = s.dir.Close()
	}
	_ = unlinkAt(r.tmp, s.name+"-lock")
	_ = s.lock.Close()
}

// removeStaging removes a locked staging directory. The lock outlives it, so
// that nobody takes up half of one.
func (r *Repo) removeStaging(s *staging) error {
	err := removeAllAt(r.tmp, s.name)
	r.unlockStaging(s)
	if err != nil {
		return fmt.Errorf("remove the staging directory: %w", err)
	}
	return nil
}

// CleanSides removes at once what a writer that died left beside its staging
// directory, which the next transaction continues: files that were to be renamed
// over another, and locks of staging directories that are gone. What a living
// process uses is locked and stays, except in a repository that is being
// created, whose creator the caller excludes.
func (r *Repo) CleanSides() error {
	names, err := readDirNames(r.dir, ".")
	if err != nil {
		return fmt.Errorf("clean %s: %w", r.path, err)
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, sidePrefix) {
			errs = append(errs, unlinkAt(r.dir, name))
		}
	}
	if names, err = readDirNames(r.tmp, "."); err != nil {
		return fmt.Errorf("clean %s/tmp: %w", r.path, err)
	}
	for _, name := range names {
		switch dir, isLock := strings.CutSuffix(name, "-lock"); {
		case strings.HasPrefix(name, sidePrefix):
			errs = append(errs, r.removeUnlocked(name))
		case isLock && strings.HasPrefix(name, stagingPrefix):
			s, err := r.lockStaging(dir) // removes the lock of a directory that is gone
			if s != nil {
				r.unlockStaging(s)
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean %s/tmp: %w", r.path, err)
	}
	return nil
}

// removeUnlocked removes a file that nobody has locked.
func (r *Repo) removeUnlocked(name string) error {
	f, err := openAt(r.tmp, name, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if ok, err := tryLock(f, true); !ok || err != nil {
		return err
	}
	return unlinkAt(r.tmp, name)
}

// CleanTmp removes what crashed or aborted transactions left in tmp/: what
// CleanSides does, staging directories of other boots, which may be torn, and,
// with all, those of this boot that nobody works in, whose content would spare
// the next transaction some work. Other entries go when they are older than
// core.tmp-expiry-secs, as in libostree.
func (r *Repo) CleanTmp(all bool) error {
	names, err := readDirNames(r.tmp, ".")
	if err != nil {
		return fmt.Errorf("clean %s/tmp: %w", r.path, err)
	}
	var errs []error
	for _, name := range names {
		var st unix.Stat_t
		if name == "cache" || unix.Fstatat(int(r.tmp.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if err := r.cleanEntry(name, &st, all); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean %s/tmp: %w", r.path, err)
	}
	return r.CleanSides()
}

func (r *Repo) cleanEntry(name string, st *unix.Stat_t, all bool) error {
	if strings.HasPrefix(name, stagingPrefix) && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if strings.HasPrefix(name, r.stagingPrefix()) && !all {
			return nil
		}
		s, err := r.lockStaging(name)
		if err != nil || s == nil {
			return err
		}
		return r.removeStaging(s)
	}
	expiry := time.Duration(r.config.Int("core", "tmp-expiry-secs", 86400)) * time.Second
	if time.Since(time.Unix(st.Mtim.Sec, st.Mtim.Nsec)) > expiry && !strings.HasPrefix(name, sidePrefix) && !strings.HasPrefix(name, stagingPrefix) {
		return removeAllAt(r.tmp, name)
	}
	return nil
}
