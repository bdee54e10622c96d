package layering

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// sessionPrefix names the sessions' directories in Options.Work. Each holds a
// file "lock" that its session keeps locked while it lives.
const sessionPrefix = "layering-"

// Session is one piece of work on one base. It is not for concurrent use.
type Session struct {
	base   Base
	opt    Options
	log    *slog.Logger
	bwrap  string
	dir    string
	lock   *os.File
	engine engine
	// kernelFiles are the parts of /proc that are covered in a box.
	kernelFiles []string
	files       int // local packages that were taken
	calls       chan func()
	ended       chan struct{}
}

// Open starts a session: it finds the base's package manager and prepares a
// root for it beneath Options.Work. Directories of sessions that were killed
// are removed. The errors are typed: Conflict where the base has no package
// manager, NotFound where bubblewrap is missing.
func Open(ctx context.Context, base Base, opt Options) (_ *Session, err error) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return nil, fault.New(fault.Conflict, "install bubblewrap (the package is called so everywhere)", "packages are installed in a sandbox, and bwrap is not there: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Denied, "run as root", "installing packages needs root")
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Reserve == 0 {
		opt.Reserve = 256 << 20
	}
	if opt.Resolv == "" {
		opt.Resolv = "/etc/resolv.conf"
	}
	if opt.Journal == "" {
		opt.Journal = journalSocket
	}
	for _, d := range []string{opt.Work, opt.Cache} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := sweep(opt.Work); err != nil {
		return nil, err
	}
	s := &Session{base: base, opt: opt, log: opt.Logger, bwrap: bwrap, calls: make(chan func()), ended: make(chan struct{})}
	if s.dir, err = os.MkdirTemp(opt.Work, sessionPrefix); err != nil {
		return nil, err
	}
	started := make(chan error)
	go s.serve(started)
	if err := <-started; err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	if err := s.do(func() error { return s.open(ctx) }); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Session) open(ctx context.Context) (err error) {
	if s.lock, err = lockSession(s.dir); err != nil {
		return err
	}
	if s.base.Mount != nil {
		if err := s.mountBase(ctx); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(s.base.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	if s.engine, err = detect(root); err != nil {
		return err
	}
	if s.kernelFiles, err = kernelFiles(); err != nil {
		return err
	}
	return s.prepare(ctx)
}

func (s *Session) mountBase(ctx context.Context) error {
	s.base.Root = s.path("base")
	if err := os.Mkdir(s.base.Root, 0o755); err != nil {
		return err
	}
	etc, err := s.base.Mount(ctx, s.base.Root)
	if err != nil {
		return fmt.Errorf("provide the base image's files: %w", err)
	}
	if etc != "" {
		s.base.Etc = filepath.Join(s.base.Root, etc)
	}
	return nil
}

// Engine returns the name of the base's package manager: "apt" or "dnf".
func (s *Session) Engine() string { return s.engine.name() }

// Close removes what the session made.
func (s *Session) Close() error {
	close(s.calls)
	<-s.ended
	// The namespace went with its thread, and the mounts with it.
	err := os.RemoveAll(s.dir)
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// serve runs the session's calls on a thread with a mount namespace of its own.
// The thread ends with the session, and the kernel takes the mounts down.
func (s *Session) serve(started chan<- error) {
	runtime.LockOSThread()
	defer close(s.ended)
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err != nil {
		started <- fault.New(fault.Denied, "run as root, outside of a container", "make a private mount namespace: %w", err)
		return
	}
	started <- nil
	for call := range s.calls {
		call()
	}
}

// do runs fn where the session's mounts are.
func (s *Session) do(fn func() error) error {
	result := make(chan error)
	s.calls <- func() { result <- fn() }
	return <-result
}

func (s *Session) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// epoch is the time that everything made in the session carries.
func (s *Session) epoch() time.Time {
	if s.base.Created.Unix() <= 0 {
		return time.Unix(1, 0).UTC()
	}
	return s.base.Created.UTC().Truncate(time.Second)
}

func lockSession(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes the directories of sessions that no longer live.
func sweep(work string) error {
	names, err := filepath.Glob(filepath.Join(work, sessionPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range names {
		f, err := lockSession(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at what an earlier run left: %w", err)
		}
		err = errors.Join(os.RemoveAll(dir), f.Close())
		if err != nil {
			return fmt.Errorf("remove what an earlier run left: %w", err)
		}
	}
	return nil
}

// overlay mounts lowers (the topmost first) with an upper at target. An empty
// upper gives a read-only mount. The features that would make an upper
// unreadable without its lowers are off.
func overlay(target, upper string, lowers ...string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	// Through descriptors, a path needs no quoting.
	fd := func(dir string) (string, error) {
		f, err := os.Open(dir)
		if err != nil {
			return "", err
		}
		open = append(open, f)
		return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
	}
	var dirs []string
	for _, l := range lowers {
		d, err := fd(l)
		if err != nil {
			return err
		}
		dirs = append(dirs, d)
	}
	opts := "lowerdir=" + strings.Join(dirs, ":") + ",metacopy=off,redirect_dir=off,index=off,xino=off"
	if upper != "" {
		for _, d := range []string{upper, upper + ".work"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		up, err := fd(upper)
		if err != nil {
			return err
		}
		work, err := fd(upper + ".work")
		if err != nil {
			return err
		}
		// An upper does not outlive its session, so nothing in it needs to reach
		// the disk; package managers sync after each file.
		opts += ",volatile,upperdir=" + up + ",workdir=" + work
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("overlay", target, "overlay", 0, opts); err != nil {
		return fault.New(fault.Conflict, "the directory for temporary files must lie on ext4, xfs or btrfs", "mount an overlay over the base: %w", err)
	}
	return nil
}
